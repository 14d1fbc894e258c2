//! Faults of the files that a configuration names: what would keep a part of `spoke run` from working.
use crate::agent::{self, AgentError};
use crate::doctor::finding::{Finding, Level};
use crate::doctor::{host, probe};
use crate::enrolment::{TokenError, read_token};
use spoke_config::Config;
use spoke_config::grants::{Endpoint, Grants};
use spoke_model::error_chain::ErrorChain;
use spoke_model::key_source::KeySource;
use spoke_sys::disk::{DiskError, read_public};
use spoke_sys::http::{HttpsClient, Trust};
use spoke_sys::keys::{self, KeyError};
use spoke_sys::rpc::Http;
use std::fmt::Write as _;
use std::path::Path;

/// Reads every key, secret, certificate and token that `config` names, and tries the state directory. What only root or the
/// service's own user can read is no fault when another user asks. Blocks.
pub fn faults(config: &Config) -> Vec<Finding> {
    let dir = &config.node.state_dir;
    let mut found: Vec<Finding> =
        probe::host::keys(config).iter().filter(|k| !k.result.as_ref().is_err_and(is_hidden)).map(host::key).collect();
    if owns(dir) {
        found.push(host::state_dir(dir, &probe::host::state_dir(dir)));
    }
    if let Some(control) = &config.control {
        if let Some(path) = control.ca.as_ref().filter(|_| control.pin.is_none()) {
            let usable = read_public(path).map_err(anyhow::Error::new).and_then(|pem| {
                HttpsClient::new(control.url.0.clone(), &Trust::Own(pem)).map(drop).map_err(anyhow::Error::new)
            });
            found.extend(
                usable.err().map(|e| Finding::fail("control.ca", format!("{e:#}"), "correct it, or use control.pin")),
            );
        }
        // A missing file is created at the first start.
        if let Some(source) = &control.identity
            && !matches!(source, KeySource::File(path) if !path.exists())
            && let Err(e) = keys::identity(source)
            && !is_hidden(&e)
        {
            let remedy = "restore it from a backup, or enrol again under the same name";
            found.push(Finding::fail("control.identity", ErrorChain(&e).to_string(), remedy));
        }
        // An enrolled node needs no token.
        if control.token.is_some() && !dir.join("enrolment.json").exists() {
            found.extend(token(control.token.as_ref()));
        }
    }
    for endpoint in config.grants.iter().flat_map(|g| &g.endpoints) {
        let Endpoint::Kept(source) = endpoint else { continue };
        let alone = config.grants.clone().map(|g| Grants { endpoints: vec![endpoint.clone()], ..g });
        if let Some(Err(e)) = alone.as_ref().map(Http::new)
            && !is_hidden(&e)
        {
            let remedy = "put the endpoint's URL there, in one line, mode 0600";
            found.push(Finding::fail(format!("grants.endpoints {source}"), ErrorChain(&e).to_string(), remedy));
        }
    }
    if let Err(e) = agent::check(config)
        && !matches!(&e, AgentError::Secret(e) if is_hidden(e))
    {
        let what = "agent";
        found.push(Finding::fail(what, ErrorChain(&e).to_string(), "correct agent.secret, tls_certificate or tls_key"));
    }
    found.retain(|f| f.level == Level::Fail);
    found
}

fn token(source: Option<&KeySource>) -> Option<Finding> {
    let remedy = "put the token there that `spoke-control token create` prints, mode 0600";
    match read_token(source) {
        Ok(_) => None,
        Err(TokenError::Unreadable(e)) if is_hidden(&e) => None,
        Err(e) => Some(Finding::fail("control.token", e.to_string(), remedy)),
    }
}

/// Whether the secret may be there for the service and is not for the user who asks.
pub(crate) fn is_hidden(error: &KeyError) -> bool {
    match error {
        KeyError::Disk(DiskError::Read { source, .. }) => {
            source.kind() == std::io::ErrorKind::PermissionDenied && !is_root()
        }
        KeyError::Missing { origin: KeySource::Credential(_), .. } => {
            std::env::var_os("CREDENTIALS_DIRECTORY").is_none()
        }
        _ => false,
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn owns(dir: &Path) -> bool {
    rustix::fs::stat(dir).is_ok_and(|s| is_root() || s.st_uid == rustix::process::geteuid().as_raw())
}

/// The faults as text, one a line, and their number.
pub fn report(faults: &[Finding]) -> String {
    let mut out = String::new();
    for f in faults {
        let _ = writeln!(out, "{}: {}; {}", f.what, f.detail, f.remedy.as_deref().unwrap_or("correct it"));
    }
    let n = faults.len();
    let _ = write!(out, "{n} fault{} in the files that the configuration names", if n == 1 { "" } else { "s" });
    out
}
