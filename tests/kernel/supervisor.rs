//! `spoke run` on a real kernel: drift is repaired and reported, foreign objects are left alone, and faults are printed with
//! their remedy.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::netns::{Namespace, PlainWireGuard, spoke, wait_until_every, wire};

/// The kernel is observed every 30 s, and earlier after an event.
pub(crate) const REPAIRED: Duration = Duration::from_secs(45);

/// Polls rarely: a check runs several programs.
pub(crate) fn wait_until(limit: Duration, what: &str, reached: impl FnMut() -> bool) {
    wait_until_every(Duration::from_millis(400), limit, what, reached);
}

/// A supervisor in a namespace, with its configuration and state in a directory of its own.
pub(crate) struct Supervisor<'a> {
    namespace: &'a Namespace,
    directory: tempfile::TempDir,
    process: Option<Child>,
}

impl<'a> Supervisor<'a> {
    pub(crate) fn new(namespace: &'a Namespace, configuration: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let d = directory.path().display();
        let own = format!("[node]\nstate_dir = \"{d}/state\"\nruntime_dir = \"{d}/run\"\n{configuration}");
        std::fs::write(directory.path().join("spoke.toml"), own).expect("the configuration");
        Self { namespace, directory, process: None }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &str) -> Command {
        let file = self.path("spoke.toml");
        self.namespace.command(&format!("{} --config {} {arguments}", spoke(), file.display()))
    }

    pub(crate) fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).expect("a log");
        self.process = Some(self.command("run").stderr(log).spawn().expect("spoke run"));
        wait_until(Duration::from_secs(20), "a clean pass", || self.status()["clean"] == true);
    }

    /// Starts it and waits for its first pass, clean or not.
    pub(crate) fn start_degraded(&mut self) {
        let run = self.command("run");
        self.start_with(run);
    }

    /// As [`Supervisor::start_degraded`], by a command that ends up in `spoke run`.
    pub(crate) fn start_with(&mut self, mut run: Command) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).expect("a log");
        self.process = Some(run.stderr(log).spawn().expect("spoke run"));
        wait_until(Duration::from_secs(20), "a pass", || self.status()["passes"].as_u64() > Some(0));
    }

    /// The detail of the condition with that code; empty without one.
    pub(crate) fn condition(&self, code: &str) -> String {
        let status = self.status();
        let found = status["troubles"].as_array().and_then(|all| all.iter().find(|t| t["code"] == code).cloned());
        found.and_then(|t| t["detail"].as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Whether the process has not ended.
    pub(crate) fn lives(&mut self) -> bool {
        self.process.as_mut().is_some_and(|p| matches!(p.try_wait(), Ok(None)))
    }

    /// `spoke status --json`; null without a running supervisor.
    pub(crate) fn status(&self) -> serde_json::Value {
        let output = self.command("status --json").output().expect("spoke status");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The process it answers from.
    pub(crate) fn process_id(&self) -> String {
        std::fs::read_to_string(self.path("run/supervisor.lock")).expect("the lock").trim().to_owned()
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = Command::new("kill").arg(process.id().to_string()).status();
            let _ = process.wait();
        }
    }
}

impl Drop for Supervisor<'_> {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("--- log of the supervisor\n{}", self.log());
        }
    }
}

pub(crate) fn one_peer(key: &str) -> String {
    format!(
        "[[interface]]\nname = \"wg0\"\naddresses = [\"10.8.0.2/24\", \"fd08::2/64\"]\n\
         [[interface.peer]]\nname = \"friend\"\npublic_key = \"{key}\"\nendpoint = \"192.0.2.1:51820\"\n\
         allowed_ips = [\"10.8.0.1/32\", \"10.99.0.0/16\"]\nkeepalive = 25\n[health]\nenabled = false\n"
    )
}

