//! The command line: output on stdout and stderr, and exit codes.
#![allow(clippy::unwrap_used)]
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn spoke(dir: &Path, args: &[&str]) -> Output {
    spoke_with(dir, args, "")
}

fn spoke_with(dir: &Path, args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_spoke"))
        .args(args)
        .current_dir(dir)
        .env_remove("CREDENTIALS_DIRECTORY")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not read its stdin may have exited.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn out(o: &Output) -> String {
    String::from_utf8(o.stdout.clone()).unwrap()
}

fn err(o: &Output) -> String {
    String::from_utf8(o.stderr.clone()).unwrap()
}

/// What standard output has in the version of the shape that is documented.
fn document(o: &Output) -> serde_json::Value {
    let document: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap_or_default();
    assert_eq!(document["schema"], 1, "{o:?}");
    document
}

fn items(o: &Output) -> Vec<serde_json::Value> {
    document(o)["items"].as_array().unwrap().clone()
}

fn config(dir: &Path, text: &str) -> String {
    let path = dir.join("spoke.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn base(dir: &Path) -> String {
    let d = dir.display();
    format!(
        "[node]\nstate_dir = \"{d}/state\"\nruntime_dir = \"{d}/run\"\n[[interface]]\nname = \"wg0\"\naddresses = [\"10.8.0.2/24\"]\n"
    )
}

#[test]
fn check_prints_all_faults_and_exits_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), "[[interface]]\nname = \"a-name-of-17-chars\"\nmtu = 1\n[nodes]\n");
    let o = spoke(dir.path(), &["check", "--config", &file]);
    assert_eq!(o.status.code(), Some(2));
    let printed = err(&o);
    for key in ["interface[0].name", "interface[0].mtu", "nodes: unknown key; did you mean `node`?", "3 faults"] {
        assert!(printed.contains(key), "{key}: {printed}");
    }
    assert!(out(&o).is_empty());
}

/// Common mistakes, one at a time.
#[test]
fn bad_input_is_named_with_its_key_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let hub =
        |text: &str| format!("[[interface]]\nname = \"wg0\"\n[uplink]\ninterface = \"wg0\"\n[[uplink.hub]]\n{text}\n");
    let link = |text: &str| format!("[[interface]]\nname = \"wg0\"\n{text}\n");
    let peer = |key: &str, nets: &str| format!("[[interface.peer]]\npublic_key = \"{key}\"\nallowed_ips = [{nets}]\n");
    let (a, b) = ("9s4Zq0QFzPNW7vYkFGcGEJtVXWd3BBJ3zOqDLE3gIyM=", "gL9MIhpbgYcBdJHJ9cdTLoCzRXOg0tDmpmFmKTN6FlA=");
    let hub_rest = "endpoint = \"192.0.2.1:51820\"\naddress = \"10.8.0.1\"";
    for (what, text, key, remedy) in [
        ("an unknown key", link("listen_prot = 1"), "interface[0].listen_prot", "did you mean `listen_port`?"),
        (
            "wrong base64",
            link(&peer("?s4Zq0QFzPNW7vYkFGcGEJtVXWd3BBJ3zOqDLE3gIyM=", "")),
            "interface[0].peer[0].public_key",
            "44 characters of base64",
        ),
        (
            "a key too short",
            link(&peer("9s4Zq0QFzPNW7vYkFGcG", "")),
            "interface[0].peer[0].public_key",
            "44 characters of base64",
        ),
        (
            "host bits",
            link(&peer(a, "\"10.9.0.5/24\"")),
            "interface[0].peer[0].allowed_ips[0]",
            "the network is 10.9.0.0/24",
        ),
        (
            "an overlap",
            link(&(peer(a, "\"10.9.0.0/24\"") + &peer(b, "\"10.9.0.7/32\""))),
            "interface[0].peer[1].allowed_ips",
            "give each address to one peer",
        ),
        ("a hub without key", hub(hub_rest), "uplink.hub[0].public_key", "add public_key"),
        ("a port out of range", link("listen_port = 65536"), "interface[0].listen_port", "from 1 to 65535"),
        (
            "a port out of range in an endpoint",
            hub(&format!("public_key = \"{a}\"\nendpoint = \"192.0.2.1:70000\"\naddress = \"10.8.0.1\"")),
            "uplink.hub[0].endpoint",
            "HOST:PORT",
        ),
        (
            "an MTU below IPv6's",
            link("mtu = 1279\naddresses = [\"10.8.0.2/24\", \"fd00::2/64\"]"),
            "interface[0].mtu",
            "write 1280 or more",
        ),
        (
            "a password where updates come from",
            "[update]\nsource = \"https://spoke:hunter2@updates.example.net/edge\"\n".to_owned(),
            "update.source",
            "remove what is before the @",
        ),
        (
            "a name of 16 characters",
            "[[interface]]\nname = \"wg-sixteen-chars\"\n".to_owned(),
            "interface[0].name",
            "1 to 15 characters",
        ),
        (
            "a name like an option",
            "[[interface]]\nname = \"-4\"\n".to_owned(),
            "interface[0].name",
            "do not begin with -",
        ),
    ] {
        let file = config(dir.path(), &text);
        let o = spoke(dir.path(), &["check", "--config", &file]);
        let printed = err(&o);
        assert_eq!(o.status.code(), Some(2), "{what}: {printed}");
        assert!(printed.contains(&format!("{file}:")) && printed.contains(&format!(": {key}")), "{what}: {printed}");
        assert!(printed.contains(remedy), "{what}: {printed}");
        assert!(printed.contains("1 fault"), "{what}: one fault only: {printed}");
        assert!(!printed.contains("hunter2") && out(&o).is_empty(), "no secret is printed: {printed}");
        // `run` prints the same and exits.
        let run = spoke(dir.path(), &["run", "--config", &file]);
        assert!(run.status.code() == Some(2) && err(&run).contains(key), "{what}: {}", err(&run));
    }
}

