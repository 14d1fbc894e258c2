//! The settings file of an image: the configuration, and a table `[appliance]` for the image alone.
use crate::Config;
use crate::fault::ConfigFault;
use crate::on_image;
use spoke_model::signature::{Signature, VerifyKey};
use std::collections::BTreeMap;
use std::path::Path;
use zeroize::Zeroizing;

/// Its name on the boot partition.
pub const SETTINGS: &str = "spoke.toml";
/// The signature of its owner beside it, in base64.
pub const SIGNATURE: &str = "spoke.toml.sig";
/// Longest file accepted, in bytes.
pub const MAX_BYTES: u64 = 256 * 1024;

/// Content of the file on the boot partition.
#[derive(Debug)]
pub struct Settings {
    /// For the supervisor.
    pub config: String,
    /// The image's own table.
    pub appliance: Appliance,
}

/// `[appliance]`: settings of the image.
#[derive(Default)]
pub struct Appliance {
    /// SSH keys that may log in.
    pub ssh_keys: Vec<String>,
    /// Time servers instead of those of DHCP and of the distribution.
    pub ntp: Vec<String>,
    /// Who may replace these settings by a later file.
    pub replacing: Replacing,
    /// Secrets by file name; the configuration refers to them by that name.
    pub secrets: BTreeMap<String, Zeroizing<String>>,
}

/// Who may replace the settings of a device by a file on its boot partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Replacing {
    /// Nobody.
    #[default]
    Nobody,
    /// Who signs with one of these keys.
    Owners(Vec<VerifyKey>),
    /// Everybody.
    Everybody,
}

impl Replacing {
    /// As the device keeps it; empty for [`Replacing::Nobody`].
    pub fn text(&self) -> String {
        match self {
            Self::Nobody => String::new(),
            Self::Owners(keys) => keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Self::Everybody => "everybody".into(),
        }
    }

    /// Reads [`Replacing::text`]. Of what it does not know nothing is allowed.
    pub fn read(text: &str) -> Self {
        if text.trim() == "everybody" {
            return Self::Everybody;
        }
        let keys: Vec<_> = text.split_ascii_whitespace().filter_map(|k| k.parse().ok()).collect();
        if keys.is_empty() { Self::Nobody } else { Self::Owners(keys) }
    }

    /// Whether the file `settings` with `signature`, the text beside it, may replace those of the device.
    pub fn allows(&self, settings: &[u8], signature: Option<&str>) -> bool {
        match self {
            Self::Nobody => false,
            Self::Everybody => true,
            Self::Owners(keys) => {
                let signature = signature.and_then(|s| s.trim().parse::<Signature>().ok());
                signature.is_some_and(|s| keys.iter().any(|k| k.verify(&signed_message(settings), &s)))
            }
        }
    }
}

/// What the owner signs of a settings file.
pub fn signed_message(settings: &[u8]) -> Vec<u8> {
    [b"spoke settings v1\n", settings].concat()
}

impl std::fmt::Debug for Appliance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.secrets.keys().collect();
        let mut shown = f.debug_struct("Appliance");
        shown.field("ssh_keys", &self.ssh_keys).field("ntp", &self.ntp).field("replacing", &self.replacing);
        shown.field("secrets", &names).finish()
    }
}

/// Splits the file into configuration and image settings, and checks that a new device can run with them.
pub fn parse(bytes: &[u8]) -> Result<Settings, Vec<ConfigFault>> {
    parse_on_device(bytes, &|_| false)
}