#[test]
fn drift_of_every_kind_is_repaired_and_reported() {
    let (device, hub) = (Namespace::new("device"), Namespace::new("hub"));
    wire((&device, "wan", "192.0.2.2/24"), (&hub, "wan", "192.0.2.1/24"));
    let far = PlainWireGuard::new(&hub, "wg0", 51820, "10.8.0.1/24");
    let mut spoke = Supervisor::new(&device, &one_peer(&far.public_key));
    spoke.start();
    let key = far.public_key.as_str();
    let shown = |what: &str| device.run(what);

    let scenario: [(&str, String, &dyn Fn() -> bool); 7] = [
        ("interface", "ip link del wg0".into(), &|| shown("wg show interfaces").contains("wg0")),
        ("peer", format!("wg set wg0 peer {key} remove"), &|| shown("wg show wg0 peers").contains(key)),
        ("address", "ip addr del 10.8.0.2/24 dev wg0".into(), &|| {
            shown("ip addr show dev wg0").contains("10.8.0.2/24")
        }),
        ("route", "ip route del 10.99.0.0/16".into(), &|| shown("ip route").contains("10.99.0.0/16 dev wg0")),
        // The connected route goes with it, which the echo, being bound to the interface, does not need.
        ("connected route", "ip route flush dev wg0".into(), &|| {
            let routes = shown("ip route");
            routes.contains("10.8.0.0/24 dev wg0") && routes.contains("10.99.0.0/16 dev wg0")
        }),
        ("allowed-ips", format!("wg set wg0 peer {key} allowed-ips 10.66.0.0/16"), &|| {
            shown("wg show wg0 allowed-ips").contains("10.8.0.1/32 10.99.0.0/16")
        }),
        ("down", "ip link set wg0 down".into(), &|| shown("ip link show wg0").contains(",UP")),
    ];
    for (what, damage, repaired) in scenario {
        let before = spoke.status()["repairs"].as_u64().expect("a count");
        device.run(&damage);
        wait_until(REPAIRED, what, || {
            let status = spoke.status();
            repaired() && status["repairs"].as_u64() > Some(before) && status["clean"] == true
        });
        let status = spoke.status();
        let last = status["history"].as_array().and_then(|h| h.last()).expect("a step").clone();
        assert_eq!(last["cause"], "drift", "{what}: {last}");
    }
    assert!(spoke.log().contains("allowed-ips 10.66.0.0/16 → 10.8.0.1/32,10.99.0.0/16"), "the log has the difference");
}

#[test]
fn foreign_objects_are_kept_and_the_tunnel_outlives_the_process() {
    let (device, hub) = (Namespace::new("device"), Namespace::new("hub"));
    wire((&device, "wan", "192.0.2.2/24"), (&hub, "wan", "192.0.2.1/24"));
    let far = PlainWireGuard::new(&hub, "wg0", 51820, "10.8.0.1/24");
    // Foreign: a WireGuard interface with a peer, an address, routes of other protocols, a rule.
    let other = PlainWireGuard::new(&device, "wg9", 50000, "10.77.0.1/24");
    other.peer(&far.public_key, "allowed-ips 10.77.0.2/32");
    device.ip("route add 10.78.0.0/16 dev wg9");
    device.ip("route add 10.79.0.0/16 dev wan proto 99");
    device.ip("rule add fwmark 7 table 700");
    let foreign = || {
        [
            "wg showconf wg9",
            "ip addr show dev wg9",
            "ip route show dev wg9",
            "ip route show proto 99",
            "ip rule",
            "ip addr show dev wan",
        ]
        // The kernel clears `tentative` after duplicate address detection.
        .map(|query| device.run(query).replace(" tentative", ""))
    };
    let before = foreign();
    let mut spoke = Supervisor::new(&device, &one_peer(&far.public_key));
    spoke.start();
    far.peer(device.run("wg show wg0 public-key").trim(), "allowed-ips 10.8.0.2/32");
    device.run("ping -c 1 -W 10 10.8.0.1");
    assert_eq!(foreign(), before);

    spoke.stop();
    device.run("ping -c 1 -W 5 10.8.0.1");
    let stamp = device.run("wg show wg0 latest-handshakes");
    spoke.start();
    assert_eq!(device.run("wg show wg0 latest-handshakes"), stamp, "the session after a restart");
    assert_eq!(spoke.status()["changes"], 0, "a restart changes nothing");
    assert_eq!(foreign(), before);
}

