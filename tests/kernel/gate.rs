//! A gate: a hub run by the real program with one interface that needs grants and one that is open.

use crate::anvil::{CHAIN_ID, Contract};
use crate::netns::{Namespace, spoke};
use std::path::PathBuf;
use std::process::{Child, Stdio};

/// A peer of the open interface.
pub(crate) const OPEN_PEER: &str = "b3BlbiBhY2Nlc3MgbmVlZHMgbm8gdG9rZW4gYXQgYWw=";

/// `spoke run` in a namespace, ended when dropped; its kernel state stays.
pub(crate) struct Gate<'a> {
    namespace: &'a Namespace,
    directory: PathBuf,
    child: Child,
}

impl<'a> Gate<'a> {
    /// Starts a gate with `peers` (node, key, network) that need a grant of the contract.
    pub(crate) fn start(
        namespace: &'a Namespace,
        directory: PathBuf,
        contract: &Contract<'_>,
        peers: &[(&str, &str, &str)],
    ) -> Self {
        Self::polling(1, namespace, directory, contract, peers)
    }

    /// As [`Gate::start`], with a poll of the chain every so many seconds.
    pub(crate) fn polling(
        poll: u64,
        namespace: &'a Namespace,
        directory: PathBuf,
        contract: &Contract<'_>,
        peers: &[(&str, &str, &str)],
    ) -> Self {
        let fresh = 5 * poll;
        let (state, url) = (directory.display(), contract.chain.url());
        let mut text = format!(
            r#"
[node]
id = "gate"
role = "hub"
state_dir = "{state}/state"
runtime_dir = "{state}/run"

[grants]
contract = "{}"
chain_id = {CHAIN_ID}
endpoints = ["{url}"]
poll = "{poll}s"
fresh = "{fresh}s"
timeout = "2s"
finality = "latest"

[[interface]]
name = "wg1"
listen_port = 51822
addresses = ["10.10.0.1/24"]

[[interface.peer]]
public_key = "{OPEN_PEER}"
allowed_ips = ["10.10.0.2/32"]

[[interface]]
name = "wg0"
listen_port = 51820
addresses = ["10.9.0.1/24"]
access = "nft"
"#,
            contract.address
        );
        for (node, key, network) in peers {
            text += &format!(
                "\n[[interface.peer]]\nnode_id = \"{node}\"\npublic_key = \"{key}\"\nallowed_ips = [\"{network}\"]\n"
            );
        }
        std::fs::write(directory.join("spoke.toml"), text).expect("its configuration");
        let log = std::fs::File::options().create(true).append(true).open(directory.join("log")).expect("a log");
        let program = spoke();
        let mut command =
            namespace.command(&format!("{program} --config {} run", directory.join("spoke.toml").display()));
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("spoke");
        Self { namespace, directory, child }
    }

    /// Its log.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Whether the kernel has this peer.
    pub(crate) fn has(&self, interface: &str, key: &str) -> bool {
        let output = self.namespace.command(&format!("wg show {interface} peers")).output().expect("wg");
        String::from_utf8_lossy(&output.stdout).contains(key)
    }

    /// Runs a subcommand, with arguments separated by blanks; returns its stdout.
    pub(crate) fn spoke(&self, arguments: &str) -> String {
        let program = spoke();
        self.namespace.run(&format!("{program} --config {} {arguments}", self.directory.join("spoke.toml").display()))
    }

    /// Response body of a local endpoint; empty without a response.
    pub(crate) fn get(&self, path: &str) -> String {
        let output = self.namespace.command(&format!("curl -s http://127.0.0.1:8080{path}")).output().expect("curl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A path in its directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
