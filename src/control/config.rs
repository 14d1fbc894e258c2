//! The control plane's configuration: a file, overridden by variables `SPOKE_CONTROL__SECTION__KEY`. Reports all faults at
//! once.
use crate::limits::Rates;
use crate::proxies::Proxies;
use spoke_config::fault::{ConfigFault, ConfigFaults};
use spoke_config::grants::Grants;
use spoke_config::reader::Table;
use spoke_model::address::HostPort;
use spoke_model::key_source::KeySource;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The default of `--config`.
pub const FILE: &str = "/etc/spoke-control/spoke-control.toml";

/// The default of `api.listen`.
pub const API_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8444);

/// A day.
const DAY: Duration = Duration::from_secs(86_400);

/// The default of `grants.poll`.
const CHAIN_POLL: Duration = Duration::from_secs(5);

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `server.listen`.
    pub listen: Vec<SocketAddr>,
    /// `server.public`: host and port under which devices reach it.
    pub public: HostPort,
    /// `server.tls_certificate` and `server.tls_key`, PEM files; `None`: a self-signed certificate.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// `server.state_dir`: the master key, and the default places of database and certificate.
    pub state_dir: PathBuf,
    /// `server.connections`: connections at a time.
    pub connections: usize,
    /// `server.patience`: how long a client may take for the handshake, for a request's head, and between requests.
    pub client_timeout: Duration,
    /// `server.proxy_protocol_from` and `server.forwarded_from`.
    pub proxies: Proxies,
    /// `store.url` or `store.url_from`.
    pub store: StoreUrl,
    /// `api.operator_token`.
    pub operator_token: Option<KeySource>,
    /// `api.listen`: where the operators' API is served. `None`: on [`API_LISTEN`] if that is free, and to holders of
    /// `operator_token` beside the devices' API as well, as in releases before the keys.
    pub api_listen: Option<Vec<SocketAddr>>,
    /// `metrics.listen`: where `/metrics` is served, without TLS and without a key. Empty: nowhere.
    pub metrics_listen: Vec<SocketAddr>,
    /// `audit.keep`: how long the audit trail is kept.
    pub audit_keep: Duration,
    /// `audit.records`: records kept of each of its chains.
    pub audit_records: u64,
    /// `[limits]`.
    pub rates: Rates,
    /// `[grants]`: the contract that decides who is a peer in networks with `access = "nft"`.
    pub grants: Option<Grants>,
}

/// The URL of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// The URL itself.
    Plain(String),
    /// A secret that holds the URL, because of a password in it.
    Secret(KeySource),
}

impl Config {
    /// Reads the file and `variables`; a missing default file means defaults.
    pub fn load(file: &Path, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigFaults> {
        let name = file.display().to_string();
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && file == Path::new(FILE) => String::new(),
            Err(e) => {
                let create = "create it or name another with --config";
                return Err(ConfigFaults(vec![spoke_config::fault::unreadable(file, &e, create)]));
            }
        };
        Self::from_text(&name, &text, variables)
    }

