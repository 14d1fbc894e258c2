//! The command line: what the first run prints and where following it leads; every command as a table, as JSON, and asked twice.
use crate::db::{Kind, fresh};
use crate::serving::{OPERATOR, Serving, Setup, plain, run, until};
use spoke_sys::http::{Http as _, HttpsClient, Trust};
use std::process::Stdio;
use tokio::process::Command;

crate::on_both![what_the_first_run_prints_enrols_a_device, every_command_speaks_to_people_and_to_scripts];

const STATE: &str = "/api/v1/nodes/self/state";

/// Follows the printed instructions to the letter.
async fn what_the_first_run_prints_enrols_a_device(kind: Kind) {
    let serving = Serving::start(fresh(kind).await).await;
    let said = until("the instructions", async || {
        let said = serving.said();
        said.contains("token = ").then_some(said)
    })
    .await;
    let commands: Vec<&str> = said.lines().filter_map(|l| l.trim().strip_prefix("spoke-control ")).collect();
    assert_eq!(commands.len(), 3, "{said}");
    let mut tokens = Vec::new();
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        assert_eq!(words[0], "--config", "with the configuration it was started with");
        let (code, answer) = run(std::path::Path::new(words[1]), &words[2..]).await;
        assert_eq!(code, 0, "{command}: {answer}");
        tokens.push(answer.trim().to_owned());
    }
    let section = &said[said.find("[control]").unwrap()..];
    let value = |key: &str| {
        let line = section.lines().find_map(|l| l.trim().strip_prefix(&format!("{key} = ")));
        line.unwrap_or_else(|| panic!("{key} in {section}")).trim_matches('"').to_owned()
    };
    // The printed section is one that a device takes.
    let text = format!(
        "[node]\nid = \"edge-1\"\n{}",
        section.lines().take_while(|l| !l.is_empty()).collect::<Vec<_>>().join("\n")
    );
    let config = spoke_config::Config::from_text(Some(("spoke.toml", &text)), []).unwrap().control.unwrap();
    assert_eq!(config.url.0.port, serving.port);
    assert_eq!(config.pin.unwrap().0, serving.pin, "the pin is the certificate's");
    assert!(value("token").starts_with("file:/"));
    let mut edge = serving.device("edge-1");
    edge.http = HttpsClient::new(config.url.0.clone(), &Trust::Pin(config.pin.unwrap().0)).unwrap();
    assert_eq!(serving.device("hub-1").enrol(&tokens[1]).await.0, 200);
    assert_eq!(edge.enrol(&tokens[2]).await.0, 200);
    assert_eq!(edge.ask("GET", &format!("{STATE}?after=0"), "").await.0, 200);
}

/// What a person at a terminal types, and what comes of it.
async fn typed(serving: &Serving, args: &str, answer: &str) -> (i32, String) {
    let config = serving.dir.path().join("spoke-control.toml");
    let line = format!("{} --config {} {args}", env!("CARGO_BIN_EXE_spoke-control"), config.display());
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    use tokio::io::AsyncWriteExt as _;
    child.stdin.take().unwrap().write_all(format!("{answer}\n").as_bytes()).await.unwrap();
    let out = child.wait_with_output().await.unwrap();
    (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&out.stdout).into_owned())
}

