//! Changes through the agent API on a real kernel: unconfirmed changes are reverted, changes can be rolled back after any restart,
//! drift is repaired or only reported, and a power cut loses no acknowledged change.
use crate::netns::{Namespace, PlainWireGuard, wait_until, wait_until_every, wire};
use crate::panel::{Node, Panel, key};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const HUB: &str = "[health]\nenabled = false\n[[interface]]\nname = \"wg0\"\nlisten_port = 51820\n\
                   addresses = [\"10.8.0.1/24\"]\n";

fn peer(n: u8) -> Value {
    json!({ "public_key": key(n), "allowed_ips": [format!("10.8.0.{n}/32")] })
}

fn ping(from: &Namespace, to: &str) -> bool {
    from.command(&format!("ping -c 1 -W 1 {to}")).output().is_ok_and(|o| o.status.success())
}

#[test]
fn unconfirmed_change_that_cuts_the_panel_is_reverted() {
    let (hub, office) = (Namespace::new("hub"), Namespace::new("office"));
    wire((&hub, "wan", "192.0.2.1/24"), (&office, "wan", "192.0.2.2/24"));
    let mut node = Node::new(&hub, HUB);
    node.start();
    let far = PlainWireGuard::new(&office, "wg0", 51821, "10.8.0.2/24");
    let own = json!({ "public_key": far.public_key, "allowed_ips": ["10.8.0.2/32"] });
    node.panel().done("POST", "/v1/wg/wg0/peers", &own);
    let key = hub.run("wg show wg0 public-key").trim().to_owned();
    far.peer(&key, "allowed-ips 10.8.0.1/32 endpoint 192.0.2.1:51820");
    office.run("ping -c 1 -W 5 10.8.0.1");
    // This panel has no path but the tunnel.
    let mut panel = Panel { namespace: &office, to: "10.8.0.1:8081".parse().expect("an address"), count: 0 };
    let path = format!("/v1/wg/wg0/peers/{}", far.public_key);

    let changed = panel.done("PUT", &path, &json!({ "persistent_keepalive": 7, "confirm_within": 60 }));
    panel.done("POST", "/v1/confirm", &json!({ "generation": changed["generation"] }));

    let cut = panel.ask("PUT", &path, &json!({ "allowed_ips": [], "confirm_within": 5 }));
    assert!(cut.is_none(), "the response cannot arrive: {cut:?}");
    assert!(!ping(&office, "10.8.0.1"), "the path is cut");
    wait_until_every(Duration::from_millis(500), Duration::from_secs(30), "the path to work again", || {
        ping(&office, "10.8.0.1")
    });
    assert!(hub.run("wg show wg0 allowed-ips").contains("10.8.0.2/32"));
    assert!(hub.run("wg show wg0 persistent-keepalive").contains('7'), "the confirmed change stays");
    let history = node.json("config history --json");
    let of = |i: usize| (history[i]["generation"].clone(), history[i]["actor"].as_str().unwrap_or_default().to_owned());
    assert_eq!(of(0), (4.into(), "confirmation time-out".into()), "{history:#}");
    assert_eq!(of(1), (3.into(), "panel 10.8.0.2".into()), "{history:#}");
    let trail = node.tell("audit list");
    assert!(trail.contains("generation 3 was not confirmed: back to 2"), "{trail}");
    assert_eq!(panel.done("GET", "/v1/history", &Value::Null)["generations"], history, "history over the API");
}

#[test]
fn unconfirmed_change_is_reverted_after_a_restart() {
    let hub = Namespace::new("hub");
    let mut node = Node::new(&hub, HUB);
    node.start();
    node.panel().done("POST", "/v1/wg/wg0/peers", &peer(1));
    let mut unconfirmed = peer(2);
    unconfirmed["confirm_within"] = 20.into();
    node.panel().done("POST", "/v1/wg/wg0/peers", &unconfirmed);
    assert_eq!(node.peers("wg0"), [key(1), key(2)]);
    node.crash();
    let (status, body) = node.panel().ask("POST", "/v1/wg/wg0/peers", &peer(3)).expect("a response");
    assert!(status == 409 && body["error"].as_str().unwrap_or_default().contains("Generation 2"), "{status} {body}");
    wait_until_every(Duration::from_millis(500), Duration::from_secs(60), "the revert", || {
        node.peers("wg0") == [key(1)]
    });
    let mut kept = peer(2);
    kept["confirm_within"] = 20.into();
    wait_until(Duration::from_secs(20), "the revert to be stored", || {
        node.panel().ask("POST", "/v1/wg/wg0/peers", &kept).is_some_and(|(status, _)| status == 200)
    });
    assert_eq!(node.tell("config confirm"), "generation 4 stays in force\n");
    node.crash();
    assert_eq!(node.peers("wg0"), [key(1), key(2)], "the confirmation is kept");
    assert!(node.json("config history --json")[0]["confirm_within"].is_null());
}