#[test]
fn adopted_interface_keeps_undeclared_addresses() {
    let device = Namespace::new("device");
    let own = PlainWireGuard::new(&device, "wg0", 51820, "10.66.0.1/24");
    let mut spoke = Supervisor::new(&device, &one_peer(&own.public_key.replace(&own.public_key[..1], "B")));
    spoke.start();
    let addresses = || device.run("ip addr show dev wg0");
    assert!(addresses().contains("10.66.0.1/24") && addresses().contains("10.8.0.2/24"), "{}", addresses());
    // One that was declared goes when it is declared no longer.
    let file = spoke.path("spoke.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    assert!(text.contains("10.8.0.2/24"));
    spoke.stop();
    assert!(addresses().contains("10.66.0.1/24"));
}

#[test]
fn second_supervisor_names_the_first_and_exits() {
    let (device, other) = (Namespace::new("device"), Namespace::new("other"));
    let text = "[[interface]]\nname = \"wg0\"\naddresses = [\"10.9.0.1/24\"]\n[health]\nenabled = false\n";
    let mut spoke = Supervisor::new(&device, text);
    spoke.start();
    let pid = spoke.process.as_ref().map(Child::id).unwrap_or_default();
    // With the same directories, and with directories of its own in the same network.
    let second = Supervisor::new(&device, text);
    for command in [&mut spoke.command("run"), &mut second.command("run")] {
        let error = refused(command);
        assert!(error.contains("another supervisor is running") && error.contains("spoke"), "{error}");
        // `ip netns exec` replaces itself by the program.
        assert!(error.contains(&format!("process {pid}")), "{pid} in {error}");
    }
    assert!(spoke.lives() && spoke.status()["clean"] == true);
    let mut elsewhere = Supervisor::new(&other, text);
    elsewhere.start();
    // The lock goes with the process, however it ends.
    let _ = spoke.process.as_mut().map(Child::kill);
    spoke.stop();
    spoke.start();
}

#[test]
fn plan_prints_what_run_would_change() {
    let (device, hub) = (Namespace::new("device"), Namespace::new("hub"));
    wire((&device, "wan", "192.0.2.2/24"), (&hub, "wan", "192.0.2.1/24"));
    let far = PlainWireGuard::new(&hub, "wg0", 51820, "10.8.0.1/24");
    let mut spoke = Supervisor::new(&device, &one_peer(&far.public_key));
    let plan = |spoke: &Supervisor<'_>| {
        let output = spoke.command("plan --exit-code").output().expect("spoke plan");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // Before the first start, without a key.
    let (code, printed) = plan(&spoke);
    assert_eq!(code, Some(2), "a plan with steps: {printed}");
    for line in
        ["wg0: generate the key file:", "wg0: create interface", "allowed-ips 10.8.0.1/32,10.99.0.0/16", "bring up"]
    {
        assert!(printed.contains(line), "{line} in {printed}");
    }
    assert!(!spoke.path("state").exists() && !device.ip("-br link").contains("wg0"), "plan changed something");
    spoke.start();
    assert_eq!(plan(&spoke), (Some(0), "nothing to do\n".to_owned()));
    spoke.stop();
    device.ip("addr del 10.8.0.2/24 dev wg0");
    let (code, printed) = plan(&spoke);
    assert!(code == Some(2) && printed.starts_with("wg0: add address 10.8.0.2/24"), "{printed}");
}

#[test]
fn taken_name_is_reported_and_other_interfaces_work() {
    let device = Namespace::new("device");
    device.ip("link add wg0 type dummy");
    let two = "[[interface]]\nname = \"wg0\"\n[[interface]]\nname = \"wg1\"\naddresses = [\"10.9.0.1/24\"]\n[health]\nenabled = false\n";
    let mut spoke = Supervisor::new(&device, two);
    let log = std::fs::File::create(spoke.path("log")).expect("a log");
    spoke.process = Some(spoke.command("run").stderr(log).spawn().expect("spoke run"));
    wait_until(Duration::from_secs(20), "the other interface", || {
        device.run("ip -br addr").contains("10.9.0.1/24") && spoke.status()["troubles"][0]["code"] == "name_taken"
    });
    let detail = spoke.status()["troubles"][0]["detail"].as_str().unwrap_or_default().to_owned();
    assert!(detail.contains("wg0 exists and is not WireGuard: rename it"), "{detail}");
    assert!(device.run("ip -d link show wg0").contains("dummy"));
}

/// Runs `spoke run`, which must exit with 1; returns its stderr.
fn refused(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn missing_capability_is_named() {
    let device = Namespace::new("device");
    let spoke = Supervisor::new(&device, "[[interface]]\nname = \"wg0\"\n[health]\nenabled = false\n");
    let file = spoke.path("spoke.toml");
    let error = refused(&mut device.command(&format!(
        "setpriv --bounding-set -net_admin --inh-caps -net_admin {} --config {} run",
        crate::netns::spoke(),
        file.display()
    )));
    // The tasks that wait for the one that failed return: its error is the reason.
    assert!(error.contains("CAP_NET_ADMIN") && !error.contains("it returned"), "{error}");
}

/// A supervisor of one interface with its state on a tmpfs of `kib` KiB.
fn on_its_own_disk(device: &Namespace, kib: u32) -> (Supervisor<'_>, PathBuf) {
    let text = "[[interface]]\nname = \"wg0\"\naddresses = [\"10.9.0.1/24\"]\n[health]\nenabled = false\n";
    let spoke = Supervisor::new(device, text);
    let state = spoke.path("state");
    std::fs::create_dir(&state).expect("a directory");
    mount(&["-t", "tmpfs", "-o", &format!("size={kib}k,mode=700"), "tmpfs"], &state);
    (spoke, state)
}

fn mount(arguments: &[&str], at: &Path) {
    let status = Command::new("mount").args(arguments).arg(at).status().expect("mount");
    assert!(status.success());
}

fn unmount(at: &Path) {
    assert!(Command::new("umount").arg(at).status().expect("umount").success());
}

fn has_address(device: &Namespace) -> bool {
    device
        .command("ip addr show dev wg0")
        .output()
        .is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("10.9.0.1/24"))
}

#[test]
fn full_disk_and_truncated_key_are_named_and_the_tunnel_stays() {
    let device = Namespace::new("device");
    // One page in all, used by another file.
    let (mut spoke, state) = on_its_own_disk(&device, 4);
    std::fs::write(state.join("other"), [0; 4096]).expect("the last page");
    spoke.start_degraded();
    let detail = spoke.condition("key_unreadable");
    assert!(detail.contains("free some space") && detail.contains("wg0.key"), "{detail}");
    std::fs::remove_file(state.join("other")).expect("space again");
    wait_until(Duration::from_secs(30), "the interface", || spoke.status()["clean"] == true && has_address(&device));
    spoke.stop();

    let key = state.join("wg0.key");
    let whole = std::fs::read(&key).expect("the key");
    std::fs::write(&key, &whole[..20]).expect("cut");
    spoke.start_degraded();
    let detail = spoke.condition("key_unreadable");
    assert!(detail.contains("wg0.key") && detail.contains("44 characters"), "{detail}");
    assert_eq!(std::fs::read(&key).expect("the key"), &whole[..20], "a damaged key is not replaced");
    assert!(has_address(&device), "the last good state stays");
    spoke.stop();
    unmount(&state);
}

/// With a key on disk the tunnel needs no further write, neither while it runs nor at the next start.
#[test]
fn tunnel_works_with_a_full_or_read_only_disk() {
    let device = Namespace::new("device");
    let (mut spoke, state) = on_its_own_disk(&device, 64);
    spoke.start();
    // The disk fills up while it runs: drift is still repaired.
    let full = Command::new("dd").args(["if=/dev/zero", "bs=1k"]).arg(format!("of={}/other", state.display())).output();
    assert!(!full.expect("dd").status.success(), "the disk is full");
    device.ip("addr del 10.9.0.1/24 dev wg0");
    wait_until(REPAIRED, "the address", || has_address(&device));
    spoke.stop();
    // The board reboots: no interface, a full disk, then one that the kernel remounted read-only.
    for remount in [None, Some(["-o", "remount,ro"])] {
        device.ip("link del wg0");
        if let Some(options) = remount {
            mount(&options, &state);
        }
        spoke.start();
        assert!(has_address(&device));
        spoke.stop();
    }
    let log = spoke.log();
    assert!(log.contains("free some space") && log.contains("read-only"), "the log has the remedy");
    // Both journals are damaged from the first byte on, on a read-only disk: the tunnel still comes up.
    mount(&["-o", "remount,rw"], &state);
    std::fs::remove_file(state.join("other")).expect("space again");
    for name in ["changes.journal", "audit.log"] {
        std::fs::write(state.join(name), "0123456789abcdef {\"rotten\"\n").expect("written");
    }
    mount(&["-o", "remount,ro"], &state);
    device.ip("link del wg0");
    let logged = spoke.log().len();
    spoke.start();
    assert!(has_address(&device));
    spoke.stop();
    let log = spoke.log().split_off(logged);
    for name in ["changes.journal", "audit.log"] {
        let line = log.lines().find(|l| l.contains(name) && l.contains("file damaged")).unwrap_or_default();
        assert!(line.contains("read-only") && line.contains("remount"), "{name}: {log}");
    }
    unmount(&state);
}

#[test]
fn truncated_state_files_are_reported_and_block_nothing() {
    let device = Namespace::new("device");
    let (mut spoke, state) = on_its_own_disk(&device, 256);
    spoke.start();
    device.ip("addr del 10.9.0.1/24 dev wg0");
    wait_until(REPAIRED, "the address", || has_address(&device));
    spoke.stop();
    let mut cut = Vec::new();
    for entry in std::fs::read_dir(&state).expect("the state") {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).expect("its bytes");
        if path.extension().is_none_or(|x| x != "key") && !bytes.is_empty() {
            std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("cut");
            cut.push(path);
        }
    }
    assert!(!cut.is_empty(), "no state file to truncate");
    let logged = spoke.log().len();
    spoke.start();
    assert!(has_address(&device));
    let log = spoke.log().split_off(logged);
    assert!(log.contains("damaged"), "{cut:?} in {log}");
    spoke.stop();
    unmount(&state);
}