#[test]
fn a_variable_that_is_not_utf8_is_named() {
    use std::os::unix::ffi::OsStrExt as _;
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), &base(dir.path()));
    let broken = std::ffi::OsStr::from_bytes(b"edge-\xff");
    for (name, value, says) in [
        (std::ffi::OsStr::new("SPOKE__NODE__ID"), broken, "SPOKE__NODE__ID: its value is not UTF-8"),
        (std::ffi::OsStr::from_bytes(b"SPOKE__NODE__\xff"), std::ffi::OsStr::new("edge"), "its name is not UTF-8"),
    ] {
        for command in ["check", "run"] {
            let mut spoke = Command::new(env!("CARGO_BIN_EXE_spoke"));
            let o = spoke.args([command, "--config", &file]).env(name, value).output().unwrap();
            assert_eq!(o.status.code(), Some(2), "{}", err(&o));
            assert!(err(&o).contains(says) && out(&o).is_empty(), "{}", err(&o));
        }
    }
}

#[test]
fn check_prints_the_effective_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), &base(dir.path()));
    let o = spoke(dir.path(), &["check", "--config", &file]);
    assert_eq!(o.status.code(), Some(0), "{}", err(&o));
    assert!(out(&o).contains("listen = [\"127.0.0.1:8080\"]"), "{}", out(&o));
}

#[test]
fn check_opens_every_file_that_is_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path().display().to_string();
    let state = dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let write = |name: &str, text: &str, mode| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let text = format!(
        "[node]\nid = \"edge-1\"\nstate_dir = \"{d}/state\"\nruntime_dir = \"{d}/run\"\n\
         [agent]\nenabled = true\nsecret = \"file:{d}/secret\"\n\
         [grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 1\n\
         endpoints = [\"file:{d}/rpc\", \"https://rpc.example.net\"]\n\
         [control]\nurl = \"https://control.example.net\"\ntoken = \"file:{d}/token\"\nidentity = \"file:{d}/identity\"\nca = \"{d}/ca.pem\"\n\
         [[interface]]\nname = \"wg0\"\n[[interface.peer]]\npublic_key = \"{key}\"\nallowed_ips = [\"10.0.0.1/32\"]\n\
         preshared_key = \"file:{d}/psk\"\n"
    );
    let file = config(dir.path(), &text);
    write("secret", "0123456789012345678901234567890123456789", 0o644);
    write("identity", "no key", 0o600);
    let o = spoke(dir.path(), &["check", "--config", &file]);
    assert_eq!(o.status.code(), Some(2), "{}", err(&o));
    for part in [
        "preshared key: ",
        "/psk is missing",
        "control.token: ",
        "control.ca: ",
        "agent: ",
        "chmod 600",
        "grants.endpoints file:",
        "control.identity: ",
        "6 faults",
    ] {
        assert!(err(&o).contains(part), "{part}: {}", err(&o));
    }
    let o = spoke(dir.path(), &["check", "--text-only", "--config", &file]);
    assert_eq!(o.status.code(), Some(0), "{}", err(&o));
}