#[test]
fn rollback_restores_the_previous_state_after_any_restart() {
    let hub = Namespace::new("hub");
    let mut node = Node::new(&hub, HUB);
    node.start();
    let mut first = peer(1);
    first["preshared_key"] = key(200).into();
    node.panel().done("POST", "/v1/wg/wg0/peers", &first);
    node.panel().done("POST", "/v1/wg/wg0/peers", &peer(2));
    let thief = json!({ "public_key": key(3), "allowed_ips": ["10.8.0.2/32"] });
    let (status, body) = node.panel().ask("POST", "/v1/wg/wg0/peers", &thief).expect("a response");
    assert!(status == 409 && body["error"].as_str().unwrap_or_default().contains(&key(2)), "{status} {body}");
    node.crash();

    assert!(node.tell("config rollback").starts_with("generation 3 is in force\n"));
    assert_eq!(node.peers("wg0"), [key(1)], "the refused change is no generation");
    node.crash();
    node.tell("config rollback");
    assert!(node.peers("wg0").is_empty(), "a second rollback leads further back");
    node.tell("config rollback 2");
    assert_eq!(node.peers("wg0"), [key(1), key(2)], "the state rolled back from is kept");
    node.crash();
    node.tell("config rollback 1");
    assert_eq!(node.peers("wg0"), [key(1)]);
    let psk = hub.run("wg show wg0 preshared-keys");
    assert!(psk.contains(&key(200)), "with its preshared key");
    assert!(node.tell("config diff 1 2").contains(&format!("+ wg0 peer {}", key(2))));
    let list = node.tell("config history");
    assert_eq!(
        list.lines().map(|l| &l[..1]).collect::<String>(),
        "*     ",
        "the next one leads to generation 0: {list}"
    );
    let refused = node.output("config rollback 99");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Generation 99 is not kept: choose one of 0 to 6"));
    assert!(!node.tell("audit list --json").contains(&key(200)) && !list.contains(&key(200)));

    for entry in std::fs::read_dir(node.path("state")).expect("a directory") {
        let path = entry.expect("an entry").path();
        let secret = std::fs::read_to_string(&path).unwrap_or_default().contains(&key(200));
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        assert!(!secret || name.starts_with("changes.journal"), "{name} holds a secret");
        assert_eq!(std::fs::metadata(&path).expect("a file").mode() & 0o077, 0, "{name} is readable by others");
    }
}

