//! Loads the configuration for a command: the file, then the environment.
use crate::enrolment::enrolment_file;
use spoke_api::socket::SOCKET;
use spoke_command::Failure;
use spoke_config::Config;
use spoke_config::fault::ConfigFaults;
use spoke_config::node::{Role, runtime_dir, state_dir};
use std::path::{Path, PathBuf};

/// Loads the configuration; all faults are reported at once as bad input.
pub fn load(file: &Path) -> Result<Config, Failure> {
    read(file)?.map_err(|faults| Failure::BadInput(faults.to_string()))
}

/// The configuration or its faults; a failure is of the environment.
pub fn read(file: &Path) -> Result<Result<Config, ConfigFaults>, Failure> {
    let variables = variables()?;
    let config = Config::load(Some(file), variables.clone());
    let given = config.as_ref().ok().and_then(given_role);
    Ok(match given {
        Some(role) => Config::load_as(Some(file), variables, role),
        None => config,
    })
}

/// The role that the control plane has given the node, if it names none and has another one without.
fn given_role(config: &Config) -> Option<Role> {
    let node = config.node.id.as_ref().filter(|_| config.control.is_some() && !config.node.role_named)?;
    let enrolment = enrolment_file(&config.node.state_dir).peek().filter(|e| e.node_id == *node)?;
    enrolment.role.filter(|role| *role != config.node.role)
}

/// The variables that set keys of the configuration.
pub fn variables() -> Result<Vec<(String, String)>, Failure> {
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        if !name.as_encoded_bytes().starts_with(b"SPOKE__") {
            continue;
        }
        let Some(name) = name.to_str() else {
            let shown = name.to_string_lossy();
            return Err(Failure::BadInput(format!("the environment: {shown}: its name is not UTF-8; unset it")));
        };
        let value = value
            .into_string()
            .map_err(|_| Failure::BadInput(format!("the environment: {name}: its value is not UTF-8; set it again")))?;
        variables.push((name.to_owned(), value));
    }
    Ok(variables)
}

/// The supervisor's socket. It is found although the configuration has faults, so that a running supervisor can be asked
/// then, too; the faults are returned if there is no such socket.
pub fn socket(file: &Path) -> Result<PathBuf, Failure> {
    match load(file) {
        Ok(config) => Ok(config.node.runtime_dir.join(SOCKET)),
        Err(faults) => {
            let socket = faulty_socket(file);
            if socket.exists() { Ok(socket) } else { Err(faults) }
        }
    }
}

/// Where the socket is by a configuration with faults.
pub fn faulty_socket(file: &Path) -> PathBuf {
    named_directory(file, "RUNTIME_DIR", runtime_dir).join(SOCKET)
}

/// `node.runtime_dir`, also of a configuration with faults.
pub fn runtime_directory(file: &Path) -> PathBuf {
    load(file).map_or_else(|_| named_directory(file, "RUNTIME_DIR", runtime_dir), |c| c.node.runtime_dir)
}

/// `node.state_dir`, also of a configuration with faults.
pub fn state_directory(file: &Path) -> PathBuf {
    load(file).map_or_else(|_| named_directory(file, "STATE_DIR", state_dir), |c| c.node.state_dir)
}

fn named_directory(file: &Path, key: &str, in_text: fn(&str) -> PathBuf) -> PathBuf {
    let named = std::env::var_os(format!("SPOKE__NODE__{key}")).map(PathBuf::from);
    named.unwrap_or_else(|| in_text(&std::fs::read_to_string(file).unwrap_or_default()))
}
