//! `[control]`: the control plane that this node enrols with.
use super::reader::Table;
use ipnet::IpNet;
use serde::Serialize;
use spoke_model::address::HostPort;
use spoke_model::duration::duration_text;
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_model::key_source::KeySource;
use spoke_model::url::{BadUrl, HttpUrl};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Longest hold time of a long-poll, in seconds.
pub const MAX_WAIT_SECS: u64 = 900;

/// `https://HOST[:PORT]` without a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server(pub HostPort);

impl FromStr for Server {
    type Err = BadServer;
    fn from_str(text: &str) -> Result<Self, BadServer> {
        let url: HttpUrl = text.parse()?;
        match (url.is_tls(), url.tail()) {
            (false, _) => Err(BadServer::Plain),
            (true, "" | "/") => Ok(Self(url.server().clone())),
            (true, _) => Err(BadServer::Path),
        }
    }
}

/// Text that is not the address of a control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadServer {
    /// Not a URL.
    #[error(transparent)]
    Url(#[from] BadUrl),
    /// `http`.
    #[error("does not begin with https://")]
    Plain,
    /// More than the server.
    #[error("has a path")]
    Path,
}

impl Serialize for Server {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("https://{}", self.0))
    }
}

/// SHA-256 of a certificate: `sha256:` and 64 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin(pub [u8; 32]);

impl FromStr for Pin {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = text.strip_prefix("sha256:").filter(|h| h.len() == 64 && h.is_ascii());
        let hex = hex.ok_or("is not sha256: and 64 characters of hex")?;
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).ok().and_then(|p| u8::from_str_radix(p, 16).ok());
            *byte = pair.ok_or("is not sha256: and 64 characters of hex")?;
        }
        Ok(Self(out))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl Serialize for Pin {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// `[control]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Control {
    /// Its address.
    pub url: Server,
    /// The certificate it must present; dates in it are not checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
    /// CA certificates to trust instead of the public ones, in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The enrolment token; needed until the node is enrolled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<KeySource>,
    /// The key that signs requests; `None`: `identity.key` in the state directory, created once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<KeySource>,
    /// The interface that the control plane manages.
    pub interface: IfName,
    /// The networks that a state document may use for addresses and allowed-ips; `None`: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_networks: Option<Vec<IpNet>>,
    /// The keys that hubs of a state document may have; `None`: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub_keys: Option<Vec<PublicKey>>,
    /// Hold time of a long-poll.
    #[serde(serialize_with = "duration_text")]
    pub poll_wait: Duration,
    /// Period of reports without a change.
    #[serde(serialize_with = "duration_text")]
    pub report_every: Duration,
    /// Time a new state has to reach the hub before it is reverted.
    #[serde(serialize_with = "duration_text")]
    pub confirm_within: Duration,
    /// Upper bound of the random wait after a lost connection, so that a fleet does not reconnect all at once.
    #[serde(serialize_with = "duration_text")]
    pub spread: Duration,
}

impl Control {
    pub(super) fn read(t: &mut Table<'_>) -> Option<Self> {
        let s = Duration::from_secs;
        let url = t.parsed("url", "https://HOST:PORT such as https://control.example.net:8443");
        if url.is_none() && !t.has("url") {
            t.required("url", "url = \"https://control.example.net:8443\"");
        }
        let (pin, ca) =
            (t.parsed("pin", "what `spoke-control serve` prints: sha256:…"), t.text("ca").map(PathBuf::from));
        if ca.as_ref().is_some_and(|p| !p.is_absolute()) {
            t.fault("ca", "is not an absolute path", "begin it with /");
        }
        if pin.is_some() && ca.is_some() {
            t.fault("ca", "is given together with pin", "remove one of the two");
        }
        let token = t.parsed("token", "\"file:/absolute/path\" or \"credential:NAME\"");
        let identity = t.parsed("identity", "\"file:/absolute/path\" or \"credential:NAME\"");
        let interface = t.parsed("interface", "the name of the interface, such as wg0");
        let poll_wait = t.duration("poll_wait", s(5)..=s(MAX_WAIT_SECS)).unwrap_or(s(600));
        let report_every = t.duration("report_every", s(5)..=s(86_400)).unwrap_or(s(900));
        let confirm_within = t.duration("confirm_within", s(5)..=s(3600)).unwrap_or(s(60));
        let spread = t.duration("spread", s(0)..=s(3600)).unwrap_or(s(60));
        let allow_networks = t.list("allow_networks", "a network such as 10.8.0.0/16");
        let hub_keys = t.list("hub_keys", "a hub's public key of 44 characters");
        for (key, is_empty) in [
            ("allow_networks", allow_networks.as_ref().is_some_and(Vec::is_empty)),
            ("hub_keys", hub_keys.as_ref().is_some_and(Vec::is_empty)),
        ] {
            if is_empty {
                t.fault(
                    key,
                    "is empty, so every state of the control plane would be refused",
                    "name some, or leave it out",
                );
            }
        }
        let interface = match interface {
            Some(name) => name,
            None => "wg0".parse().ok()?,
        };
        Some(Self {
            url: url?,
            pin,
            ca,
            token,
            identity,
            interface,
            allow_networks,
            hub_keys,
            poll_wait,
            report_every,
            confirm_within,
            spread,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_and_pin_read_back() {
        let server = |t: &str| t.parse::<Server>().map(|s| s.0.to_string());
        assert_eq!(server("https://c.example.net"), Ok("c.example.net:443".into()));
        assert_eq!(server("https://[2001:db8::1]:8443/"), Ok("[2001:db8::1]:8443".into()));
        assert_eq!(server("HTTPS://c.example.net.:8443"), Ok("c.example.net:8443".into()));
        for bad in [
            "http://c.example.net",
            "https://c:0",
            "https://c:99999",
            "https://u@c",
            "https://",
            "https://c/path",
            "c:1",
        ] {
            assert!(server(bad).is_err(), "{bad}");
        }
        let text = format!("sha256:{}", "0f".repeat(32));
        let pin: Pin = text.parse().unwrap();
        assert_eq!(serde_json::to_value(pin).unwrap(), text);
        assert!("sha256:0f".parse::<Pin>().is_err() && format!("sha256:{}", "é".repeat(32)).parse::<Pin>().is_err());
    }
}
