//! `[grants]`: the access contract, the endpoints to query, and how long a decision holds.
use super::layout::{Layout, Verification};
use super::node::Role;
use super::reader::Table;
use alloy_primitives::Address;
use serde::{Deserialize, Serialize, Serializer};
use spoke_model::duration::duration_text;
use spoke_model::key_source::{BadKeySource, KeySource};
use spoke_model::secret::Secret;
use spoke_model::url::{BadUrl, HttpUrl};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Where an endpoint's URL comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// In the configuration; its path or query may contain a key and is never shown.
    Url(Url),
    /// Stored like a key: a file or a credential with the URL as its only line.
    Kept(KeySource),
}

/// An HTTP URL of which only scheme and host may be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    text: Secret<String>,
    shown: String,
}

impl Url {
    /// The complete URL; only for the client that opens it.
    pub const fn reveal(&self) -> &String {
        self.text.reveal()
    }

    /// Scheme, host and port.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Whether both name the same endpoint: case of scheme and host, the default port, a final dot of the host and a
    /// final slash make no other.
    pub fn is_same(&self, other: &Self) -> bool {
        self.canonical() == other.canonical()
    }

    fn canonical(&self) -> String {
        let (scheme, rest) = self.text.reveal().split_once("://").unwrap_or_default();
        let scheme = scheme.to_ascii_lowercase();
        let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let host = host.to_ascii_lowercase();
        let usual = if scheme == "https" { ":443" } else { ":80" };
        let host = host.strip_suffix(usual).unwrap_or(&host);
        let path = path.split('#').next().unwrap_or_default().trim_end_matches('/');
        format!("{scheme}://{}{path}", host.trim_end_matches('.'))
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// A WebSocket URL, or where it is kept. Held as the HTTP URL with which the connection begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription(pub Endpoint);

/// Reads a WebSocket URL, as the HTTP URL with which the connection begins.
pub fn websocket_url(text: &str) -> Result<Url, BadSubscription> {
    let (scheme, rest) = text.split_once("://").ok_or(BadSubscription::Scheme)?;
    let http = match scheme.to_ascii_lowercase().as_str() {
        "wss" => "https",
        "ws" => "http",
        _ => return Err(BadSubscription::Scheme),
    };
    Ok(format!("{http}://{rest}").parse()?)
}

/// Text that is not a WebSocket endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSubscription {
    /// Another scheme, or none.
    #[error("does not begin with wss:// or ws://: providers name this URL beside the one for HTTP")]
    Scheme,
    /// Not a URL otherwise.
    #[error(transparent)]
    Url(#[from] BadUrl),
    /// Not the place of a secret.
    #[error(transparent)]
    Source(#[from] BadKeySource),
}

impl FromStr for Subscription {
    type Err = BadSubscription;
    fn from_str(text: &str) -> Result<Self, BadSubscription> {
        if text.starts_with("file:") || text.starts_with("credential:") {
            return Ok(Self(Endpoint::Kept(text.parse()?)));
        }
        Ok(Self(Endpoint::Url(websocket_url(text)?)))
    }
}

impl Serialize for Subscription {
    /// Omits everything after the host: it may be a key.
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Endpoint::Url(url) => {
                let path = if url.reveal().len() > url.shown.len() + 1 { "/[redacted]" } else { "" };
                s.collect_str(&format_args!("{}{path}", url.shown.replacen("http", "ws", 1)))
            }
            Endpoint::Kept(source) => s.collect_str(source),
        }
    }
}

/// Text that is not an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEndpoint {
    /// Not a URL.
    #[error("{0}; an endpoint is a URL such as https://rpc.example.net/v2/KEY, or file:/path or credential:NAME")]
    Url(#[from] BadUrl),
    /// Not the place of a secret.
    #[error(transparent)]
    Source(#[from] BadKeySource),
}

impl FromStr for Url {
    type Err = BadUrl;
    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let url: HttpUrl = text.parse()?;
        Ok(Self { shown: url.origin(), text: Secret::new(url.reveal()) })
    }
}

impl FromStr for Endpoint {
    type Err = BadEndpoint;
    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        if text.starts_with("file:") || text.starts_with("credential:") {
            return Ok(Self::Kept(text.parse()?));
        }
        Ok(Self::Url(text.parse()?))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(&url.shown),
            Self::Kept(source) => source.fmt(f),
        }
    }
}

impl Serialize for Endpoint {
    /// Omits everything after the host: it may be a key.
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Url(url) if url.reveal().len() > url.shown.len() + 1 => {
                s.collect_str(&format_args!("{}/[redacted]", url.shown))
            }
            Self::Url(_) | Self::Kept(_) => s.collect_str(self),
        }
    }
}