    /// As [`Config::load`], from text; `name` is the file's name in faults.
    pub fn from_text(
        name: &str,
        text: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigFaults> {
        let variables = variables.into_iter().filter(|(k, _)| k.starts_with("SPOKE_CONTROL__")).collect();
        let environment = config::Environment::with_prefix("SPOKE_CONTROL")
            .prefix_separator("__")
            .separator("__")
            .source(Some(variables));
        if let Some(fault) = spoke_config::fault::syntax(name, text) {
            return Err(ConfigFaults(vec![fault]));
        }
        let tree = config::Config::builder()
            .add_source(config::File::from_str(text, config::FileFormat::Toml))
            .add_source(environment)
            .build()
            .and_then(|c| config::Source::collect(&c))
            .map_err(|e| fault(name, e.to_string(), "fix the TOML"))?;
        let mut faults = Vec::new();
        let mut root = Table::root(tree, name, &mut faults).with_variables("SPOKE_CONTROL");
        let config = Self::read(&mut root);
        root.finish();
        match config {
            Some(config) if faults.is_empty() => Ok(config),
            _ => Err(ConfigFaults(faults)),
        }
    }

    /// Whether `server.public` means every machine itself.
    pub fn is_public_local(&self) -> bool {
        let host = self.public.host.trim_matches(['[', ']']);
        let local = |ip: IpAddr| ip.to_canonical().is_loopback() || ip.to_canonical().is_unspecified();
        host == "localhost" || host.ends_with(".localhost") || host.parse().is_ok_and(local)
    }

    fn read(root: &mut Table<'_>) -> Option<Self> {
        let path = |t: &mut Table<'_>, key| -> Option<PathBuf> {
            let path = PathBuf::from(t.text(key)?);
            if !path.is_absolute() {
                t.fault(key, "is not an absolute path", "begin it with /");
            }
            Some(path)
        };
        let mut server = root.table("server");
        let listen = server.list("listen", "ADDRESS:PORT such as 0.0.0.0:8443");
        let public = server.parsed("public", "HOST:PORT such as control.example.net:8443");
        let (certificate, key) = (path(&mut server, "tls_certificate"), path(&mut server, "tls_key"));
        if certificate.is_some() != key.is_some() {
            server.fault("tls_key", "stands alone", "give tls_certificate and tls_key, or neither");
        }
        let state_dir = path(&mut server, "state_dir").unwrap_or_else(|| "/var/lib/spoke-control".into());
        let connections = server.number("connections", 1..=1_000_000).unwrap_or(20_000);
        let client_timeout = server.duration("patience", Duration::from_secs(1)..=Duration::from_secs(600));
        let network = "a network such as 10.0.0.0/8";
        let proxies = Proxies {
            protocol: server.list("proxy_protocol_from", network).unwrap_or_default(),
            forwarded: server.list("forwarded_from", network).unwrap_or_default(),
        };
        server.finish();
        let mut store = root.table("store");
        let (url, url_from) = (store.text("url"), store.parsed("url_from", "file:/absolute/path or credential:NAME"));
        if url.is_some() && url_from.is_some() {
            store.fault("url_from", "stands beside url", "keep one of the two");
        }
        let password = |u: &String| {
            u.split_once("//")
                .is_some_and(|(_, r)| r.split('@').next().is_some_and(|a| r.contains('@') && a.contains(':')))
        };
        if url.as_ref().is_some_and(password) {
            store.fault("url", "holds a password", "put the whole address into a file of mode 0600 and set url_from");
        }
        store.finish();
        let mut api = root.table("api");
        let operator_token = api.parsed("operator_token", "file:/absolute/path or credential:NAME");
        let api_listen = api.list("listen", "ADDRESS:PORT such as 127.0.0.1:8444");
        api.finish();
        let mut metrics = root.table("metrics");
        let metrics_listen = metrics.list("listen", "ADDRESS:PORT such as 127.0.0.1:8445").unwrap_or_default();
        metrics.finish();
        let mut audit = root.table("audit");
        let audit_keep = audit.duration("keep", DAY..=DAY * 36_500).unwrap_or(DAY * 365);
        let audit_records = audit.number("records", 1_000..=100_000_000).unwrap_or(200_000);
        audit.finish();
        let mut limits = root.table("limits");
        let default = Rates::default();
        let mut rate = |key, default: NonZeroU32| {
            limits.number(key, 1..=1_000_000).and_then(|n| NonZeroU32::new(u32::try_from(n).ok()?)).unwrap_or(default)
        };
        let rates = Rates {
            address: rate("per_address", default.address),
            enrol: rate("enrolments_per_address", default.enrol),
            node: rate("per_node", default.node),
            invalid_tokens: rate("guesses_per_address", default.invalid_tokens),
        };
        limits.finish();
        let grants = if root.has("grants") { root.section("grants", |t| Grants::read(t, CHAIN_POLL)) } else { None };
        let listen = listen.unwrap_or_else(|| vec![SocketAddr::from(([0, 0, 0, 0], 8443))]);
        let port = listen.first().map_or(8443, SocketAddr::port);
        let store = match (url, url_from) {
            (Some(url), _) => StoreUrl::Plain(url),
            (None, Some(source)) => StoreUrl::Secret(source),
            (None, None) => StoreUrl::Plain(format!("sqlite:{}", state_dir.join("fleet.db").display())),
        };
        Some(Self {
            listen,
            public: public.unwrap_or_else(|| HostPort { host: "localhost".into(), port }),
            tls: certificate.zip(key),
            state_dir,
            connections: usize::try_from(connections).unwrap_or(usize::MAX),
            client_timeout: client_timeout.unwrap_or(Duration::from_secs(30)),
            proxies,
            store,
            operator_token,
            api_listen,
            metrics_listen,
            audit_keep,
            audit_records,
            rates,
            grants,
        })
    }
}

fn fault(file: &str, problem: String, remedy: &str) -> ConfigFaults {
    ConfigFaults(vec![ConfigFault {
        element: String::new(),
        file: file.into(),
        key: String::new(),
        problem,
        remedy: remedy.into(),
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_faults_are_reported_at_once() {
        let config = Config::from_text("x.toml", "", []).unwrap();
        assert_eq!(config.store, StoreUrl::Plain("sqlite:/var/lib/spoke-control/fleet.db".into()));
        let text =
            "[server]\nlisten = [\"nowhere\"]\ntls_key = \"/k\"\n[store]\nurl = \"postgres://a:secret@h/d\"\n[apo]\n";
        let faults = Config::from_text("x.toml", text, []).unwrap_err().to_string();
        for part in ["server.listen[0]", "server.tls_key", "store.url", "url_from", "did you mean `api`?"] {
            assert!(faults.contains(part), "{part} in {faults}");
        }
        assert!(!faults.contains("secret"), "{faults}");
        assert!(config.is_public_local(), "the default");
        for (public, local) in
            [("127.0.0.1:1", true), ("[::1]:1", true), ("0.0.0.0:1", true), ("a.example.net:1", false)]
        {
            let text = format!("[server]\npublic = \"{public}\"\n");
            assert_eq!(Config::from_text("x.toml", &text, []).unwrap().is_public_local(), local, "{public}");
        }
        let set = [("SPOKE_CONTROL__LIMITS__PER_NODE".to_owned(), "9".to_owned())];
        assert_eq!(Config::from_text("x.toml", "", set).unwrap().rates.node.get(), 9);
    }
}
