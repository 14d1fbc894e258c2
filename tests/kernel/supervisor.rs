//! `spoke run` on a real kernel: what is changed behind its back comes back and is told of, what is foreign is left alone,
//! and what cannot work is said with its remedy.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::netns::{Namespace, PlainWireGuard, spoke, wait_until_every, wire};

/// An interface is looked at at least every 30 s; an event makes it much sooner.
const REPAIRED: Duration = Duration::from_secs(45);

/// Waits for what a few programs have to be run to see, so not too often.
fn wait_until(limit: Duration, what: &str, reached: impl FnMut() -> bool) {
    wait_until_every(Duration::from_millis(400), limit, what, reached);
}

/// A supervisor in a namespace, with its configuration and state in a directory of its own.
struct Supervisor<'a> {
    namespace: &'a Namespace,
    directory: tempfile::TempDir,
    process: Option<Child>,
}

impl<'a> Supervisor<'a> {
    fn new(namespace: &'a Namespace, configuration: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let d = directory.path().display();
        let own = format!("[node]\nstate_dir = \"{d}/state\"\nruntime_dir = \"{d}/run\"\n{configuration}");
        std::fs::write(directory.path().join("spoke.toml"), own).expect("the configuration");
        Self { namespace, directory, process: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, arguments: &str) -> Command {
        let file = self.path("spoke.toml");
        self.namespace.command(&format!("{} --config {} {arguments}", spoke(), file.display()))
    }

    fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).expect("a log");
        self.process = Some(self.command("run").stderr(log).spawn().expect("spoke run"));
        wait_until(Duration::from_secs(20), "a clean pass", || self.status()["clean"] == true);
    }

    /// What `spoke status --json` prints; null while nobody answers.
    fn status(&self) -> serde_json::Value {
        let output = self.command("status --json").output().expect("spoke status");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn stop(&mut self) {
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

fn one_peer(key: &str) -> String {
    format!(
        "[[interface]]\nname = \"wg0\"\naddresses = [\"10.8.0.2/24\", \"fd08::2/64\"]\n\
         [[interface.peer]]\nname = \"friend\"\npublic_key = \"{key}\"\nendpoint = \"192.0.2.1:51820\"\n\
         allowed_ips = [\"10.8.0.1/32\", \"10.99.0.0/16\"]\nkeepalive = 25\n[health]\nenabled = false\n"
    )
}

#[test]
fn what_is_changed_behind_its_back_is_repaired_and_told() {
    let (device, hub) = (Namespace::new("device"), Namespace::new("hub"));
    wire((&device, "wan", "192.0.2.2/24"), (&hub, "wan", "192.0.2.1/24"));
    let far = PlainWireGuard::new(&hub, "wg0", 51820, "10.8.0.1/24");
    let mut spoke = Supervisor::new(&device, &one_peer(&far.public_key));
    spoke.start();
    let key = far.public_key.as_str();
    let shown = |what: &str| device.run(what);

    let scenario: [(&str, String, &dyn Fn() -> bool); 6] = [
        ("interface", "ip link del wg0".into(), &|| shown("wg show interfaces").contains("wg0")),
        ("peer", format!("wg set wg0 peer {key} remove"), &|| shown("wg show wg0 peers").contains(key)),
        ("address", "ip addr del 10.8.0.2/24 dev wg0".into(), &|| {
            shown("ip addr show dev wg0").contains("10.8.0.2/24")
        }),
        ("route", "ip route del 10.99.0.0/16".into(), &|| shown("ip route").contains("10.99.0.0/16 dev wg0")),
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
        let last = status["history"].as_array().and_then(|h| h.last()).expect("a deed").clone();
        assert_eq!(last["cause"], "drift", "{what}: {last}");
    }
    assert!(spoke.log().contains("allowed-ips 10.66.0.0/16 → 10.8.0.1/32,10.99.0.0/16"), "the log says what differed");
}

#[test]
fn what_is_foreign_is_never_touched_and_the_tunnel_outlives_the_process() {
    let (device, hub) = (Namespace::new("device"), Namespace::new("hub"));
    wire((&device, "wan", "192.0.2.2/24"), (&hub, "wan", "192.0.2.1/24"));
    let far = PlainWireGuard::new(&hub, "wg0", 51820, "10.8.0.1/24");
    // Of somebody else: a WireGuard interface with a peer, an address, routes of other protocols, a rule.
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
        // The kernel itself takes the mark from an IPv6 address that it has made sure of.
        .map(|look| device.run(look).replace(" tentative", ""))
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
    assert_eq!(device.run("wg show wg0 latest-handshakes"), stamp, "a restart does not disturb the session");
    assert_eq!(spoke.status()["changes"], 0, "there was nothing to do");
    assert_eq!(foreign(), before);
}

#[test]
fn plan_says_what_run_will_do_and_does_nothing() {
    let (device, hub) = (Namespace::new("device"), Namespace::new("hub"));
    wire((&device, "wan", "192.0.2.2/24"), (&hub, "wan", "192.0.2.1/24"));
    let far = PlainWireGuard::new(&hub, "wg0", 51820, "10.8.0.1/24");
    let mut spoke = Supervisor::new(&device, &one_peer(&far.public_key));
    let plan = |spoke: &Supervisor<'_>| {
        let output = spoke.command("plan --exit-code").output().expect("spoke plan");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // Before the first start of all, when there is no key yet.
    let (code, said) = plan(&spoke);
    assert_eq!(code, Some(1), "there is something to do: {said}");
    for line in ["wg0: make the key file:", "wg0: create interface", "allowed-ips 10.8.0.1/32,10.99.0.0/16", "bring up"]
    {
        assert!(said.contains(line), "{line} in {said}");
    }
    assert!(!spoke.path("state").exists() && !device.ip("-br link").contains("wg0"), "nothing was done");
    spoke.start();
    assert_eq!(plan(&spoke), (Some(0), "nothing to do\n".to_owned()));
    spoke.stop();
    device.ip("addr del 10.8.0.2/24 dev wg0");
    let (code, said) = plan(&spoke);
    assert!(code == Some(1) && said.starts_with("wg0: add address 10.8.0.2/24"), "{said}");
}

#[test]
fn a_name_that_another_kind_of_interface_has_is_said_and_the_rest_goes_on() {
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

/// Runs `spoke run` until it ends by itself; its stderr.
fn refused(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn without_the_right_to_change_the_network_it_says_which_right() {
    let device = Namespace::new("device");
    let spoke = Supervisor::new(&device, "[[interface]]\nname = \"wg0\"\n[health]\nenabled = false\n");
    let file = spoke.path("spoke.toml");
    let said = refused(&mut device.command(&format!(
        "setpriv --bounding-set -net_admin --inh-caps -net_admin {} --config {} run",
        crate::netns::spoke(),
        file.display()
    )));
    assert!(said.contains("CAP_NET_ADMIN"), "{said}");
}

/// A supervisor of one interface with its state on a file system of its own, of as many KiB.
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
fn a_full_disk_and_a_key_cut_in_half_are_said_and_the_tunnel_stays() {
    let device = Namespace::new("device");
    // Room for no byte: one page for the directory's only file, taken.
    let (mut spoke, state) = on_its_own_disk(&device, 4);
    std::fs::write(state.join("other"), [0; 4096]).expect("the last page");
    let said = refused(&mut spoke.command("run"));
    assert!(said.contains("free some space") && said.contains("wg0.key"), "{said}");
    std::fs::remove_file(state.join("other")).expect("space again");
    spoke.start();
    spoke.stop();

    let key = state.join("wg0.key");
    let whole = std::fs::read(&key).expect("the key");
    std::fs::write(&key, &whole[..20]).expect("cut");
    let said = refused(&mut spoke.command("run"));
    assert!(said.contains("wg0.key") && said.contains("44 characters"), "{said}");
    assert_eq!(std::fs::read(&key).expect("the key"), &whole[..20], "what is there is never replaced");
    assert!(has_address(&device), "the last good state goes on");
    unmount(&state);
}

/// Once there is a key the tunnel asks nothing more of the disk: not while it runs, and not at the next start.
#[test]
fn a_disk_that_takes_nothing_more_keeps_nobody_from_the_tunnel() {
    let device = Namespace::new("device");
    let (mut spoke, state) = on_its_own_disk(&device, 64);
    spoke.start();
    // Full while it runs: drift is repaired all the same.
    let full = Command::new("dd").args(["if=/dev/zero", "bs=1k"]).arg(format!("of={}/other", state.display())).output();
    assert!(!full.expect("dd").status.success(), "the disk is full");
    device.ip("addr del 10.9.0.1/24 dev wg0");
    wait_until(REPAIRED, "the address", || has_address(&device));
    spoke.stop();
    // The board starts again: no interface, a disk that is full, and then one that the kernel has made read-only.
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
    assert!(log.contains("free some space") && log.contains("read-only"), "the log says what to do");
    // Both journals rot from their first byte on, on a disk that cannot be written: the tunnel comes up from what is left.
    mount(&["-o", "remount,rw"], &state);
    std::fs::remove_file(state.join("other")).expect("space again");
    for name in ["changes.journal", "audit.log"] {
        std::fs::write(state.join(name), "0123456789abcdef {\"rotten\"\n").expect("written");
    }
    mount(&["-o", "remount,ro"], &state);
    device.ip("link del wg0");
    let said = spoke.log().len();
    spoke.start();
    assert!(has_address(&device));
    spoke.stop();
    let log = spoke.log().split_off(said);
    for name in ["changes.journal", "audit.log"] {
        let line = log.lines().find(|l| l.contains(name) && l.contains("file damaged")).unwrap_or_default();
        assert!(line.contains("read-only") && line.contains("remount"), "{name}: {log}");
    }
    unmount(&state);
}

#[test]
fn state_files_cut_in_half_are_said_and_hold_nothing_up() {
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
    assert!(!cut.is_empty(), "there was something to cut");
    let said = spoke.log().len();
    spoke.start();
    assert!(has_address(&device));
    let log = spoke.log().split_off(said);
    assert!(log.contains("damaged"), "it is said, of {cut:?}: {log}");
    spoke.stop();
    unmount(&state);
}