#[test]
fn drift_is_repaired_or_reported_as_policy_says() {
    let hub = Namespace::new("hub");
    let (adopted, watched) = (
        PlainWireGuard::new(&hub, "wg1", 51821, "10.9.1.1/24"),
        PlainWireGuard::new(&hub, "wg2", 51822, "10.9.2.1/24"),
    );
    let mut node = Node::new(
        &hub,
        &format!(
            "[health]\nlisten = [\"127.0.0.1:8080\"]\n\
             [[interface]]\nname = \"wg0\"\nlisten_port = 51820\naddresses = [\"10.8.0.1/24\"]\n\
             [[interface.peer]]\nname = \"friend\"\npublic_key = \"{0}\"\nallowed_ips = [\"10.8.0.1/32\"]\n\
             [[interface]]\nname = \"wg1\"\nlisten_port = 51821\naddresses = [\"10.9.1.1/24\"]\nprivate_key = \"file:{1}\"\n\
             [[interface]]\nname = \"wg2\"\nlisten_port = 51822\naddresses = [\"10.9.2.1/24\"]\nprivate_key = \"file:{2}\"\n\
             drift = \"observe\"\n[[interface.peer]]\npublic_key = \"{0}\"\nallowed_ips = [\"10.9.2.2/32\"]\n",
            key(1),
            take_key(&hub, "wg1").display(),
            take_key(&hub, "wg2").display(),
        ),
    );
    hub.feed(&format!("wg set wg1 peer {} preshared-key /dev/stdin allowed-ips 10.9.1.7/32", key(7)), &key(77));
    node.start();
    assert_eq!(node.peers("wg1"), [key(7)], "an adopted interface keeps its peers");
    assert!(node.peers("wg2").is_empty(), "nothing is written where policy observes");
    let drift = node.json("drift --json");
    assert_eq!(drift["interfaces"]["wg1"]["summary"]["unknown_count"], 1, "{drift:#}");
    assert_eq!(drift["interfaces"]["wg2"]["summary"]["missing_count"], 1, "{drift:#}");

    // Policy `enforce` on our own interface: mismatches are repaired, unknown peers are removed.
    hub.run(&format!("wg set wg0 peer {} persistent-keepalive 9", key(1)));
    hub.run(&format!("wg set wg0 peer {} allowed-ips 10.8.0.9/32", key(9)));
    let drift = node.json("drift --json");
    assert_eq!(drift["interfaces"]["wg0"]["has_drift"], false, "{drift:#}");
    assert_eq!(node.peers("wg0"), [key(1)]);
    let last = drift["history"].as_array().and_then(|h| h.last()).cloned().unwrap_or_default();
    assert_eq!((&last["interface"], &last["repaired"]), (&json!("wg0"), &json!(true)), "{drift:#}");
    assert_eq!(last["summary"]["total_issues"], 2, "{drift:#}");

    // Policy `observe`: reported field by field, and repaired only on request.
    hub.feed(&format!("wg set wg2 peer {} preshared-key /dev/stdin allowed-ips 10.9.2.66/32", key(1)), &key(88));
    hub.run(&format!("wg set wg2 peer {}", key(8)));
    let seen = node.output("drift --json --exit-code");
    assert_eq!(seen.status.code(), Some(2));
    let text = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(!text.contains(&key(88)) && !text.contains(&key(77)), "no secret is shown");
    let drift: Value = serde_json::from_str(&text).expect("JSON");
    let observed = &drift["interfaces"]["wg2"];
    assert_eq!(observed["unknown_peers"][0]["public_key"], key(8).as_str());
    let fields: Vec<&str> = observed["mismatched_peers"][0]["mismatches"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|m| m["field"].as_str())
        .collect();
    assert_eq!(fields, ["allowed_ips", "preshared_key"], "{drift:#}");
    assert!(
        observed["mismatched_peers"][0]["mismatches"][1]["actual"].as_str().is_some_and(|d| d.starts_with("sha256:"))
    );
    let mut panel = node.panel();
    let served = panel.done("GET", "/v1/drift", &Value::Null);
    assert_eq!(served["interfaces"], drift["interfaces"], "drift over the API");
    assert_eq!(
        panel.ask("POST", "/v1/wg/wg2/peers", &peer(5)).map(|a| a.0),
        Some(409),
        "the API does not write there either"
    );

    let all = |dry: bool| json!({ "remove_unknown": true, "dry_run": dry });
    let would = panel.done("POST", "/v1/drift/reconcile", &all(true));
    assert_eq!((&would["updated"], would["removed"].as_array().map(Vec::len)), (&json!([key(1)]), Some(2)), "{would}");
    assert_eq!(node.peers("wg2").len(), 2, "a dry run changes nothing");
    node.tell("drift --repair");
    assert!(hub.run("wg show wg2 allowed-ips").contains("10.9.2.2/32"), "restored on request");
    assert!(hub.run("wg show wg2 preshared-keys").contains("(none)"));
    assert_eq!((node.peers("wg1"), node.peers("wg2").len()), (vec![key(7)], 2), "unknown peers are kept");
    node.tell("drift --repair --remove-unknown");
    assert_eq!((node.peers("wg1").len(), node.peers("wg2")), (0, vec![key(1)]));
    assert!(node.tell("drift").starts_with("no drift as of "));

    let metrics = hub.run("curl -sf http://127.0.0.1:8080/metrics");
    assert!(metrics.contains("spoke_drifts_total{policy=\"repaired\"} 1\n"), "{metrics}");
    assert!(!metrics.contains("spoke_drifts_total{policy=\"left_alone\"} 0\n"), "{metrics}");
    assert!(metrics.contains("spoke_drift_left_alone 0"), "{metrics}");
    let trail = node.tell("audit list");
    for text in [
        "reconcile",
        "repaired drift: wg0",
        "left drift on wg2 alone",
        "user 0",
        "repair drift: 0 added, 0 restored, 2 removed",
    ] {
        assert!(trail.contains(text), "{text}: {trail}");
    }
    drop((adopted, watched));
}

/// Writes the private key of an existing interface to a file of the node.
fn take_key(namespace: &Namespace, link: &str) -> std::path::PathBuf {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("adopted-{n}.key"));
    std::fs::write(&path, namespace.run(&format!("wg show {link} private-key"))).expect("written");
    crate::panel::private(&path);
    path
}

