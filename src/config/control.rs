//! `[control]`: the control plane that this node enrols with and follows.
use super::reader::Table;
use serde::Serialize;
use spoke_model::address::HostPort;
use spoke_model::duration::duration_text;
use spoke_model::interface_name::IfName;
use spoke_model::key_source::KeySource;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// The longest time a long-poll of the control plane is held, in seconds.
pub const MAX_WAIT_SECS: u64 = 900;

/// `https://HOST[:PORT]`, nothing behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server(pub HostPort);

impl FromStr for Server {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("https://").ok_or("does not begin with https://")?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let with_port = if rest.rsplit(']').next().is_some_and(|r| r.contains(':')) {
            rest.to_owned()
        } else {
            format!("{rest}:443")
        };
        with_port.parse().map(Self).map_err(|_| "is not https://HOST:PORT")
    }
}

impl Serialize for Server {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("https://{}", self.0))
    }
}

/// `sha256:` and 64 characters of hex.
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

impl Serialize for Pin {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let hex: String = self.0.iter().map(|b| format!("{b:02x}")).collect();
        s.collect_str(&format_args!("sha256:{hex}"))
    }
}

/// `[control]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Control {
    /// Where it is.
    pub url: Server,
    /// The certificate it must show; no date in it matters then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
    /// Certificates to trust in place of the public CAs, in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The enrolment token; needed until the node is enrolled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<KeySource>,
    /// The interface that the control plane decides about.
    pub interface: IfName,
    /// How long a request for news is left open.
    #[serde(serialize_with = "duration_text")]
    pub poll_wait: Duration,
    /// How often the node reports without a reason.
    #[serde(serialize_with = "duration_text")]
    pub report_every: Duration,
    /// How long a new state has to reach the hub before the previous one comes back.
    #[serde(serialize_with = "duration_text")]
    pub confirm_within: Duration,
    /// After a lost connection, a random wait up to this: a fleet does not come back all at once.
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
            t.fault("ca", "stands beside pin", "keep one of the two");
        }
        let token = t.parsed("token", "\"file:/absolute/path\" or \"credential:NAME\"");
        let interface = t.parsed("interface", "the name of the interface, such as wg0");
        let poll_wait = t.duration("poll_wait", s(5)..=s(MAX_WAIT_SECS)).unwrap_or(s(600));
        let report_every = t.duration("report_every", s(5)..=s(86_400)).unwrap_or(s(900));
        let confirm_within = t.duration("confirm_within", s(5)..=s(3600)).unwrap_or(s(60));
        let spread = t.duration("spread", s(0)..=s(3600)).unwrap_or(s(60));
        let interface = match interface {
            Some(name) => name,
            None => "wg0".parse().ok()?,
        };
        Some(Self { url: url?, pin, ca, token, interface, poll_wait, report_every, confirm_within, spread })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_pins() {
        let server = |t: &str| t.parse::<Server>().map(|s| s.0.to_string());
        assert_eq!(server("https://c.example.net"), Ok("c.example.net:443".into()));
        assert_eq!(server("https://[2001:db8::1]:8443/"), Ok("[2001:db8::1]:8443".into()));
        for bad in ["http://c.example.net", "https://", "https://c/path", "c:1"] {
            assert!(server(bad).is_err(), "{bad}");
        }
        let text = format!("sha256:{}", "0f".repeat(32));
        let pin: Pin = text.parse().unwrap();
        assert_eq!(serde_json::to_value(pin).unwrap(), text);
        assert!("sha256:0f".parse::<Pin>().is_err() && format!("sha256:{}", "é".repeat(32)).parse::<Pin>().is_err());
    }
}