/// How long grants hold without a quorum: each phase begins at the end of the previous one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rungs {
    /// Every grant holds and new peers are admitted.
    pub fresh: Duration,
    /// Every grant still holds.
    pub stale: Duration,
    /// Peers stay, and no new one is admitted.
    pub grace: Duration,
}

impl Rungs {
    /// Time from the last quorum until every peer is denied.
    pub fn total(&self) -> Duration {
        self.fresh.saturating_add(self.stale).saturating_add(self.grace)
    }

    /// Maximum time that one reboot takes off the ladder.
    pub fn step(&self) -> Duration {
        self.fresh.max(Duration::from_secs(60))
    }
}

/// Maximum number of endpoints.
pub const MAX_ENDPOINTS: usize = 8;

/// When a grant takes effect. A revocation takes effect at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finality {
    /// As soon as it is in a block.
    Latest,
    /// When the sequencer does not revert it by itself (Base: about 2 minutes).
    #[default]
    Safe,
    /// When it cannot be reverted (Base: about 20 minutes).
    Finalized,
}

impl FromStr for Finality {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "latest" => Ok(Self::Latest),
            "safe" => Ok(Self::Safe),
            "finalized" => Ok(Self::Finalized),
            _ => Err("not a finality"),
        }
    }
}

/// The chain id of local chains for tests and development.
const LOCAL_CHAIN: u64 = 31_337;

/// Default poll interval. A device may be on a metered line: a day of polls stays below 1 MB. A hub is not metered.
pub const fn usual_poll(role: Role) -> Duration {
    Duration::from_secs(match role {
        Role::Hub => 5,
        Role::Node => 120,
    })
}

/// `[grants]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Grants {
    /// The access contract.
    #[serde(serialize_with = "address_text")]
    pub contract: Address,
    /// Its chain; answers of an endpoint on another chain are rejected.
    pub chain_id: u64,
    /// JSON-RPC endpoints.
    pub endpoints: Vec<Endpoint>,
    /// How many of them must give the same answer.
    pub quorum: usize,
    /// WebSocket endpoints that report the contract's events, the first that works; they only bring a poll forward.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscribe: Vec<Subscription>,
    /// When a grant takes effect.
    pub finality: Finality,
    /// Poll interval.
    #[serde(serialize_with = "duration_text")]
    pub poll: Duration,
    /// Positions of an endpoint are rejected if its newest block has not changed for this long; zero: never.
    #[serde(serialize_with = "duration_text")]
    pub stall: Duration,
    /// Timeout of one request.
    #[serde(serialize_with = "duration_text")]
    pub timeout: Duration,
    /// Maximum number of calls in one JSON-RPC batch.
    pub batch: usize,
    /// A grant is verified again after this time, even without an event.
    #[serde(serialize_with = "duration_text")]
    pub positive_ttl: Duration,
    /// The same for a denial.
    #[serde(serialize_with = "duration_text")]
    pub negative_ttl: Duration,
    /// Without a quorum: every grant holds and new peers are admitted.
    #[serde(serialize_with = "duration_text")]
    pub fresh: Duration,
    /// After that: every grant still holds.
    #[serde(serialize_with = "duration_text")]
    pub stale: Duration,
    /// After that: peers stay, and no new one is admitted. After that every peer is denied.
    #[serde(serialize_with = "duration_text")]
    pub grace: Duration,
    /// What decisions rest on.
    #[serde(skip_serializing_if = "Verification::is_calls")]
    pub verify: Verification,
    /// Where the contract's storage has the grants, for proofs.
    #[serde(skip_serializing_if = "Layout::is_default")]
    pub layout: Layout,
}

fn address_text<S: Serializer>(address: &Address, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(address)
}

impl Grants {
    /// The lengths of the grace ladder.
    pub const fn rungs(&self) -> Rungs {
        Rungs { fresh: self.fresh, stale: self.stale, grace: self.grace }
    }

