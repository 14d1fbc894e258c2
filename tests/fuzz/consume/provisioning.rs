//! The settings file on a boot partition. What is accepted can be run, and every refusal names a key and a remedy, or the file.

use spoke_config::Config;
use spoke_config::appliance::parse_on_device;

/// The first bit says whether the files of earlier settings are there. Whether the rest was accepted.
pub(crate) fn consume(data: &[u8]) -> bool {
    let Some((kind, text)) = data.split_first() else { return false };
    match parse_on_device(text, &|_| kind % 2 == 1) {
        Ok(settings) => {
            let read = Config::from_text(Some(("spoke.toml", &settings.config)), []);
            assert!(read.is_ok(), "accepted settings do not load");
            for name in settings.appliance.secrets.keys() {
                let fine =
                    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
                assert!(fine, "{name:?} is not a file name");
            }
            let line = |l: &String| !l.contains(['\n', '\r', '\0']);
            assert!(settings.appliance.ssh_keys.iter().all(line) && settings.appliance.ntp.iter().all(line));
            true
        }
        Err(faults) => {
            assert!(!faults.is_empty(), "refused without a fault");
            for fault in &faults {
                // Of a file that is no TOML, or is another kind of file, there is no key to name.
                let named = !fault.key.is_empty() && !fault.remedy.is_empty();
                let whole = fault.key.is_empty() && fault.file.contains("spoke.toml");
                assert!(!fault.problem.is_empty() && (named || whole), "{fault}");
            }
            false
        }
    }
}
