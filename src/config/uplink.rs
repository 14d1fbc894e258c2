//! `[uplink]`: the hubs, in order of preference, and how to stay connected to one of them.
use super::interface::read_peer_keys;
use super::reader::Table;
use serde::Serialize;
use spoke_model::address::{Cidr, HostPort};
use spoke_model::duration::duration_text;
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_model::key_source::KeySource;
use std::net::IpAddr;
use std::time::Duration;

/// `[[uplink.hub]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hub {
    /// For people and logs; unique.
    pub name: String,
    /// Identity.
    pub public_key: PublicKey,
    /// Extra symmetric key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<KeySource>,
    /// Where to reach it; a name is resolved for each attempt.
    pub endpoint: HostPort,
    /// The hub's tunnel address; it must answer an echo before the tunnel counts as up.
    pub address: IpAddr,
    /// Networks behind the hub; contain `address`.
    pub allowed_ips: Vec<Cidr>,
    /// Seconds; 0 is off.
    pub keepalive: u16,
}

/// `[uplink]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Uplink {
    /// The interface that carries the tunnel.
    pub interface: IfName,
    /// First wait after a failed attempt.
    #[serde(serialize_with = "duration_text")]
    pub backoff_initial: Duration,
    /// Longest wait between attempts.
    #[serde(serialize_with = "duration_text")]
    pub backoff_max: Duration,
    /// Time limit of an attempt, up to handshake and echo reply.
    #[serde(serialize_with = "duration_text")]
    pub attempt_timeout: Duration,
    /// A session that lasted this long resets the backoff.
    #[serde(serialize_with = "duration_text")]
    pub stable_after: Duration,
    /// Probe after sending without receiving for this long.
    #[serde(serialize_with = "duration_text")]
    pub probe_after: Duration,
    /// Disconnected after sending and probing without receiving for this long.
    #[serde(serialize_with = "duration_text")]
    pub dead_after: Duration,
    /// Period of echoes; `None`: by the number of hubs, see [`Uplink::idle_probe`].
    #[serde(serialize_with = "optional_text", skip_serializing_if = "Option::is_none")]
    pub idle_probe: Option<Duration>,
    /// How long a better hub must respond before the tunnel moves back to it.
    #[serde(serialize_with = "duration_text")]
    pub failback_after: Duration,
    /// Hubs, best first.
    #[serde(rename = "hub")]
    pub hubs: Vec<Hub>,
}

impl Uplink {
    /// An uplink with default times.
    pub fn with_hubs(interface: IfName, hubs: Vec<Hub>) -> Self {
        let s = Duration::from_secs;
        Self {
            interface,
            backoff_initial: s(2),
            backoff_max: s(60),
            attempt_timeout: s(10),
            stable_after: s(60),
            probe_after: s(5),
            dead_after: s(15),
            idle_probe: None,
            failback_after: s(300),
            hubs,
        }
    }

    /// Period of echoes through the tunnel. With another hub to move to it is 24 s: with `dead_after` a lost hub is noticed
    /// in 39 s, and one second below the usual keepalive of 25 s no keepalive is sent beside the echoes.
    pub fn idle_probe(&self) -> Duration {
        self.idle_probe.unwrap_or(Duration::from_secs(if self.hubs.len() > 1 { 24 } else { 60 }))
    }

    pub(super) fn read(t: &mut Table<'_>) -> Option<Self> {
        let s = Duration::from_secs;
        let ms = Duration::from_millis;
        let interface = t.parsed("interface", "the name of an [[interface]]");
        if interface.is_none() && !t.has("interface") {
            t.required("interface", "the name of the [[interface]] that carries the tunnel");
        }
        let backoff_initial = t.duration("backoff_initial", ms(100)..=s(600)).unwrap_or(s(2));
        let backoff_max = t.duration("backoff_max", s(1)..=s(3600)).unwrap_or(s(60));
        if backoff_max < backoff_initial {
            t.fault("backoff_max", "is shorter than backoff_initial", "write at least backoff_initial");
        }
        let probe_after = t.duration("probe_after", s(1)..=s(120)).unwrap_or(s(5));
        let dead_after = t.duration("dead_after", s(2)..=s(180)).unwrap_or(s(15));
        if dead_after <= probe_after {
            t.fault(
                "dead_after",
                "is not longer than probe_after",
                "write more than probe_after, so that a probe can be answered",
            );
        }
        let (attempt_timeout, stable_after) =
            (t.duration("attempt_timeout", s(1)..=s(120)), t.duration("stable_after", s(1)..=s(86_400)));
        let (idle_probe, failback_after) =
            (t.duration("idle_probe", s(1)..=s(3600)), t.duration("failback_after", s(1)..=s(86_400)));
        let hubs = t.tables("hub", read_hub);
        if hubs.is_empty() && !t.faulty() {
            t.fault("hub", "is missing", "add [[uplink.hub]] with name, public_key, endpoint, address");
        }
        for (i, hub) in hubs.iter().enumerate() {
            if let Some(j) = hubs[..i].iter().position(|h| h.name == hub.name || h.public_key == hub.public_key) {
                t.fault(&format!("hub[{i}]"), format_args!("has the name or key of hub[{j}]"), "remove one of the two");
            }
        }
        Some(Self {
            interface: interface?,
            backoff_initial,
            backoff_max,
            attempt_timeout: attempt_timeout.unwrap_or(s(10)),
            stable_after: stable_after.unwrap_or(s(60)),
            probe_after,
            dead_after,
            idle_probe,
            failback_after: failback_after.unwrap_or(s(300)),
            hubs,
        })
    }
}

fn optional_text<S: serde::Serializer>(d: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
    match d {
        Some(d) => duration_text(d, s),
        None => s.serialize_none(),
    }
}

fn read_hub(t: &mut Table<'_>) -> Option<Hub> {
    let name = t.text("name");
    let keys = read_peer_keys(t);
    for (key, there, remedy) in [
        ("endpoint", t.has("endpoint"), "HOST:PORT such as hub.example.net:51820"),
        ("address", t.has("address"), "the hub's address inside the tunnel such as 10.8.0.1"),
    ] {
        if !there {
            t.required(key, remedy);
        }
    }
    let address: Option<IpAddr> = t.parsed("address", "an IP address such as 10.8.0.1");
    let mut allowed_ips = keys.allowed_ips;
    if let Some(address) = address {
        if allowed_ips.is_empty() {
            allowed_ips.push(Cidr(address.into()));
        } else if !allowed_ips.iter().any(|c| c.0.contains(&address)) {
            t.fault(
                "allowed_ips",
                format_args!("do not contain the hub's own address {address}"),
                format_args!("add {address}"),
            );
        }
    }
    let (public_key, endpoint) = (keys.public_key?, keys.endpoint?);
    Some(Hub {
        name: name.unwrap_or_else(|| endpoint.to_string()),
        public_key,
        preshared_key: keys.preshared_key,
        endpoint,
        address: address?,
        allowed_ips,
        keepalive: keys.keepalive.unwrap_or(25),
    })
}