/// As [`parse`] on a device that may have files of earlier settings; `present`: whether one is there.
pub fn parse_on_device(bytes: &[u8], present: &dyn Fn(&Path) -> bool) -> Result<Settings, Vec<ConfigFault>> {
    let fault = |key: &str, problem: String, remedy: &str| {
        vec![ConfigFault {
            element: String::new(),
            file: SETTINGS.into(),
            key: key.into(),
            problem,
            remedy: remedy.into(),
        }]
    };
    if bytes.len() as u64 > MAX_BYTES {
        return Err(fault("(file)", format!("has more than {MAX_BYTES} bytes"), "write at most 262144 bytes"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| {
        fault("(file)", "is not text (UTF-8)".into(), "save it as UTF-8; some editors write UTF-16 or Latin-1")
    })?;
    // Editors on Windows write CR LF and a byte order mark.
    let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let mut faults = Vec::new();
    let mut appliance = Appliance::default();
    let mut config = text.clone();
    if let Ok(mut table) = text.parse::<toml::Table>()
        && let Some(own) = table.remove("appliance")
    {
        match own {
            toml::Value::Table(own) => read_appliance(own, &mut appliance, &mut faults),
            _ => faults.extend(fault("appliance", "is not a table".into(), "write [appliance]")),
        }
        config = table.to_string();
    }
    match Config::from_text(Some((SETTINGS, &config)), std::iter::empty()) {
        Ok(read) => {
            faults.extend(read.names_nothing(SETTINGS));
            faults.extend(on_image::faults(&read, SETTINGS, &appliance.secrets, present));
        }
        Err(more) => faults.extend(more.0),
    }
    if faults.is_empty() { Ok(Settings { config, appliance }) } else { Err(faults) }
}

fn read_appliance(table: toml::Table, into: &mut Appliance, faults: &mut Vec<ConfigFault>) {
    let mut fault = |key: String, problem: &str, remedy: &str| {
        faults.push(ConfigFault {
            element: String::new(),
            file: SETTINGS.into(),
            key,
            problem: problem.into(),
            remedy: remedy.into(),
        });
    };
    for (key, value) in table {
        match (key.as_str(), value) {
            ("ssh_keys", toml::Value::Array(keys)) => {
                for (i, key) in keys.iter().enumerate() {
                    match key.as_str() {
                        Some(k) if is_ssh_key(k) => into.ssh_keys.push(k.trim().to_owned()),
                        _ => fault(
                            format!("appliance.ssh_keys[{i}]"),
                            "is not a public SSH key",
                            "copy the line of the .pub file",
                        ),
                    }
                }
            }
            ("ssh_keys", _) => fault("appliance.ssh_keys".into(), "is not a list", "write [\"ssh-ed25519 …\"]"),
            ("ntp", toml::Value::Array(servers)) => {
                for (i, server) in servers.iter().enumerate() {
                    match server.as_str() {
                        Some(s) if is_server(s) => into.ntp.push(s.to_owned()),
                        _ => fault(
                            format!("appliance.ntp[{i}]"),
                            "is neither a host name nor an address",
                            "write one, e.g. \"ntp.example.net\"",
                        ),
                    }
                }
            }
            ("ntp", _) => fault("appliance.ntp".into(), "is not a list", "write [\"ntp.example.net\"]"),
            ("replaceable", toml::Value::Boolean(true)) => into.replacing = Replacing::Everybody,
            ("replaceable", toml::Value::Boolean(false)) => into.replacing = Replacing::Nobody,
            ("replaceable", toml::Value::Array(keys)) if !keys.is_empty() => {
                let read: Option<Vec<_>> = keys.iter().map(|k| k.as_str()?.parse().ok()).collect();
                match read {
                    Some(keys) => into.replacing = Replacing::Owners(keys),
                    None => fault(
                        "appliance.replaceable".into(),
                        "has something that is not a public key",
                        "name keys that spoke-image new-key has printed",
                    ),
                }
            }
            ("replaceable", _) => fault(
                "appliance.replaceable".into(),
                "is neither true, false nor a list of keys",
                "write true, or the public keys of those who may sign later settings",
            ),
            ("secrets", toml::Value::Table(secrets)) => {
                for (name, value) in secrets {
                    let key = format!("appliance.secrets.{name}");
                    match value {
                        toml::Value::String(secret) if is_name(&name) && !secret.is_empty() => {
                            into.secrets.insert(name, Zeroizing::new(secret));
                        }
                        toml::Value::String(_) if is_name(&name) => fault(key, "is empty", "write the secret"),
                        toml::Value::String(_) => fault(key, "is not a file name", "use a-z, 0-9 and -"),
                        _ => fault(key, "is not text", "write \"…\""),
                    }
                }
            }
            ("secrets", _) => fault("appliance.secrets".into(), "is not a table", "write [appliance.secrets]"),
            (other, _) => fault(
                format!("appliance.{other}"),
                "unknown key",
                "remove it; known here: ssh_keys, ntp, replaceable, secrets",
            ),
        }
    }
}

/// A host name or an address, as systemd-timesyncd takes them: white space would begin another.
fn is_server(text: &str) -> bool {
    (1..=253).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-".contains(&b))
}

/// A file name without any path.
fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// One line of a known kind and a key: anything else could add options to `authorized_keys`.
fn is_ssh_key(line: &str) -> bool {
    let mut words = line.trim().split(' ');
    let kind = words.next().is_some_and(|k| ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256"].contains(&k));
    let body = words
        .next()
        .is_some_and(|b| b.len() > 40 && b.bytes().all(|c| c.is_ascii_alphanumeric() || b"+/=".contains(&c)));
    kind && body && !line.contains(['\n', '\r'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[node]\nid = \"n1\"\n[control]\nurl = \"https://c.example.net\"\n";

    #[test]
    fn debug_shows_no_secret() {
        let parsed = parse(format!("{GOOD}[appliance.secrets]\nenrolment = \"hunter2\"\n").as_bytes());
        let appliance = parsed.unwrap().appliance;
        let shown = format!("{appliance:?}");
        assert_eq!(appliance.secrets.len(), 1);
        assert!(shown.contains("enrolment") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn secret_needs_a_file_name_and_text() {
        for bad in ["\"../x\" = \"y\"", "token = \"\"", "token = 1"] {
            let faults = parse(format!("{GOOD}[appliance.secrets]\n{bad}\n").as_bytes()).unwrap_err();
            assert!(faults[0].key.starts_with("appliance.secrets."), "{faults:?}");
        }
    }

    #[test]
    fn time_server_is_a_name_or_an_address() {
        let text = format!("{GOOD}[appliance]\nntp = [\"ntp.example.net\", \"192.0.2.1\", \"2001:db8::1\"]\n");
        assert_eq!(parse(text.as_bytes()).unwrap().appliance.ntp.len(), 3);
        for bad in ["[\"a b\"]", "[\"\"]", "[1]", "\"ntp.example.net\"", "[\"a\\nNTP=b\"]"] {
            let faults = parse(format!("{GOOD}[appliance]\nntp = {bad}\n").as_bytes()).unwrap_err();
            assert!(faults[0].key.starts_with("appliance.ntp"), "{bad}: {faults:?}");
        }
    }

    #[test]
    fn windows_line_ends_are_accepted() {
        assert!(parse(format!("\u{feff}{}", GOOD.replace('\n', "\r\n")).as_bytes()).is_ok());
        assert!(parse(b"\xff\xfe[\0n\0").unwrap_err()[0].problem.contains("UTF-8"));
    }

    #[test]
    fn ssh_key_with_options_is_refused() {
        let body = "A".repeat(68);
        assert!(is_ssh_key(&format!("ssh-ed25519 {body} me@here")));
        for bad in [
            format!("command=\"x\" ssh-ed25519 {body}"),
            format!("ssh-ed25519 {body}\nssh-rsa {body}"),
            "ssh-rsa x".into(),
        ] {
            assert!(!is_ssh_key(&bad), "{bad}");
        }
    }

    const PSK: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn with(text: &str) -> String {
        format!(
            "[node]\nid = \"n1\"\n{text}\n[uplink]\ninterface = \"wg0\"\n[[uplink.hub]]\nname = \"hub\"\nendpoint = \"192.0.2.1:51820\"\naddress = \"10.8.0.1\"\nallowed_ips = [\"10.8.0.1/32\"]\npublic_key = \"{PSK}\"\n"
        )
    }

    /// Settings that end the supervisor's start on an image, and the key that is at fault.
    fn endless() -> Vec<(String, &'static str)> {
        let wg0 = "[[interface]]\nname = \"wg0\"\n";
        let hub = with(wg0);
        vec![
            (with(&format!("state_dir = \"/usr/lib/spoke\"\n{wg0}")), "node.state_dir"),
            (with(&format!("runtime_dir = \"/srv\"\n{wg0}")), "node.runtime_dir"),
            (with(&format!("{wg0}private_key = \"file:/etc/spoke/wg0.key\"")), "private_key"),
            (with(&format!("{wg0}private_key = \"credential:wg0\"")), "private_key"),
            (format!("{hub}preshared_key = \"file:/var/lib/spoke/secrets/psk\"\n"), "preshared_key"),
            (format!("{hub}preshared_key = \"credential:psk\"\n"), "preshared_key"),
            (format!("{hub}[agent]\nenabled = true\nsecret = \"file:/var/lib/spoke/agent.secret\"\n"), "agent.secret"),
            (format!("{hub}[control]\nurl = \"https://c.example.net\"\nca = \"/etc/ssl/own.pem\"\n"), "control.ca"),
            (
                format!(
                    "{hub}preshared_key = \"file:/var/lib/spoke/secrets/psk\"\n[appliance.secrets]\npsk = \"no key\"\n"
                ),
                "preshared_key",
            ),
        ]
    }

    #[test]
    fn settings_that_would_end_the_start_are_refused_by_key() {
        assert!(parse(with("[[interface]]\nname = \"wg0\"\n").as_bytes()).is_ok());
        for (text, key) in endless() {
            let faults = parse(text.as_bytes()).expect_err(key);
            assert!(faults.iter().any(|f| f.key.contains(key)), "{key}: {faults:?}");
            assert!(faults.iter().all(|f| !f.to_string().contains("no key\"")), "a secret is shown: {faults:?}");
        }
    }

    #[test]
    fn secret_is_given_with_the_settings_or_is_there() {
        let hub = with("[[interface]]\nname = \"wg0\"\n");
        let named = format!("{hub}preshared_key = \"file:/var/lib/spoke/secrets/psk\"\n");
        parse(format!("{named}[appliance.secrets]\npsk = \"{PSK}\"\n").as_bytes()).unwrap();
        // Settings that replace others, on a device that has the secret.
        let there = |path: &std::path::Path| path == std::path::Path::new("/var/lib/spoke/secrets/psk");
        parse_on_device(named.as_bytes(), &there).unwrap();
        parse_on_device(named.as_bytes(), &|_| false).unwrap_err();
    }

    #[test]
    fn missing_token_is_no_fault() {
        // An enrolled device needs none, and one without is reported by the running supervisor.
        let hub = with("[[interface]]\nname = \"wg0\"\n");
        let text =
            format!("{hub}[control]\nurl = \"https://c.example.net\"\ntoken = \"file:/var/lib/spoke/secrets/token\"\n");
        parse(text.as_bytes()).unwrap();
    }
}
