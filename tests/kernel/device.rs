//! A device: the product's binary in a namespace with its own configuration.
use crate::netns::{Namespace, spoke, wait_until};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A hub as configured on the device.
pub(crate) struct Hub<'a> {
    pub(crate) name: &'a str,
    pub(crate) public_key: &'a str,
    pub(crate) endpoint: &'a str,
    pub(crate) address: &'a str,
}

const SHORT_TIMES: &str = "backoff_initial = \"500ms\"\nbackoff_max = \"2s\"\nattempt_timeout = \"6s\"\n\
    probe_after = \"1s\"\ndead_after = \"4s\"\nidle_probe = \"2s\"\nstable_after = \"1s\"\nfailback_after = \"10s\"";

/// The device. Its log is printed if the test fails.
pub(crate) struct Device<'a> {
    namespace: &'a Namespace,
    dir: tempfile::TempDir,
    /// Its public key.
    pub(crate) public_key: String,
    process: Option<Child>,
}

impl<'a> Device<'a> {
    /// Configures a device with the tunnel address `address`, not started. Intervals are short, because native kernels wait in real
    /// time.
    pub(crate) fn new(namespace: &'a Namespace, address: &str, hubs: &[Hub<'_>]) -> Self {
        Self::with_times(namespace, address, hubs, SHORT_TIMES)
    }

    /// The same with these times of `[uplink]`.
    pub(crate) fn with_times(namespace: &'a Namespace, address: &str, hubs: &[Hub<'_>], times: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let private_key = namespace.run("wg genkey");
        let public_key = namespace.feed("wg pubkey", &private_key).trim().to_owned();
        std::fs::create_dir(dir.path().join("state")).expect("a directory");
        let key = dir.path().join("state/wg0.key");
        std::fs::write(&key, private_key).expect("written");
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("changed");
        let mut text = format!(
            "[node]\nstate_dir = \"{0}/state\"\nruntime_dir = \"{0}/run\"\n[health]\nenabled = false\n\
             [[interface]]\nname = \"wg0\"\naddresses = [\"{address}\"]\n\
             [uplink]\ninterface = \"wg0\"\n{times}\n",
            dir.path().display()
        );
        for hub in hubs {
            let Hub { name, public_key, endpoint, address } = hub;
            let _ = write!(
                text,
                "[[uplink.hub]]\nname = \"{name}\"\npublic_key = \"{public_key}\"\nendpoint = \"{endpoint}\"\naddress = \"{address}\"\n"
            );
        }
        std::fs::write(dir.path().join("spoke.toml"), text).expect("written");
        Self { namespace, dir, public_key, process: None }
    }

    fn spoke(&self, arguments: &str) -> Command {
        let (spoke, config) = (spoke(), self.config());
        self.namespace.command(&format!("{spoke} --config {} {arguments}", config.display()))
    }

    /// Its configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("spoke.toml")
    }

    /// Starts the supervisor.
    pub(crate) fn start(&mut self) {
        let log = std::fs::File::options().append(true).create(true).open(self.log()).expect("a log");
        let child = self.spoke("run").env("SPOKE_LOG", "debug").stderr(log).stdout(Stdio::null()).spawn();
        self.process = Some(child.expect("spoke runs"));
    }

    /// Stops it the way a service manager does.
    pub(crate) fn stop(&mut self) {
        let Some(mut child) = self.process.take() else { return };
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a running process");
        let status = child.wait().expect("it ends");
        assert!(status.success(), "spoke run exited with {status}");
    }

    /// The supervisor's process.
    pub(crate) fn pid(&self) -> u32 {
        // `ip netns exec` replaces itself by the program.
        self.process.as_ref().expect("a running process").id()
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Its log.
    pub(crate) fn logged(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Runs a subcommand to its end; returns its stdout.
    pub(crate) fn tell(&self, arguments: &str) -> String {
        self.namespace.run(&format!("{} --config {} {arguments}", spoke(), self.config().display()))
    }

    /// `uplink` of `spoke status --json`; null before it is published.
    pub(crate) fn uplink(&self) -> Value {
        let output = self.spoke("status --json").output().expect("spoke runs");
        let mut report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        report.get_mut("uplink").map(Value::take).unwrap_or_default()
    }

    /// Whether it reports the tunnel as up.
    pub(crate) fn is_up(&self) -> bool {
        self.uplink()["state"] == "up"
    }

    /// Waits until it reports the tunnel as up, and pings the hub.
    pub(crate) fn wait_up(&self, limit: u64, hub: &str) {
        wait_until(Duration::from_secs(limit), "the tunnel to be up", || self.is_up());
        self.namespace.run(&format!("ping -c 1 -W 5 {hub}"));
    }

    /// Waits for an outage that may be over before a poll sees it, such as one that a second hub ends. The log keeps it.
    pub(crate) fn wait_outage(&self, limit: u64) {
        wait_until(Duration::from_secs(limit), "an outage in the log", || self.logged().contains("tunnel is down"));
    }

    /// Waits until it reports the tunnel as down; for outages that last.
    pub(crate) fn wait_down(&self, limit: u64) {
        wait_until(Duration::from_secs(limit), "the outage to be reported", || !self.is_up());
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the device's log\n{}--- its uplink\n{:#}", self.logged(), self.uplink());
        }
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