    /// Reads the section; `usual_poll` is the default poll interval.
    pub fn read(t: &mut Table<'_>, usual_poll: Duration) -> Option<Self> {
        let s = Duration::from_secs;
        let day = s(86_400);
        for (key, remedy) in [
            ("contract", "the address of the access contract, 0x and 40 digits"),
            ("chain_id", "the chain it is on, such as 8453 for Base"),
            ("endpoints", "a list of JSON-RPC URLs such as [\"https://rpc.example.net/v2/KEY\"]"),
        ] {
            if !t.has(key) {
                t.required(key, remedy);
            }
        }
        let contract: Option<Address> = t.parsed("contract", "an address, 0x and 40 hexadecimal digits");
        if contract.is_some_and(|c| c.is_zero()) {
            t.fault("contract", "is the zero address", "write the address of the access contract");
        }
        let chain_id = t.number("chain_id", 1..=u64::from(u32::MAX));
        let endpoints: Vec<Endpoint> = t
            .list("endpoints", "a URL such as https://rpc.example.net/v2/KEY, file:/path or credential:NAME")
            .unwrap_or_default();
        if t.has("endpoints") && endpoints.is_empty() && !t.faulty() {
            t.fault("endpoints", "is empty", "name at least one");
        }
        if endpoints.len() > MAX_ENDPOINTS {
            t.fault(
                "endpoints",
                format_args!("{} are too many", endpoints.len()),
                format_args!("name at most {MAX_ENDPOINTS}"),
            );
        }
        let quorum = t.number("quorum", 1..=MAX_ENDPOINTS as u64).and_then(|q| usize::try_from(q).ok()).unwrap_or(1);
        let distinct = distinct(&endpoints);
        if quorum > distinct && !endpoints.is_empty() {
            let twice = if distinct < endpoints.len() { " (one that is named twice has one vote)" } else { "" };
            t.fault(
                "quorum",
                format_args!("{quorum} of {distinct} endpoints can never agree{twice}"),
                "lower it, or name more endpoints",
            );
        }
        let subscribe: Vec<Subscription> = t
            .list("subscribe", "a WebSocket URL such as wss://rpc.example.net/v2/KEY, file:/path or credential:NAME")
            .unwrap_or_default();
        if subscribe.len() > MAX_ENDPOINTS {
            t.fault(
                "subscribe",
                format_args!("{} are too many", subscribe.len()),
                format_args!("name at most {MAX_ENDPOINTS}"),
            );
        }
        let finality = t.parsed("finality", "\"latest\", \"safe\" or \"finalized\"").unwrap_or_default();
        let poll = t.duration("poll", Duration::from_millis(200)..=s(3600)).unwrap_or(usual_poll);
        // A local chain creates blocks only for transactions.
        let default_stall = if chain_id == Some(LOCAL_CHAIN) { s(0) } else { s(600).max(poll.saturating_mul(3)) };
        let stall = t.duration("stall", s(0)..=day).unwrap_or(default_stall);
        if !stall.is_zero() && stall < poll.saturating_mul(2) {
            t.fault(
                "stall",
                "is shorter than two polls: every endpoint would seem stuck",
                "raise it, lower poll, or set \"0s\"",
            );
        }
        let timeout = t.duration("timeout", Duration::from_millis(200)..=s(120)).unwrap_or(s(10));
        let batch = t.number("batch", 1..=1000).and_then(|b| usize::try_from(b).ok()).unwrap_or(20);
        let positive_ttl = t.duration("positive_ttl", s(10)..=30 * day).unwrap_or(day);
        let negative_ttl = t.duration("negative_ttl", s(10)..=30 * day).unwrap_or(s(3600));
        let fresh = t.duration("fresh", s(1)..=day).unwrap_or(s(900));
        if fresh < poll.saturating_mul(2) {
            t.fault(
                "fresh",
                "is shorter than two polls: one lost answer would already count",
                "raise it, or lower poll",
            );
        }
        let stale = t.duration("stale", s(0)..=30 * day).unwrap_or(s(43_200));
        let grace = t.duration("grace", s(0)..=30 * day).unwrap_or(3 * day);
        let verify = t.parsed("verify", "\"calls\" or \"proof\"").unwrap_or_default();
        let layout = t.section("layout", Layout::read);
        if verify == Verification::Calls && !layout.is_default() {
            t.fault("layout", "is used by proofs alone", "set verify = \"proof\", or remove it");
        }
        Some(Self {
            contract: contract?,
            chain_id: chain_id?,
            endpoints,
            quorum,
            subscribe,
            finality,
            poll,
            stall,
            timeout,
            batch,
            positive_ttl,
            negative_ttl,
            fresh,
            stale,
            grace,
            verify,
            layout,
        })
    }
}

