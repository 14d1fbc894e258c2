//! A node that serves the agent API, and a panel with signed requests, each in a namespace.
use crate::netns::{Namespace, spoke, wait_until_every};
use serde_json::Value;
use spoke_sys::clock::{Clock as _, SystemClock};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const SECRET: &str = "k7GqP2vXc9LmR4tZw8BnY1sDf6HjA3eU";

/// The product's binary with its own configuration; its log is printed if the test fails.
pub(crate) struct Node<'a> {
    pub(crate) namespace: &'a Namespace,
    dir: tempfile::TempDir,
    process: Option<Child>,
}

impl<'a> Node<'a> {
    /// Configures a node that serves the agent API on 127.0.0.1:8081 and its tunnel addresses, not started.
    pub(crate) fn new(namespace: &'a Namespace, interfaces: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let d = dir.path().display();
        let text = format!(
            "[node]\nrole = \"hub\"\nstate_dir = \"{d}/state\"\nruntime_dir = \"{d}/run\"\n\
             [agent]\nenabled = true\nsecret = \"file:{d}/secret\"\nrate = 10000\n{interfaces}"
        );
        std::fs::write(dir.path().join("spoke.toml"), text).expect("the configuration");
        std::fs::write(dir.path().join("secret"), SECRET).expect("the secret");
        private(&dir.path().join("secret"));
        // The socket's directory must be reachable for all users.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("open");
        Self { namespace, dir, process: None }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts it and waits for a clean pass and the API.
    pub(crate) fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).expect("a log");
        self.process = Some(self.command("run").stdout(Stdio::null()).stderr(log).spawn().expect("spoke run"));
        let mut panel = Panel { namespace: self.namespace, to: ([127, 0, 0, 1], 8081).into(), count: 0 };
        wait_until_every(Duration::from_millis(200), Duration::from_secs(30), "a clean pass and the API", || {
            self.json("status --json")["clean"] == true && panel.ask("GET", "/health", &Value::Null).is_some()
        });
    }

    /// Kills it (SIGKILL).
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Kills and restarts it.
    pub(crate) fn crash(&mut self) {
        self.kill();
        self.start();
    }

    /// A subcommand, not started.
    pub(crate) fn command(&self, arguments: &str) -> Command {
        self.command_as("", arguments)
    }

    /// A subcommand with a prefix such as `setpriv`.
    pub(crate) fn command_as(&self, wrapper: &str, arguments: &str) -> Command {
        self.namespace.command(&format!(
            "{wrapper} {} --config {} {arguments}",
            spoke(),
            self.path("spoke.toml").display()
        ))
    }

    /// Runs a subcommand to its end.
    pub(crate) fn output(&self, arguments: &str) -> Output {
        self.command(arguments).output().expect("spoke runs")
    }

    /// Stdout of a subcommand, which must succeed.
    pub(crate) fn tell(&self, arguments: &str) -> String {
        self.namespace.run(&format!("{} --config {} {arguments}", spoke(), self.path("spoke.toml").display()))
    }

    /// Stdout of a subcommand as JSON; null if it fails.
    pub(crate) fn json(&self, arguments: &str) -> Value {
        let mut document: Value = serde_json::from_slice(&self.output(arguments).stdout).unwrap_or_default();
        if document["items"].is_array() { document["items"].take() } else { document }
    }

    /// A panel on the node itself.
    pub(crate) fn panel(&self) -> Panel<'a> {
        Panel { namespace: self.namespace, to: ([127, 0, 0, 1], 8081).into(), count: 0 }
    }

    /// Public keys of the interface's peers in the kernel.
    pub(crate) fn peers(&self, link: &str) -> Vec<String> {
        let mut keys: Vec<String> =
            self.namespace.run(&format!("wg show {link} peers")).lines().map(str::to_owned).collect();
        keys.sort();
        keys
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            eprintln!("--- log of the node\n{log}");
        }
    }
}

/// Makes a file readable by its owner alone.
pub(crate) fn private(path: &Path) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("changed");
}

/// A client of the agent API.
pub(crate) struct Panel<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) to: SocketAddr,
    pub(crate) count: u32,
}

impl Panel<'_> {
    /// Signs and sends; `None` without a response.
    pub(crate) fn ask(&mut self, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
        self.count += 1;
        let nonce = format!("n{}-{}", std::process::id(), self.count);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let time = SystemClock.wall().secs().to_string();
        let verifier = spoke_api::agent::auth::Verifier::unchecked(SECRET.as_bytes());
        let signature = verifier.sign(method, path, body.as_bytes(), &time, Some(&nonce));
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\nx-signature: {signature}\r\n\
             x-timestamp: {time}\r\nx-nonce: {nonce}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let to = self.to;
        let answer = self.namespace.enter(move || {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
            stream.write_all(request.as_bytes()).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer)
        })?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        let (_, text) = answer.split_once("\r\n\r\n")?;
        Some((status, serde_json::from_str(text).unwrap_or_default()))
    }

    /// As [`Panel::ask`]; the request must succeed.
    pub(crate) fn done(&mut self, method: &str, path: &str, body: &Value) -> Value {
        let (status, reply) = self.ask(method, path, body).unwrap_or_else(|| panic!("{method} {path}: no response"));
        assert_eq!(status, 200, "{method} {path}: {reply}");
        reply
    }
}

/// A public key by number.
pub(crate) fn key(n: u8) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode([n; 32])
}