/// Replaces a file by a directory, which fails every read, as a dying card does.
fn make_unreadable(path: &Path) {
    let _ = std::fs::remove_file(path);
    std::fs::create_dir(path).expect("a directory");
}

#[test]
fn unreadable_files_keep_no_tunnel_down() {
    let device = Namespace::new("device");
    let (mut spoke, state) = on_its_own_disk(&device, 256);
    spoke.start();
    spoke.stop();
    for name in ["audit.log", "changes.journal", "clock.json"] {
        device.ip("link del wg0");
        make_unreadable(&state.join(name));
        let logged = spoke.log().len();
        spoke.start();
        assert!(has_address(&device), "{name}");
        let log = spoke.log().split_off(logged);
        assert!(log.lines().any(|l| l.contains(name) || l.contains("clock stamp")), "{name}: {log}");
        spoke.stop();
    }
    unmount(&state);
}

#[test]
fn emptied_configuration_deletes_nothing() {
    let device = Namespace::new("device");
    let (mut spoke, state) = on_its_own_disk(&device, 64);
    spoke.start();
    spoke.stop();
    let file = spoke.path("spoke.toml");
    let good = std::fs::read(&file).expect("the configuration");
    for left in [&b""[..], b"\n", &[0; 512], &good[..good.len() / 5]] {
        std::fs::write(&file, left).expect("written");
        let output = spoke.command("run").stdin(Stdio::null()).output().expect("it runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && error.contains("spoke.toml"), "{output:?}");
        assert!(has_address(&device), "deleted for {left:?}");
    }
    std::fs::write(&file, good).expect("written");
    spoke.start();
    assert!(has_address(&device));
    spoke.stop();
    unmount(&state);
}

#[test]
fn agent_without_its_secret_keeps_no_tunnel_down() {
    let device = Namespace::new("device");
    let text = "[[interface]]\nname = \"wg0\"\naddresses = [\"10.9.0.1/24\"]\n[health]\nenabled = false\n\
        [agent]\nenabled = true\nsecret = \"file:/run/no-such-secret\"\n";
    let mut spoke = Supervisor::new(&device, text);
    spoke.start();
    assert!(has_address(&device));
    let log = spoke.log();
    assert!(log.contains("agent API cannot be served") && log.contains("no-such-secret"), "{log}");
}

#[test]
fn unreadable_keys_cost_their_own_peer_and_interface() {
    let device = Namespace::new("device");
    let psk = tempfile::tempdir().expect("a directory");
    let file = psk.path().join("hub.psk");
    let private = psk.path().join("wg1.key");
    std::fs::write(&private, "torn").expect("a damaged key");
    only_for_its_owner(&private);
    let text = format!(
        "[[interface]]\nname = \"wg0\"\naddresses = [\"10.9.0.1/24\"]\n[health]\nenabled = false\n\
         [[interface.peer]]\npublic_key = \"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\"\npreshared_key = \"file:{}\"\n\
         allowed_ips = [\"10.9.0.2/32\"]\n\
         [[interface.peer]]\npublic_key = \"AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=\"\nallowed_ips = [\"10.9.0.3/32\"]\n\
         [[interface]]\nname = \"wg1\"\naddresses = [\"10.10.0.1/24\"]\nprivate_key = \"file:{}\"\n",
        file.display(),
        private.display()
    );
    let mut spoke = Supervisor::new(&device, &text);
    spoke.start_degraded();
    let peers = || device.run("wg show wg0 peers");
    assert!(has_address(&device) && peers().contains("AwMDA") && !peers().contains("AgICA"), "{}", spoke.log());
    let detail = spoke.condition("key_unreadable");
    assert!(detail.contains("wg1") && detail.contains("44 characters"), "{detail}");
    assert!(spoke.status()["troubles"].to_string().contains("hub.psk"), "{:#}", spoke.status());

    std::fs::write(&file, "BAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ=\n").expect("the key");
    only_for_its_owner(&file);
    wait_until(Duration::from_secs(30), "the peer with its preshared key", || {
        device.run("wg show wg0 preshared-keys").contains("AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\tBAQE")
    });
    std::fs::remove_file(&private).expect("moved away");
    wait_until(Duration::from_secs(30), "the other interface", || device.run("ip -br link").contains("wg1"));
    wait_until(Duration::from_secs(30), "no condition", || spoke.condition("key_unreadable").is_empty());

    // A restart without the file leaves the peer that the kernel has, with its key.
    spoke.stop();
    std::fs::remove_file(&file).expect("removed");
    spoke.start_degraded();
    assert!(device.run("wg show wg0 preshared-keys").contains("AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\tBAQE"));
    assert!(spoke.condition("key_unreadable").contains("hub.psk"));
}

/// Readable by its owner only, as keys have to be.
fn only_for_its_owner(file: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).expect("its mode");
}

