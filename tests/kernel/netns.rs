//! Network namespaces, wires between them, and hubs made with wireguard-tools.
//!
//! A failed command ends the test with its command line and stderr. A failed test prints links, addresses, routes and WireGuard
//! state of its namespaces.

use std::fs::File;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The `spoke` under test: the one cargo built, or the one named by SPOKE_TEST_PROGRAM.
pub(crate) fn spoke() -> String {
    std::env::var("SPOKE_TEST_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_spoke").to_owned())
}

/// A network namespace with the loopback up; deleted when dropped.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace; `role` (such as `hub`) names it in diagnostics.
    pub(crate) fn new(role: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        assert!(
            std::env::var_os("SPOKE_TEST_KERNEL_KIND").is_some(),
            "not in a test kernel: run scripts/test-kernel, which finds or builds one"
        );
        let name = format!("{role}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        execute(Command::new("ip").args(["netns", "add", &name]), "");
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `ip` in this namespace, with arguments separated by blanks; returns its stdout.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        let mut command = Command::new("ip");
        execute(command.args(["-n", &self.name]).args(arguments.split_ascii_whitespace()), "")
    }

    /// Runs a program in this namespace, with arguments separated by blanks; returns its stdout.
    pub(crate) fn run(&self, command_line: &str) -> String {
        self.feed(command_line, "")
    }

    /// Runs a program in this namespace with `stdin`; returns its stdout.
    pub(crate) fn feed(&self, command_line: &str, stdin: &str) -> String {
        execute(&mut self.command(command_line), stdin)
    }

    /// A command in this namespace, with arguments separated by blanks.
    pub(crate) fn command(&self, command_line: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(command_line.split_ascii_whitespace());
        command
    }

    /// Runs `body` on a thread in this namespace. Sockets it opens and threads it starts, a runtime's blocking pool included, are in
    /// the namespace too; the rest of the process is not.
    pub(crate) fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name);
        let inside = || {
            let handle = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            let kind = rustix::thread::LinkNameSpaceType::Network;
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&handle), Some(kind))
                .unwrap_or_else(|error| panic!("enter {path}: {error}"));
            body()
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Runs `future` in this namespace to its end, on a current-thread runtime like the product's.
    pub(crate) fn block_on<F: Future<Output: Send>>(&self, future: impl FnOnce() -> F + Send) -> F::Output {
        self.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(future())
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- namespace {} after the failed test", self.name);
            for query in
                ["ip -d addr", "ip route show table all", "ip -6 route show table all", "ip rule", "wg show all"]
            {
                // No second panic while unwinding.
                if let Ok(output) = self.command(query).output() {
                    eprintln!("# {query}\n{}", String::from_utf8_lossy(&output.stdout).trim_end());
                }
            }
        }
        if let Err(error) = Command::new("ip").args(["netns", "del", &self.name]).status() {
            eprintln!("namespace {} is left behind: {error}", self.name);
        }
    }
}

/// Lays a wire between two namespaces: an interface of the given name and address (with prefix length) at each end, both up.
pub(crate) fn wire(left: (&Namespace, &str, &str), right: (&Namespace, &str, &str)) {
    let (near, near_name, near_address) = left;
    let (far, far_name, far_address) = right;
    near.ip(&format!("link add {near_name} type veth peer name {far_name} netns {}", far.name));
    for (namespace, name, address) in [(near, near_name, near_address), (far, far_name, far_address)] {
        // nodad: an IPv6 address is usable at once, not after a second of duplicate detection.
        let nodad = if address.contains(':') { "nodad" } else { "" };
        namespace.ip(&format!("addr add {address} dev {name} {nodad}"));
        namespace.ip(&format!("link set {name} up"));
    }
}

/// One end of a tunnel made with wireguard-tools and `ip`, independent of our code.
#[derive(Debug)]
pub(crate) struct PlainWireGuard<'a> {
    namespace: &'a Namespace,
    name: &'static str,
    /// Its public key in base64.
    pub(crate) public_key: String,
}

impl<'a> PlainWireGuard<'a> {
    /// Makes the interface `name` with a fresh key, listening on `port`, with `address` (with prefix length), and sets it up.
    pub(crate) fn new(namespace: &'a Namespace, name: &'static str, port: u16, address: &str) -> Self {
        let private_key = namespace.run("wg genkey");
        let public_key = namespace.feed("wg pubkey", &private_key).trim().to_owned();
        namespace.ip(&format!("link add {name} type wireguard"));
        namespace.feed(&format!("wg set {name} listen-port {port} private-key /dev/stdin"), &private_key);
        namespace.ip(&format!("addr add {address} dev {name}"));
        namespace.ip(&format!("link set {name} up"));
        Self { namespace, name, public_key }
    }

    /// Adds or changes a peer; `settings` are `wg set`'s, such as `allowed-ips 10.0.0.2/32 endpoint 192.0.2.1:51820`.
    pub(crate) fn peer(&self, public_key: &str, settings: &str) {
        self.namespace.run(&format!("wg set {} peer {public_key} {settings}", self.name));
    }

    /// When the peer's latest handshake was, in seconds since 1970; `None` before the first.
    pub(crate) fn latest_handshake(&self, public_key: &str) -> Option<u64> {
        let listing = self.namespace.run(&format!("wg show {} latest-handshakes", self.name));
        let stamp = listing.lines().find_map(|line| line.strip_prefix(public_key)?.trim().parse().ok())?;
        (stamp != 0).then_some(stamp)
    }
}

/// Polls for a state without an event (a handshake, a counter); fails the test after `limit`.
pub(crate) fn wait_until(limit: Duration, what: &str, reached: impl FnMut() -> bool) {
    wait_until_every(Duration::from_millis(20), limit, what, reached);
}

/// As [`wait_until`], polling every `pause`, for expensive queries.
#[expect(clippy::disallowed_methods, reason = "real time passes in a real kernel, and the state has no event")]
pub(crate) fn wait_until_every(pause: Duration, limit: Duration, what: &str, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < limit, "timeout after {limit:?}: {what}");
        std::thread::sleep(pause);
    }
}

/// Runs a command to its end, with `stdin`; returns its stdout. Any failure ends the test.
fn execute(command: &mut Command, stdin: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    if let Some(mut pipe) = child.stdin.take() {
        // A program that does not read its stdin may have exited.
        let _ = pipe.write_all(stdin.as_bytes());
    }
    let output = child.wait_with_output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
