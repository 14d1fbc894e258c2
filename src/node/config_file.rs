//! Loads the configuration for a command: the file, then the environment.
use spoke_command::Failure;
use spoke_config::Config;
use std::path::Path;

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