#[test]
fn rollback_restores_peers_from_before_the_adoption() {
    let hub = Namespace::new("hub");
    let _there = PlainWireGuard::new(&hub, "wg0", 51820, "10.8.0.1/24");
    hub.feed(&format!("wg set wg0 peer {} preshared-key /dev/stdin allowed-ips 10.8.0.7/32", key(7)), &key(77));
    hub.run(&format!("wg set wg0 peer {} allowed-ips 10.8.0.6/32 endpoint 192.0.2.6:51820", key(6)));
    let before = hub.run("wg showconf wg0");
    let mut node = Node::new(&hub, &format!("{HUB}private_key = \"file:{}\"\n", take_key(&hub, "wg0").display()));
    node.start();
    use base64::Engine as _;
    let file = format!("[Peer]\nPublicKey = {}\nAllowedIPs = 10.8.0.7/32\n", key(5));
    let file = base64::engine::general_purpose::STANDARD.encode(file);
    node.panel().done("POST", "/v1/wg/wg0/syncconf", &json!({ "config": file }));
    assert_eq!(node.peers("wg0"), [key(5)], "syncconf replaces all peers");
    node.crash();
    node.tell("config rollback");
    let sorted = |conf: &str| {
        let mut parts: Vec<String> = conf.split("\n\n").map(|p| p.trim().to_owned()).collect();
        parts.sort();
        parts
    };
    assert_eq!(sorted(&hub.run("wg showconf wg0")), sorted(&before), "endpoints and preshared keys included");
}

#[test]
fn the_socket_authorizes_by_peer_credentials() {
    let hub = Namespace::new("hub");
    let mut node = Node::new(&hub, HUB);
    node.start();
    node.panel().done("POST", "/v1/wg/wg0/peers", &peer(1));
    let (run, socket) = (node.path("run"), node.path("run/spoke.sock"));
    assert_eq!(std::fs::metadata(&socket).expect("a socket").mode() & 0o777, 0o660);
    // As in the unit: directory and socket belong to a group.
    for path in [&run, &socket] {
        std::os::unix::fs::chown(path, None, Some(4242)).expect("given to the group");
    }
    std::fs::set_permissions(&run, std::os::unix::fs::PermissionsExt::from_mode(0o750)).expect("changed");
    let ask = |who: &str, what: &str| {
        let output = node.command_as(who, what).output().expect("spoke runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let member = "setpriv --reuid 1234 --regid 4242 --clear-groups";
    for read in ["status", "drift", "config history", "config diff 0 1", "audit list"] {
        assert_eq!(ask(member, read), (Some(0), String::new()), "{read}");
    }
    for change in ["config rollback", "config confirm", "drift --repair"] {
        let (code, error) = ask(member, change);
        assert!(code == Some(1) && error.contains("user 1234 has read access only"), "{change}: {error}");
    }
    assert_eq!(node.peers("wg0"), [key(1)]);
    let (code, error) = ask("setpriv --reuid 1234 --regid 1234 --clear-groups", "status");
    assert!(code == Some(1) && error.contains("not allowed to open"), "{error}");
    assert_eq!(ask("", "config rollback").0, Some(0), "root may");
    assert!(node.peers("wg0").is_empty());
    let trail = node.tell("audit list");
    assert!(trail.contains("user 0") && trail.contains("roll back to generation 0: - wg0 peer"), "{trail}");
    assert!(trail.contains("user 1234") && trail.contains("has read access only"), "{trail}");
    assert!(node.tell("audit verify").contains("entries hold; head"));
}

/// A file system on a loop device, for power cuts.
struct Flash<'a> {
    at: &'a Path,
    image: tempfile::NamedTempFile,
}

impl<'a> Flash<'a> {
    fn new(at: &'a Path) -> Self {
        let image = tempfile::NamedTempFile::new().expect("an image");
        image.as_file().set_len(32 << 20).expect("room");
        sh(&format!("mkfs.ext4 -q -E nodiscard {}", image.path().display()));
        std::fs::create_dir_all(at).expect("a directory");
        let flash = Self { at, image };
        flash.mount();
        flash
    }

    fn mount(&self) {
        sh(&format!("mount -o loop,commit=1 {} {}", self.image.path().display(), self.at.display()));
        std::fs::set_permissions(self.at, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("changed");
    }

    /// Loses what is not on the medium, as a power cut does (EXT4_IOC_SHUTDOWN without flushing the journal).
    fn cut(&self) {
        let ioctl = "use Fcntl; sysopen F, $ARGV[0], O_RDONLY or die $!; my $how = pack('L', 2); \
                     ioctl F, 0x8004587d, $how or die $!";
        let status = Command::new("perl").args(["-e", ioctl]).arg(self.at).status().expect("perl");
        assert!(status.success());
    }

    /// Mounts the medium as after a boot. A copy: processes of other tests may keep the dead file system alive in their mount
    /// namespaces.
    fn remount(&mut self) {
        sh(&format!("umount -l {}", self.at.display()));
        let image = tempfile::NamedTempFile::new().expect("an image");
        sh(&format!("cp --sparse=always {} {}", self.image.path().display(), image.path().display()));
        self.image = image;
        self.mount();
    }
}

impl Drop for Flash<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.at).status();
    }
}