#[test]
fn exit_code_2_is_a_difference_only() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), &base(dir.path()));
    for args in [&["drift", "--exit-code"][..], &["plan", "--exit-code", "--config", "/nonexistent"]] {
        let mut all = args.to_vec();
        if args.len() == 2 {
            all.extend(["--config", file.as_str()]);
        }
        assert_eq!(spoke(dir.path(), &all).status.code(), Some(1), "{all:?}: no supervisor, no file");
    }
}

#[test]
fn unknown_commands_exit_with_2() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["frobnicate"][..], &["status", "--no-such"], &[], &["check", "--config", "/nonexistent"]] {
        assert_eq!(spoke(dir.path(), args).status.code(), Some(2), "{args:?}");
    }
    let version = spoke(dir.path(), &["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert!(out(&version).starts_with(concat!("spoke ", env!("CARGO_PKG_VERSION"))), "{}", out(&version));
}

#[test]
fn a_generated_key_has_a_public_key() {
    let dir = tempfile::tempdir().unwrap();
    let private = out(&spoke(dir.path(), &["key", "generate"]));
    assert_eq!(private.len(), 45);
    let public = spoke_with(dir.path(), &["key", "public"], &private);
    assert_eq!((public.status.code(), public.stdout.len()), (Some(0), 45), "{}", err(&public));
    let bad = spoke_with(dir.path(), &["key", "public"], "not a key\n");
    assert_eq!(bad.status.code(), Some(2));
    assert!(err(&bad).contains("44 characters"), "{}", err(&bad));
}

#[test]
fn fingerprint_of_the_identity_is_printed_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), &base(dir.path()));
    std::fs::create_dir(dir.path().join("state")).unwrap();
    let print = || out(&spoke(dir.path(), &["key", "fingerprint", "--config", &file]));
    let first = print();
    assert!(first.starts_with("sha256:") && first.trim().len() == 71, "{first}");
    assert!(dir.path().join("state/identity.key").exists());
    assert_eq!(print(), first);
}

#[test]
fn key_file_readable_by_others_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), &base(dir.path()));
    std::fs::create_dir(dir.path().join("state")).unwrap();
    let key = dir.path().join("state/wg0.key");
    std::fs::write(&key, out(&spoke(dir.path(), &["key", "generate"]))).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let before = std::fs::read(&key).unwrap();
    let o = spoke(dir.path(), &["key", "public", "--interface", "wg0", "--config", &file]);
    assert_eq!(o.status.code(), Some(1));
    let error = err(&o);
    assert!(error.contains("chmod 600") && error.contains("wg0.key"), "{error}");
    assert_eq!(std::fs::read(&key).unwrap(), before);
    assert!(!error.contains(std::str::from_utf8(&before).unwrap().trim()), "the key is not printed");
}

#[test]
fn status_without_a_supervisor_names_the_cause() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), &base(dir.path()));
    let o = spoke(dir.path(), &["status", "--config", &file]);
    assert_eq!(o.status.code(), Some(1));
    assert!(err(&o).contains("is it running?"), "{}", err(&o));
}