/// Number of endpoints that are not known to be the same.
pub(crate) fn distinct(endpoints: &[Endpoint]) -> usize {
    let same = |a: &Endpoint, b: &Endpoint| match (a, b) {
        (Endpoint::Url(a), Endpoint::Url(b)) => a.is_same(b),
        (Endpoint::Kept(a), Endpoint::Kept(b)) => a == b,
        (Endpoint::Url(_), Endpoint::Kept(_)) | (Endpoint::Kept(_), Endpoint::Url(_)) => false,
    };
    let first = |(i, e): &(usize, &Endpoint)| endpoints.iter().take(*i).all(|other| !same(e, other));
    endpoints.iter().enumerate().filter(first).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn load(section: &str) -> Result<Config, crate::fault::ConfigFaults> {
        Config::from_text(Some(("spoke.toml", section)), [])
    }

    const GOOD: &str = "[grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 8453\nendpoints = [\"https://rpc.example.net/v2/s3cret\", \"credential:rpc\", \"http://127.0.0.1:8545\"]\n";

    #[test]
    fn endpoint_named_twice_has_one_vote() {
        let with = |urls: &str| {
            let section = GOOD.split("endpoints").next().unwrap();
            load(&format!("{section}endpoints = [{urls}]\nquorum = 2\n"))
        };
        for other in ["https://RPC.example.net:443/key", "https://rpc.example.net./key/", "https://rpc.example.net/key"]
        {
            let faults = with(&format!("\"https://rpc.example.net/key\", \"{other}\"")).unwrap_err().to_string();
            assert!(faults.contains("2 of 1 endpoints can never agree (one that is named twice"), "{other}: {faults}");
        }
        for other in ["https://rpc.example.net/KEY", "http://rpc.example.net/key", "https://rpc.example.net:8443/key"] {
            with(&format!("\"https://rpc.example.net/key\", \"{other}\"")).unwrap();
        }
        with("\"https://a.example.net\", \"https://A.example.net\", \"https://b.example.net\"").unwrap();
        with("\"credential:rpc\", \"credential:rpc\"").unwrap_err();
    }

    #[test]
    fn key_in_a_url_is_never_shown() {
        let config = load(GOOD).unwrap();
        let shown = format!("{config:?}{}", config.to_toml());
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(
            shown.contains("https://rpc.example.net/[redacted]") && shown.contains("http://127.0.0.1:8545"),
            "{shown}"
        );
        let grants = config.grants.unwrap();
        assert_eq!((grants.quorum, grants.finality, grants.poll), (1, Finality::Safe, Duration::from_secs(120)));
        assert_eq!(grants.stall, Duration::from_secs(600));
        let local = load(&GOOD.replace("8453\n", "31337\n")).unwrap().grants.unwrap();
        assert!(local.stall.is_zero(), "a local chain creates no blocks while idle");
    }

    #[test]
    fn subscription_is_a_websocket_url() {
        let text = "subscribe = [\"WSS://RPC.example.net/v2/s3cret\", \"ws://127.0.0.1:8546\", \"credential:ws\"]\n";
        let config = load(&(GOOD.to_owned() + text)).unwrap();
        let shown = format!("{config:?}{}", config.to_toml());
        assert!(!shown.contains("s3cret"), "{shown}");
        for part in ["\"wss://rpc.example.net/[redacted]\"", "\"ws://127.0.0.1:8546\"", "\"credential:ws\""] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        for (bad, problem) in [("https://rpc.example.net", "wss:// or ws://"), ("wss://u:p@h", "before the @")] {
            let faults = load(&format!("{GOOD}subscribe = [\"{bad}\"]\n")).unwrap_err().to_string();
            assert!(faults.contains("grants.subscribe[0]") && faults.contains(problem), "{faults}");
        }
    }

    #[test]
    fn every_fault_names_its_key() {
        let bad = "[grants]\ncontract = \"0x12\"\nchain_id = 0\nendpoints = [\"ftp://x\", \"https://u:p@h/\"]\nquorum = 3\npoll = \"10m\"\nstall = \"15m\"\n";
        let faults = load(bad).unwrap_err();
        for key in [
            "grants.contract",
            "grants.chain_id",
            "grants.endpoints[0]",
            "grants.endpoints[1]",
            "grants.fresh",
            "grants.stall",
        ] {
            assert!(faults.0.iter().any(|f| f.key == key), "{key} in {faults}");
        }
        let missing = load("[grants]\n").unwrap_err();
        assert_eq!(missing.0.iter().filter(|f| f.problem == "is missing").count(), 3, "{missing}");
        let many = GOOD.to_owned() + "quorum = 4\n";
        assert!(load(&many).unwrap_err().0.iter().any(|f| f.key == "grants.quorum"));
    }

    #[test]
    fn nft_access_needs_a_contract() {
        let text = "[[interface]]\nname = \"wg0\"\naccess = \"nft\"\n";
        assert!(load(text).unwrap_err().0.iter().any(|f| f.key == "interface[0].access"));
        assert!(load(&(GOOD.to_owned() + text)).is_ok());
        let control = "[node]\nid = \"hub-1\"\n[control]\nurl = \"https://c.example.net\"\n";
        assert!(load(&(control.to_owned() + text)).is_ok(), "the control plane may provide it");
    }
}
