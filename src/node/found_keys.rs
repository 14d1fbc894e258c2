//! Private keys of interfaces that another program made. Where the configured key file is missing, such a key is taken over
//! instead of generating one: the other side knows it.
use spoke_config::Config;
use spoke_model::error_chain::ErrorChain;
use spoke_model::interface_name::IfName;
use spoke_model::key::SecretKey;
use spoke_model::key_source::KeySource;
use spoke_sys::kernel::Netlink;
use spoke_sys::keys::{self, IfMissing, KeyError};
use std::collections::BTreeMap;

/// The keys in the kernel of interfaces whose key file is missing.
pub async fn found(config: &Config) -> BTreeMap<IfName, SecretKey> {
    let missing = |source: &KeySource| {
        matches!(keys::private(source, IfMissing::Fail), Err(KeyError::Missing { origin: KeySource::File(_), .. }))
    };
    let mut out = BTreeMap::new();
    for interface in config.interfaces.iter().filter(|i| missing(&i.private_key)) {
        let Ok(mut kernel) = Netlink::open() else { continue };
        if let Some(key) = kernel.foreign_key(&interface.name).await {
            out.insert(interface.name.clone(), key);
        }
    }
    out
}

/// Stores them as the key files. Blocks.
pub fn take_over(config: &Config) -> Result<(), std::io::Error> {
    let found = spoke_command::block_on(found(config))?;
    for (name, key) in found {
        let Some(interface) = config.interfaces.iter().find(|i| i.name == name) else { continue };
        let public_key = key.public();
        match keys::store(&interface.private_key, &key) {
            Ok(()) => {
                tracing::warn!(interface = %name, %public_key, "private key of an interface that another program made taken over");
            }
            Err(e) => tracing::error!(interface = %name, error = %ErrorChain(&e), "found private key not stored"),
        }
    }
    Ok(())
}
