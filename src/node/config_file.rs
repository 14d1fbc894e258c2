//! Loads the configuration for a command: the file, then the environment.
use spoke_api::socket::SOCKET;
use spoke_command::Failure;
use spoke_config::Config;
use spoke_config::node::runtime_dir;
use std::path::{Path, PathBuf};

/// Loads the configuration; all faults are reported at once as bad input.
pub fn load(file: &Path) -> Result<Config, Failure> {
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
    Config::load(Some(file), variables).map_err(|faults| Failure::BadInput(faults.to_string()))
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
    let named = std::env::var_os("SPOKE__NODE__RUNTIME_DIR").map(PathBuf::from);
    named.unwrap_or_else(|| runtime_dir(&std::fs::read_to_string(file).unwrap_or_default())).join(SOCKET)
}
