//! Whether a configuration can run on an image: what would end the supervisor's start there is a fault of the settings.
//!
//! On an image only `/var/lib/spoke` is kept and may be written. The root is read-only and has no credentials. A secret that
//! the configuration names is given with the settings (`[appliance.secrets]`), or is on the device already.
use crate::Config;
use crate::fault::ConfigFault;
use crate::grants::{Endpoint, Url};
use spoke_model::key::{PresharedKey, SecretKey};
use spoke_model::key_source::KeySource;
use std::collections::BTreeMap;
use std::path::Path;
use zeroize::Zeroizing;

/// The only directory that is kept.
pub const KEPT: &str = "/var/lib/spoke";
/// Where `[appliance.secrets]` are stored.
const SECRETS: &str = "/var/lib/spoke/secrets";
const RUNTIME: &str = "/run/spoke";
/// Shortest secret of the agent API, in bytes.
const MIN_AGENT_SECRET: usize = 32;

/// What a source has to hold.
#[derive(Clone, Copy)]
enum Kind {
    PrivateKey,
    PresharedKey,
    AgentSecret,
    Url,
    Pem,
}

impl Kind {
    fn problem(self, text: &str) -> Option<&'static str> {
        let text = text.trim();
        match self {
            Self::PrivateKey if text.parse::<SecretKey>().is_err() => Some("is no WireGuard key"),
            Self::PresharedKey if text.parse::<PresharedKey>().is_err() => Some("is no preshared key (wg genpsk)"),
            Self::AgentSecret if text.len() < MIN_AGENT_SECRET => Some("has fewer than 32 bytes"),
            Self::Url if text.parse::<Url>().is_err() => Some("is no HTTP URL"),
            Self::Pem if !text.contains("-----BEGIN ") => Some("is not in PEM"),
            Self::PrivateKey | Self::PresharedKey | Self::AgentSecret | Self::Url | Self::Pem => None,
        }
    }
}

struct Check<'a> {
    file: &'a str,
    secrets: &'a BTreeMap<String, Zeroizing<String>>,
    present: &'a dyn Fn(&Path) -> bool,
    faults: Vec<ConfigFault>,
}

/// The faults of `config` on an image. `present`: whether a file is on the device already; on another machine none is.
/// `file` names the settings, `secrets` are given with them.
pub fn faults(
    config: &Config,
    file: &str,
    secrets: &BTreeMap<String, Zeroizing<String>>,
    present: &dyn Fn(&Path) -> bool,
) -> Vec<ConfigFault> {
    let mut check = Check { file, secrets, present, faults: Vec::new() };
    check.directory("node.state_dir", &config.node.state_dir, KEPT);
    check.directory("node.runtime_dir", &config.node.runtime_dir, RUNTIME);
    for interface in &config.interfaces {
        let key = format!("interface {}: private_key", interface.name);
        check.created(&key, &interface.private_key);
        for peer in &interface.peers {
            let key = format!("interface {}: peer {}: preshared_key", interface.name, peer.public_key);
            check.source(&key, peer.preshared_key.as_ref(), Kind::PresharedKey);
        }
    }
    for hub in config.uplink.iter().flat_map(|u| &u.hubs) {
        check.source(
            &format!("uplink.hub {}: preshared_key", hub.name),
            hub.preshared_key.as_ref(),
            Kind::PresharedKey,
        );
    }
    if config.agent.enabled {
        check.source("agent.secret", config.agent.secret.as_ref(), Kind::AgentSecret);
        for (key, path) in
            [("agent.tls_certificate", &config.agent.tls_certificate), ("agent.tls_key", &config.agent.tls_key)]
        {
            if let Some(path) = path {
                check.file(key, path, Kind::Pem);
            }
        }
    }
    if let Some(source) = config.control.as_ref().and_then(|c| c.identity.as_ref()) {
        check.created("control.identity", source);
    }
    if let Some(path) = config.control.as_ref().and_then(|c| c.ca.as_ref()) {
        check.file("control.ca", path, Kind::Pem);
    }
    for endpoint in config.grants.iter().flat_map(|g| &g.endpoints) {
        if let Endpoint::Kept(source) = endpoint {
            check.source("grants.endpoints", Some(source), Kind::Url);
        }
    }
    check.faults
}

impl Check<'_> {
    fn fault(&mut self, key: &str, problem: String, remedy: String) {
        self.faults.push(ConfigFault {
            element: String::new(),
            file: self.file.into(),
            key: key.into(),
            problem,
            remedy,
        });
    }

    fn directory(&mut self, key: &str, path: &Path, kept: &str) {
        if !path.starts_with(kept) {
            let problem = format!("{} cannot be written on an image", path.display());
            self.fault(key, problem, format!("remove it, or name a directory in {kept}"));
        }
    }

    /// A key that the device creates if it is missing.
    fn created(&mut self, key: &str, source: &KeySource) {
        match source {
            KeySource::File(path) if path.starts_with(KEPT) => {
                if let Some(given) = self.given(path).map(str::to_owned) {
                    self.content(key, path, &given, Kind::PrivateKey);
                }
            }
            KeySource::File(path) if (self.present)(path) => {}
            KeySource::File(path) => {
                let problem = format!("{} cannot be written on an image", path.display());
                self.fault(key, problem, format!("remove it, or name a file in {KEPT}"));
            }
            KeySource::Credential(_) => self.source(key, Some(source), Kind::PrivateKey),
        }
    }

    fn source(&mut self, key: &str, source: Option<&KeySource>, kind: Kind) {
        match source {
            None => {}
            Some(KeySource::File(path)) => self.file(key, path, kind),
            Some(KeySource::Credential(name)) => {
                let places = ["/etc/credstore", "/etc/credstore.encrypted"];
                if !places.iter().any(|p| (self.present)(&Path::new(p).join(name))) {
                    let problem = format!("an image has no credential {name}");
                    self.fault(
                        key,
                        problem,
                        format!("write file:{SECRETS}/NAME and give the secret as NAME in [appliance.secrets]"),
                    );
                }
            }
        }
    }

    fn file(&mut self, key: &str, path: &Path, kind: Kind) {
        if let Some(given) = self.given(path).map(str::to_owned) {
            self.content(key, path, &given, kind);
        } else if !(self.present)(path) {
            let problem = format!("{} is not given with the settings", path.display());
            self.fault(
                key,
                problem,
                format!("write {SECRETS}/NAME and give the content as NAME in [appliance.secrets]"),
            );
        }
    }

    fn content(&mut self, key: &str, path: &Path, text: &str, kind: Kind) {
        if let Some(problem) = kind.problem(text) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.fault(key, format!("appliance.secrets.{name} {problem}"), "correct it".into());
        }
    }

    /// The secret of the settings that will be at `path`.
    fn given(&self, path: &Path) -> Option<&str> {
        let name = path.strip_prefix(SECRETS).ok()?.to_str()?;
        self.secrets.get(name).map(|s| s.as_str())
    }
}