fn sh(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn power_cuts_lose_no_acknowledged_change() {
    let hub = Namespace::new("hub");
    let mut node = Node::new(&hub, HUB);
    let state = node.path("state");
    let mut flash = Flash::new(&state);
    node.start();
    let mut answered: u8 = 0;
    for round in 0..6u64 {
        // The cut happens while a panel adds peers, some time after the first of them is acknowledged.
        let (acknowledged, first) = std::sync::mpsc::channel();
        let cut = std::thread::scope(|scope| {
            let flash = &flash;
            let cut = scope.spawn(move || {
                let _ = first.recv_timeout(Duration::from_secs(60));
                let moment = Duration::from_millis(50 + 97 * round);
                #[expect(clippy::disallowed_methods, reason = "a power cut at an arbitrary time")]
                std::thread::sleep(moment);
                flash.cut();
            });
            let mut panel = node.panel();
            for n in answered + 1..=250 {
                match panel.ask("POST", "/v1/wg/wg0/peers", &peer(n)) {
                    Some((200, _)) => {
                        answered = n;
                        let _ = acknowledged.send(());
                    }
                    _ => break,
                }
            }
            cut.join()
        });
        cut.expect("the cut");
        node.kill();
        // A power cut also loses the interfaces.
        hub.ip("link del wg0");
        flash.remount();
        node.start();
        let have = node.peers("wg0").len();
        assert!(have == usize::from(answered) || have == usize::from(answered) + 1, "{have} of {answered} answered");
        let current = node.json("config history --json")[0]["generation"].as_u64().unwrap_or_default();
        assert_eq!(current, have as u64, "one generation per peer");
        assert!(node.tell("audit verify").contains("entries hold"));
        answered = u8::try_from(have).expect("a few");
    }
    assert!(answered > 5, "few changes were acknowledged: {answered}");
    let previous = usize::from(answered) - 1;
    node.tell("config rollback");
    assert_eq!(node.peers("wg0").len(), previous, "a rollback goes back one generation");
    node.kill();
}

fn mount(arguments: &[&str]) {
    assert!(Command::new("mount").args(arguments).status().expect("mount").success(), "{arguments:?}");
}

/// The disk takes no write of the journal: the revocation is in force, and stored as soon as it can be.
#[test]
fn revocation_that_cannot_be_stored_is_in_force_and_stored_later() {
    let hub = Namespace::new("hub");
    let mut node = Node::new(&hub, HUB);
    // What is mounted in it later appears in the mount namespace of the process as well.
    let state = node.path("state").display().to_string();
    std::fs::create_dir(&state).expect("a directory");
    mount(&["-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", &state]);
    mount(&["--make-shared", &state]);
    node.start();
    for n in [1, 2] {
        node.panel().done("POST", "/v1/wg/wg0/peers", &peer(n));
    }
    node.kill();
    let journal = node.path("state/changes.journal").display().to_string();
    mount(&["--bind", &journal, &journal]);
    mount(&["-o", "remount,bind,ro", &journal]);
    node.start();
    let (status, reply) =
        node.panel().ask("DELETE", &format!("/v1/wg/wg0/peers/{}", key(1)), &Value::Null).expect("a response");
    assert!(status >= 500, "{status} {reply}");
    assert_eq!(node.peers("wg0"), [key(2)], "access is taken back whatever the disk does");
    assert!(Command::new("umount").arg(&journal).status().expect("umount").success());
    let log = || std::fs::read_to_string(node.path("log")).unwrap_or_default();
    wait_until_every(Duration::from_millis(500), Duration::from_secs(120), "the revocation to be stored", || {
        log().contains("revocation stored")
    });
    node.kill();
    hub.ip("link del wg0");
    node.start();
    assert_eq!(node.peers("wg0"), [key(2)], "and it outlives a restart");
}