async fn every_command_speaks_to_people_and_to_scripts(kind: Kind) {
    let serving = Serving::start(fresh(kind).await).await;
    let s = &serving;
    let created = s
        .done(&["network", "create", "field", "--pool4", "10.8.0.0/24", "--pool6", "fd00:8::/64", "--approval", "true"])
        .await;
    assert!(created.contains("NETWORK") && created.contains("10.8.0.0/24,fd00:8::/64"), "{created}");
    let set = s.json(&["network", "set", "field", "--mtu", "1380", "--dns", "10.8.0.53", "--quarantine", "2d"]).await;
    assert_eq!((&set[0]["mtu"], &set[0]["quarantine_secs"]), (&1380.into(), &172_800.into()), "{set}");
    assert_eq!(s.json(&["network", "list"]).await[0]["name"], "field");
    assert!(s.done(&["network", "list"]).await.contains("0 of 254"));
    for (args, part) in [
        (&["network", "create", "Bad Name", "--pool4", "10.9.0.0/24"][..], "a-z 0-9"),
        (&["network", "create", "field", "--pool4", "10.9.0.0/24"], "already"),
        (&["network", "set", "nowhere", "--mtu", "1400"], "nowhere"),
        (&["network", "set", "field", "--access", "nft"], "[grants]"),
        (&["network", "set", "field", "--quarantine", "soon"], "duration"),
        (&["token", "create", "--network", "nowhere"], "nowhere"),
        (&["token", "create", "--network", "field", "--uses", "0"], "1 to 1000000"),
        (&["token", "revoke", "000000000000", "--yes"], "no token"),
        (&["node", "show", "nobody"], "nobody"),
        (&["node", "approve", "nobody"], "nobody"),
        (&["node", "remove", "nobody", "--yes"], "nobody"),
        (&["node", "list", "--state", "lost"], "expected, pending"),
        (&["node", "override", "nobody", "--mtu", "9"], "576"),
        (&["hub", "add", "hub-9", "--network", "field", "--endpoint", "h:1", "--address", "10.9.0.1"], "10.9.0.1"),
    ] {
        let (code, said) = s.cli(args).await;
        assert!(code == 2 && said.contains(part), "{args:?}: {code} {said}");
    }

    let hub = s.json(&["hub", "add", "hub-1", "--network", "field", "--endpoint", "h.example.net:51820"]).await;
    assert_eq!(hub["pin"].as_str().map(|p| p.len()), Some(71));
    assert_eq!(s.device("hub-1").enrol(hub["token"].as_str().unwrap()).await.0, 200);
    assert!(s.done(&["hub", "list"]).await.contains("h") && s.json(&["hub", "list"]).await[0]["role"] == "hub");

    let made =
        s.json(&["token", "create", "--network", "field", "--uses", "2", "--expires-in", "1h", "--note", "a"]).await;
    let (id, token) = (made["id"].as_str().unwrap(), made["token"].as_str().unwrap());
    let listed = s.json(&["token", "list"]).await;
    let entry = listed.as_array().unwrap().iter().find(|t| t["id"] == id).unwrap();
    assert_eq!((&entry["max_uses"], &entry["note"]), (&2.into(), &"a".into()));
    assert!(entry["expires_at"].is_string() && !listed.to_string().contains(token));
    assert!(s.done(&["token", "list"]).await.contains("0/2"));

    // Approval: the device asks, waits, and is let in.
    let mut edge = s.device("edge-1");
    let (status, answer) = edge.enrol(token).await;
    assert_eq!((status, answer["status"].as_str()), (202, Some("pending")), "{answer}");
    assert_eq!(edge.ask("GET", &format!("{STATE}?after=0"), "").await.1["detail"]["code"], "pending");
    assert!(s.done(&["node", "list", "--state", "pending"]).await.contains("edge-1"));
    assert_eq!(s.json(&["node", "approve", "edge-1"]).await["state"], "active");
    let (status, answer) = edge.enrol(token).await;
    assert_eq!((status, answer["status"].as_str()), (200, Some("success")), "{answer}");
    assert!(answer["config"]["assigned_ip6"].as_str().unwrap().starts_with("fd00:8::"), "{answer}");

    assert_eq!(s.json(&["node", "rename", "edge-1", "by the door"]).await["label"], "by the door");
    let over =
        ["node", "override", "edge-1", "--mtu", "1300", "--keepalive", "0", "--endpoint-allowed-ip", "10.0.0.0/8"];
    let over = s.json(&over).await;
    assert_eq!((&over["override_mtu"], &over["override_keepalive"]), (&1300.into(), &0.into()), "{over}");
    assert_eq!(s.json(&["node", "isolate", "edge-1"]).await["isolated"], true);
    assert_eq!(s.json(&["node", "isolate", "edge-1", "--off"]).await["isolated"], false);
    let shown = s.done(&["node", "show", "edge-1"]).await;
    for part in ["by the door", "mtu 1300, keepalive 0", "10.0.0.0/8", "1 cpu, 64 MB", "10.8.0."] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert_eq!(s.json(&["node", "show", "edge-1"]).await["capabilities"]["memory_mb"], 64);

    // What cannot be taken back is asked for, and without a terminal only --yes will do.
    for args in [
        &["node", "disable", "edge-1"][..],
        &["node", "remove", "edge-1"],
        &["token", "revoke", id],
        &["signing-key", "retire", &s.done(&["signing-key", "add"]).await],
    ] {
        let (code, said) = s.cli(args).await;
        assert!(code == 2 && said.contains("--yes"), "{args:?}: {code} {said}");
    }
    let (code, said) = typed(s, "node disable edge-1", "no").await;
    assert!(code == 2 && said.contains("Type yes") && said.contains("nothing was done"), "{code} {said}");
    assert_eq!(s.json(&["node", "show", "edge-1"]).await["enabled"], true);
    let (code, said) = typed(s, "node disable edge-1", "yes").await;
    assert!(code == 0 && said.contains("disabled"), "{code} {said}");
    assert_eq!(s.json(&["node", "enable", "edge-1"]).await["enabled"], true);
    let revoked = s.json(&["token", "revoke", id, "--yes"]).await;
    assert!(revoked[0]["revoked_at"].is_string(), "{revoked}");
    assert_eq!(s.device("edge-2").enrol(token).await.0, 401);

    let keys = s.json(&["signing-key", "list"]).await;
    assert_eq!(keys.as_array().map(Vec::len), Some(2));
    let old = keys[0]["key"].as_str().unwrap();
    assert_eq!(s.json(&["signing-key", "retire", old, "--yes"]).await["state"], "retired");
    assert!(s.done(&["signing-key", "list"]).await.contains("retired"));
    let newer = keys[1]["key"].as_str().unwrap();
    let (code, said) = s.cli(&["signing-key", "retire", newer, "--yes"]).await;
    assert!(code == 2 && said.contains("last one"), "{said}");

    let status = s.json(&["status"]).await;
    assert_eq!((&status["nodes"]["active"], &status["free_addresses"]["field"]), (&2.into(), &252.into()), "{status}");
    let status = s.done(&["status"]).await;
    assert!(status.contains("2 active") && status.contains("network field: 252 addresses free"), "{status}");
    assert_eq!(s.json(&["node", "remove", "edge-1", "--yes"]).await["state"], "removed");
    let audit = s.json(&["audit", "--entity", "edge-1"]).await;
    let actions: Vec<&str> = audit.as_array().unwrap().iter().map(|r| r["action"].as_str().unwrap()).collect();
    assert_eq!(actions[0], "remove");
    assert!(actions.contains(&"approve") && actions.contains(&"enrol"), "{actions:?}");
    assert!(audit[0]["user"].as_str().unwrap().starts_with("operator:"));
    assert!(s.done(&["audit", "--limit", "3"]).await.lines().count() == 4);

    // A backup by the command line, and a new control plane made of it.
    let file = s.dir.path().join("fleet.backup");
    s.done(&["backup", file.to_str().unwrap()]).await;
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let (code, said) = s.cli(&["restore", file.to_str().unwrap()]).await;
    assert!(code == 1 && said.contains("not empty"), "{code} {said}");
    let other = fresh(kind).await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.toml");
    let state = dir.path().join("state");
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:{}\"]\nstate_dir = \"{}\"\n[store]\nurl = \"{}\"\n",
        crate::serving::free_port(),
        state.display(),
        other.url
    );
    std::fs::write(&config, text).unwrap();
    let (code, said) = run(&config, &["restore", file.to_str().unwrap()]).await;
    assert!(code == 0 && said.contains("put the master key back"), "{code} {said}");
    let (code, said) = run(&config, &["serve"]).await;
    assert!(code == 1 && said.contains("master.key is missing"), "nothing is signed with another key: {code} {said}");
    std::fs::copy(s.dir.path().join("master.key"), state.join("master.key")).unwrap();
    let (code, said) = run(&config, &["node", "list", "--json"]).await;
    assert!(code == 0 && said.contains("hub-1"), "{said}");
}

/// A certificate from files is served as it is, and devices are not told to pin what will be renewed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_from_files_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let server = format!("tls_certificate = \"{}\"\ntls_key = \"{}\"\n", cert.display(), key.display());
    let serving = Serving::start_as(fresh(Kind::Sqlite).await, Setup { server, ..Setup::default() }).await;
    let own = std::fs::read(&cert).unwrap();
    let mut client =
        HttpsClient::new(format!("localhost:{}", serving.port).parse().unwrap(), &Trust::Own(own)).unwrap();
    assert_eq!(client.send(plain("GET", "/api/status", "", Some(OPERATOR))).await.unwrap().status, 200);
    let said = until("the instructions", async || Some(serving.said()).filter(|s| s.contains("token = "))).await;
    assert!(!said.contains("pin ="), "{said}");
    assert!(!serving.dir.path().join("tls.key").exists(), "none is made");
}