#[test]
fn doctor_names_a_remedy_for_each_fault() {
    let dir = tempfile::tempdir().unwrap();
    let hub = "[uplink]\ninterface = \"wg0\"\n[[uplink.hub]]\npublic_key = \"9s4Zq0QFzPNW7vYkFGcGEJtVXWd3BBJ3zOqDLE3gIyM=\"\nendpoint = \"hub.invalid:51820\"\naddress = \"10.8.0.1\"\n";
    let file = config(dir.path(), &(base(dir.path()) + hub));
    let o = spoke(dir.path(), &["doctor", "--json", "--config", &file]);
    let findings = items(&o);
    let dns = findings.iter().find(|f| f["what"] == "DNS hub.invalid").expect("a finding for the name");
    assert_eq!(dns["level"], "fail");
    assert!(dns["remedy"].as_str().unwrap().contains("resolv.conf"), "{dns}");
    assert!(findings.iter().all(|f| f["level"] == "ok" || f["remedy"].is_string()), "{findings:?}");
    assert_eq!(o.status.code(), Some(1));
}

/// Mistakes that need no kernel: each is a failure with its cause and its remedy, and the exit code is 1.
#[test]
fn doctor_names_the_mistakes_in_files_and_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path().display().to_string();
    let write = |name: &str, text: &[u8], mode| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let control = |url: &str, token: &str| {
        let pin = format!("sha256:{}", "0".repeat(64));
        let control = format!("[control]\nurl = \"{url}\"\npin = \"{pin}\"\ntoken = \"file:{d}/{token}\"\n");
        base(dir.path()).replace("[node]\n", "[node]\nid = \"edge-1\"\n") + &control
    };
    let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = format!("https://{refused}");
    write("token", b"spk_1_2\n", 0o600);
    write("open", b"spk_1_2\n", 0o644);
    write("garbage", &[0xff, 0xfe], 0o600);
    write("file", b"", 0o600);
    let mut missed = Vec::new();
    let grants = "[grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 1\nendpoints = [\"http://127.0.0.1:9\"]\n";
    for (what, text, cause, remedy) in [
        ("no supervisor", base(dir.path()), "no supervisor answers", "systemctl start spoke"),
        ("a syntax error", "[node\n".to_owned(), "spoke.toml:1: is not TOML", "spoke check"),
        ("an unknown key", base(dir.path()) + "[uplnik]\n", "uplnik: unknown key", "spoke check"),
        ("no token file", control(&refused, "none"), "none is missing", "token create"),
        ("an open token", control(&refused, "open"), "can be read by others", "mode 0600"),
        ("a damaged token", control(&refused, "garbage"), "is not text", "token create"),
        ("no control plane", control(&refused, "token"), "refused", "check control.url"),
        ("no such control plane", control("https://control.invalid", "token"), "look", "check control.url"),
        ("no endpoint", base(dir.path()) + grants, "refused", "check the URL"),
        (
            "a state directory that is a file",
            base(dir.path()).replace("/state", "/file"),
            "is not a directory",
            "make it a directory",
        ),
    ] {
        let file = config(dir.path(), &text);
        let o = spoke(dir.path(), &["doctor", "--json", "--config", &file]);
        let findings = items(&o);
        let has = |f: &serde_json::Value, key: &str, part: &str| f[key].as_str().unwrap_or_default().contains(part);
        let named =
            findings.iter().any(|f| f["level"] == "fail" && has(f, "detail", cause) && has(f, "remedy", remedy));
        if !named || o.status.code() != Some(1) {
            missed.push(format!("{what}: {findings:#?}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// A clock that is behind the last stamp, or more than a day from where it was in this boot.
#[test]
fn doctor_names_a_clock_that_is_wrong_by_more_than_a_day() {
    use spoke_model::clock::{BootStamp, Stamp};
    use spoke_model::time::Wall;
    use spoke_sys::clock::{Clock as _, SystemClock, boot_id};
    use spoke_sys::disk::Document;
    let (boot, at, wall) = (boot_id().unwrap(), SystemClock.now(), SystemClock.wall());
    let days = 3 * 86_400;
    for (name, cause) in [("clock.json", "is past already"), ("clock-boot.json", "more than a day")] {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        if name == "clock.json" {
            let stamp = Stamp { wall: Wall(wall.secs() + days), trusted: true, boot: boot.clone(), at };
            Document::new(state.join(name), 1).store(&stamp).unwrap();
        } else {
            let start = BootStamp { boot: boot.clone(), at, wall: Wall(wall.secs() - days), restored: true };
            Document::new(state.join(name), 1).store(&start).unwrap();
        }
        let file = config(dir.path(), &base(dir.path()));
        let o = spoke(dir.path(), &["doctor", "--json", "--config", &file]);
        let findings = items(&o);
        let clock = findings.iter().find(|f| f["what"] == "clock").expect("a finding");
        assert!(clock["level"] == "fail" && clock["detail"].as_str().unwrap().contains(cause), "{name}: {clock}");
        assert!(clock["remedy"].as_str().unwrap().contains("spoke clock restore") && o.status.code() == Some(1));
    }
}

/// A response of a server; `None` without one.
fn get(port: u16, path: &str) -> Option<String> {
    use std::io::Read as _;
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
#[expect(clippy::disallowed_methods, reason = "waits for a real program")]
fn an_unprovisioned_device_reports_its_stage_and_faults() {
    let dir = tempfile::tempdir().unwrap();
    let (boot, state) = (dir.path().join("boot"), dir.path().join("state"));
    for d in [&boot, &state.join("config")] {
        std::fs::create_dir_all(d).unwrap();
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child = Command::new(env!("CARGO_BIN_EXE_spoke"))
        .args(["provision", "--boot", boot.to_str().unwrap(), "--state", state.to_str().unwrap()])
        .env("SPOKE__HEALTH__LISTEN", format!("127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let await_health = |text: &str| {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(120);
        while !get(port, "/health").is_some_and(|a| a.contains(text)) {
            assert!(std::time::Instant::now() < until, "timeout: {text}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    };
    await_health(r#""stage":"preconfigured""#);
    assert!(get(port, "/ready").unwrap().contains(" 503 "));
    std::fs::write(boot.join("spoke.toml"), "[node]\nid = \"bad id\"\n").unwrap();
    await_health("node.id");
    let good = "[node]\nid = \"good\"\n[[interface]]\nname = \"wg0\"\naddresses = [\"10.8.0.2/24\"]\n";
    std::fs::write(boot.join("spoke.toml"), good).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(std::fs::read_to_string(state.join("config/spoke.toml")).unwrap().contains("good"));
    assert_eq!(get(port, "/health"), None, "the address is free for the supervisor");
}

#[test]
fn wg_quick_file_is_imported_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let secret = "9s4Zq0QFzPNW7vYkFGcGEJtVXWd3BBJ3zOqDLE3gIyM=";
    let conf = format!(
        "[Interface]\nPrivateKey = {secret}\nAddress = 10.8.0.1/24\nListenPort = 51820\nPostUp = iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE\nPreDown = \n\n[Peer]\nPublicKey = gL9MIhpbgYcBdJHJ9cdTLoCzRXOg0tDmpmFmKTN6FlA=\nPresharedKey = {secret}\nAllowedIPs = 10.8.0.2/24\n"
    );
    std::fs::write(at("wg0.conf"), &conf).unwrap();
    for command in [&["check"][..], &["plan"], &["run"]] {
        let o = spoke(dir.path(), &[command, &["--config", &at("wg0.conf")]].concat());
        let text = err(&o);
        assert!(o.status.code() == Some(2) && text.contains("looks like a wg-quick file"), "{command:?}: {text}");
        assert!(text.contains("spoke import") && !text.contains(secret), "{text}");
    }
    let (target, keys) = (at("new.toml"), at("keys"));
    let import = ["import", &at("wg0.conf"), "--config", &target, "--keys", &keys];
    let o = spoke(dir.path(), &import);
    let printed = out(&o);
    assert_eq!(o.status.code(), Some(0), "{}", err(&o));
    for part in ["line 5", "NAT", "AllowedIPs 10.8.0.2/24 is taken as 10.8.0.0/24", "wg-quick down wg0"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    assert!(!printed.contains(secret) && !std::fs::read_to_string(&target).unwrap().contains(secret));
    for file in ["keys/wg0.key", "keys/wg0-1.psk"] {
        assert_eq!(std::fs::read_to_string(at(file)).unwrap().trim(), secret);
        assert_eq!(std::fs::metadata(at(file)).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let o = spoke(dir.path(), &["check", "--text-only", "--config", &target]);
    assert_eq!(o.status.code(), Some(0), "{}", err(&o));
    std::fs::write(&target, "# mine\n").unwrap();
    let o = spoke(dir.path(), &import);
    assert!(o.status.code() == Some(2) && err(&o).contains("nothing is written"), "{}", err(&o));
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "# mine\n");
    let o = spoke(dir.path(), &[&import[..], &["--force"]].concat());
    assert!(o.status.code() == Some(0) && std::fs::read_to_string(&target).unwrap().contains("[[interface]]"));
}

#[test]
fn every_answer_and_error_is_json_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), &base(dir.path()));
    let run = |args: &[&str]| spoke(dir.path(), &[&["--json", "--config", &file], args].concat());
    let good = document(&run(&["check"]));
    assert!(good["valid"] == true && good["config"]["interface"][0]["name"] == "wg0", "{good}");
    assert_eq!(document(&run(&["clock", "show"]))["believed"], "no");
    let key = document(&run(&["key", "generate"]))["private_key"].as_str().unwrap().to_owned();
    let public = spoke_with(dir.path(), &["key", "public", "--json"], &key);
    assert_eq!(document(&public)["public_key"].as_str().unwrap().len(), 44);
    assert_eq!(document(&run(&["audit", "verify"]))["entries"], "0");
    std::fs::write(dir.path().join("wg7.conf"), format!("[Interface]\nPrivateKey = {key}\nAddress = 10.7.0.2/24\n"))
        .unwrap();
    let new = dir.path().join("new.toml").display().to_string();
    let keys = dir.path().join("keys").display().to_string();
    let imported = spoke(dir.path(), &["import", "wg7.conf", "--json", "--config", &new, "--keys", &keys]);
    assert_eq!(document(&imported)["written"].as_array().unwrap().len(), 2, "{imported:?}");

    let error = |o: &Output, code: i32| {
        assert_eq!(o.status.code(), Some(code), "{o:?}");
        let error: serde_json::Value = serde_json::from_slice(&o.stderr).unwrap_or_default();
        assert!(error["schema"] == 1 && error["exit_code"] == code && o.stdout.is_empty(), "{o:?}");
        error["error"].as_str().unwrap().to_owned()
    };
    for args in
        [&["status"][..], &["drift"], &["config", "history"], &["reload"], &["grants", "list"], &["audit", "list"]]
    {
        assert!(error(&run(args), 1).contains("no supervisor answers"), "{args:?}");
    }
    assert!(error(&run(&["config", "diff", "a", "b"]), 2).contains("invalid value"));
    assert!(error(&run(&["status", "--no-such-flag"]), 2).contains("unexpected argument"));

    config(dir.path(), "[[interface]]\nname = \"wg0\"\nmtu = 1\n[nodes]\n");
    let faulty = run(&["check"]);
    assert_eq!((faulty.status.code(), faulty.stderr.len()), (Some(2), 0), "{faulty:?}");
    let found = document(&faulty);
    assert!(found["valid"] == false && found["faults"].as_array().unwrap().len() == 2, "{found}");
    assert_eq!(found["faults"][0]["key"], "interface[0].mtu", "{found}");
    assert!(found["faults"][0]["file"].as_str().unwrap().ends_with("spoke.toml:3"), "{found}");
}

/// The trail, the clock and the other slot are not what the fault is about.
#[test]
fn faulty_configuration_still_names_its_directories() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::fs::write(state.join("audit.log"), "no entry\n").unwrap();
    let file = config(dir.path(), &(base(dir.path()) + "nonsense = \n"));
    let o = spoke(dir.path(), &["audit", "verify", "--config", &file]);
    assert!(o.status.code() == Some(1) && err(&o).contains("damaged"), "{o:?}");
    assert_eq!(spoke(dir.path(), &["clock", "show", "--config", &file]).status.code(), Some(0));
}