#[test]
fn faulty_settings_are_waited_for_without_a_restart() {
    let device = Namespace::new("device");
    let mut spoke = Supervisor::new(
        &device,
        "[[interface]]\nname = \"wg0\"\naddresses = [\"10.9.0.1/24\"]\n[health]\nenabled = false\n",
    );
    let file = spoke.path("spoke.toml");
    let good = std::fs::read(&file).expect("the configuration");
    std::fs::write(&file, &good[..good.len() / 2]).expect("torn");
    let log = std::fs::File::options().create(true).append(true).open(spoke.path("log")).expect("a log");
    spoke.process = Some(spoke.command("run --wait-for-settings").stderr(log).spawn().expect("spoke run"));
    wait_until(Duration::from_secs(20), "its reason in the log", || spoke.log().contains("settings unusable"));
    device.run("sleep 12");
    assert!(spoke.lives(), "{}", spoke.log());
    assert_eq!(spoke.log().matches("settings unusable").count(), 1, "{}", spoke.log());
    std::fs::write(&file, &good).expect("corrected");
    wait_until(Duration::from_secs(30), "the interface", || spoke.lives() && spoke.status()["clean"] == true);
    assert!(has_address(&device));
    spoke.stop();
}

/// EPERM for one object: a table that another process owns. The process has its right, so that it is a condition of that step.
#[test]
fn permission_refused_for_one_object_is_its_own_condition() {
    use std::io::Write as _;
    let device = Namespace::new("hub");
    let mut owner = device.command("nft -i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("nft");
    let commands = b"add table inet spoke-wg0 { flags owner; }\n";
    owner.stdin.as_mut().expect("its input").write_all(commands).expect("written");
    wait_until(Duration::from_secs(10), "the table", || device.run("nft list tables").contains("spoke-wg0"));
    let text = "[[interface]]\nname = \"wg0\"\nlisten_port = 51820\naddresses = [\"10.9.0.1/24\"]\n[health]\nenabled = false\n";
    let mut hub = Supervisor::new(&device, text);
    let file = hub.path("spoke.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    std::fs::write(&file, text.replace("[node]\n", "[node]\nrole = \"hub\"\n")).expect("written");
    hub.start_degraded();
    wait_until(Duration::from_secs(20), "the condition", || hub.condition("apply_failed").contains("not permitted"));
    assert!(hub.lives() && has_address(&device), "{}", hub.log());
    // The kernel removes the table with the socket of its owner.
    drop(owner.stdin.take());
    let _ = owner.wait();
    wait_until(REPAIRED, "the hub", || hub.lives() && hub.status()["clean"] == true);
}
