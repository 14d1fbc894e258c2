//! The command line: the instructions of the first run, and every command as table and JSON.
use crate::database::{Kind, fresh};
use crate::server::{ControlPlane, run, wait_until};
use spoke_config::invitation::Invitation;
use spoke_sys::http::{HttpsClient, Trust};
use std::process::Stdio;
use tokio::process::Command;

crate::on_both_databases![
    first_run_instructions_enrol_a_device,
    every_command_has_table_and_json_output,
    token_is_handed_out_in_every_form
];

const STATE: &str = "/api/v1/nodes/self/state";

/// Runs the printed commands and uses the printed configuration.
async fn first_run_instructions_enrol_a_device(kind: Kind) {
    let server = ControlPlane::start(fresh(kind).await).await;
    let output = wait_until("the instructions are printed", async || {
        let output = server.log();
        output.contains("token = ").then_some(output)
    })
    .await;
    let commands: Vec<&str> = output.lines().filter_map(|l| l.trim().strip_prefix("spoke-control ")).collect();
    assert_eq!(commands.len(), 3, "{output}");
    let mut tokens = Vec::new();
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        assert_eq!(words[0], "--config", "with the configuration of the server");
        let (code, answer) = run(std::path::Path::new(words[1]), &words[2..]).await;
        assert_eq!(code, 0, "{command}: {answer}");
        tokens.push(answer.trim().to_owned());
    }
    let section = &output[output.find("[control]").unwrap()..];
    let value = |key: &str| {
        let line = section.lines().find_map(|l| l.trim().strip_prefix(&format!("{key} = ")));
        line.unwrap_or_else(|| panic!("{key} in {section}")).trim_matches('"').to_owned()
    };
    // A device accepts the printed section.
    let text = format!(
        "[node]\nid = \"edge-1\"\n{}",
        section.lines().take_while(|l| !l.is_empty()).collect::<Vec<_>>().join("\n")
    );
    let config = spoke_config::Config::from_text(Some(("spoke.toml", &text)), []).unwrap().control.unwrap();
    assert_eq!(config.url.0.port, server.port);
    assert_eq!(config.pin.unwrap().0, server.pin, "the pin is the certificate's");
    assert!(value("token").starts_with("file:/"));
    let mut edge = server.device("edge-1");
    edge.http = HttpsClient::new(config.url.0.clone(), &Trust::Pin(config.pin.unwrap().0)).unwrap();
    assert_eq!(server.device("hub-1").enrol(&tokens[1]).await.0, 200);
    assert_eq!(edge.enrol(&tokens[2]).await.0, 200);
    assert_eq!(edge.ask("GET", &format!("{STATE}?after=0"), "").await.0, 200);
}

/// Runs a command on a terminal and types `answer`.
async fn run_on_terminal(server: &ControlPlane, args: &str, answer: &str) -> (i32, String) {
    let config = server.dir.path().join("spoke-control.toml");
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

/// Piped: the token alone. Otherwise an invitation, which names this server, its certificate and the node.
async fn token_is_handed_out_in_every_form(kind: Kind) {
    let (server, _) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    let s = &server;
    let fits = |text: &str, node: Option<&str>| {
        let invitation: Invitation = text.parse().unwrap();
        assert_eq!((invitation.server.0.port, invitation.pin.unwrap().0), (s.port, s.pin));
        assert_eq!(invitation.node.as_ref().map(|n| n.as_str()), node);
        invitation
    };
    let piped = s.cli_ok(&["token", "create", "--network", "field"]).await;
    assert!(piped.starts_with("spk_") && !piped.contains(char::is_whitespace), "{piped}");
    fits(&s.cli_ok(&["token", "create", "--network", "field", "--invitation"]).await, None);
    let made = s.cli_json(&["token", "create", "--network", "field", "--node", "edge-1"]).await;
    let invitation = fits(made["invitation"].as_str().unwrap(), Some("edge-1"));
    assert_eq!(made["token"], invitation.token.reveal().as_str());
    assert_eq!(made["url"], format!("https://localhost:{}", s.port));
    assert_eq!(s.device("edge-1").enrol(invitation.token.reveal()).await.0, 200);

    let out = s.dir.path().join("hub.invitation");
    let hub = ["hub", "add", "hub-1", "--network", "field", "--endpoint", "h.example.net:51820", "--out"];
    let printed = s.cli_ok(&[&hub[..], &[out.to_str().unwrap()]].concat()).await;
    assert!(!printed.contains("spk_"), "{printed}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&out).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let invitation = fits(&std::fs::read_to_string(&out).unwrap(), Some("hub-1"));
    assert_eq!(invitation.role, Some(spoke_config::node::Role::Hub));
    let (code, answer) = s.cli(&["token", "create", "--network", "field", "--out", out.to_str().unwrap()]).await;
    assert!(code == 2 && answer.contains("exists"), "{code} {answer}");

    let (code, shown) = run_on_terminal(s, "token create --network field --qr", "").await;
    assert!(code == 0 && shown.contains('\u{2588}'), "{shown}");
    let line = shown.lines().find_map(|l| l.trim().strip_prefix("spoke://")).unwrap();
    fits(&format!("spoke://{line}"), None);
    let section = &shown[shown.find("[control]").unwrap()..];
    let section: Vec<&str> = section.lines().map(str::trim).take_while(|l| !l.is_empty()).collect();
    let text = format!("[node]\nid = \"a\"\n{}\n", section.join("\n"));
    let control = spoke_config::Config::from_text(Some(("x", &text)), []).unwrap().control.unwrap();
    assert_eq!((control.url.0.port, control.pin.unwrap().0), (s.port, s.pin));
}

async fn every_command_has_table_and_json_output(kind: Kind) {
    let server = ControlPlane::start(fresh(kind).await).await;
    let s = &server;
    let created = s
        .cli_ok(&[
            "network",
            "create",
            "field",
            "--pool4",
            "10.8.0.0/24",
            "--pool6",
            "fd00:8::/64",
            "--approval",
            "true",
        ])
        .await;
    assert!(created.contains("NETWORK") && created.contains("10.8.0.0/24,fd00:8::/64"), "{created}");
    let set =
        s.cli_json(&["network", "set", "field", "--mtu", "1380", "--dns", "10.8.0.53", "--quarantine", "2d"]).await;
    assert_eq!((&set[0]["mtu"], &set[0]["quarantine_secs"]), (&1380.into(), &172_800.into()), "{set}");
    assert_eq!(s.cli_json(&["network", "list"]).await[0]["name"], "field");
    assert!(s.cli_ok(&["network", "list"]).await.contains("0 of 254"));
    for (args, part) in [
        (&["network", "create", "Bad Name", "--pool4", "10.9.0.0/24"][..], "a-z 0-9"),
        (&["network", "create", "field", "--pool4", "10.9.0.0/24"], "already"),
        (&["network", "set", "nowhere", "--mtu", "1400"], "nowhere"),
        (&["network", "set", "field", "--access", "nft"], "[grants]"),
        (&["network", "set", "field", "--quarantine", "soon"], "duration"),
        (&["token", "create", "--network", "nowhere"], "nowhere"),
        (&["token", "create", "--network", "field", "--uses", "0"], "1 to 1000000"),
        (&["token", "revoke", "000000000000", "--yes"], "no token"),
        (&["node", "show", "unknown"], "unknown"),
        (&["node", "approve", "unknown"], "unknown"),
        (&["node", "remove", "unknown", "--yes"], "unknown"),
        (&["node", "list", "--state", "lost"], "expected, pending"),
        (&["node", "override", "unknown", "--mtu", "9"], "576"),
        (&["hub", "add", "hub-9", "--network", "field", "--endpoint", "h:1", "--address", "10.9.0.1"], "10.9.0.1"),
    ] {
        let (code, output) = s.cli(args).await;
        assert!(code == 2 && output.contains(part), "{args:?}: {code} {output}");
    }

    let hub = s.cli_json(&["hub", "add", "hub-1", "--network", "field", "--endpoint", "h.example.net:51820"]).await;
    assert_eq!(hub["pin"].as_str().map(|p| p.len()), Some(71));
    assert_eq!(s.device("hub-1").enrol(hub["token"].as_str().unwrap()).await.0, 200);
    assert!(s.cli_ok(&["hub", "list"]).await.contains("h") && s.cli_json(&["hub", "list"]).await[0]["role"] == "hub");

    let made = s
        .cli_json(&["token", "create", "--network", "field", "--uses", "2", "--expires-in", "1h", "--note", "a"])
        .await;
    let (id, token) = (made["id"].as_str().unwrap(), made["token"].as_str().unwrap());
    let listed = s.cli_json(&["token", "list"]).await;
    let entry = listed.as_array().unwrap().iter().find(|t| t["id"] == id).unwrap();
    assert_eq!((&entry["max_uses"], &entry["note"]), (&2.into(), &"a".into()));
    assert!(entry["expires_at"].is_string() && !listed.to_string().contains(token));
    assert!(s.cli_ok(&["token", "list"]).await.contains("0/2"));

    // Approval: the device is pending until an operator approves it.
    let mut edge = s.device("edge-1");
    let (status, answer) = edge.enrol(token).await;
    assert_eq!((status, answer["status"].as_str()), (202, Some("pending")), "{answer}");
    assert_eq!(edge.ask("GET", &format!("{STATE}?after=0"), "").await.1["detail"]["code"], "pending");
    assert!(s.cli_ok(&["node", "list", "--state", "pending"]).await.contains("edge-1"));
    assert_eq!(s.cli_json(&["node", "approve", "edge-1"]).await["state"], "active");
    let (status, answer) = edge.enrol(token).await;
    assert_eq!((status, answer["status"].as_str()), (200, Some("success")), "{answer}");
    assert!(answer["config"]["assigned_ip6"].as_str().unwrap().starts_with("fd00:8::"), "{answer}");

    assert_eq!(s.cli_json(&["node", "rename", "edge-1", "by the door"]).await["label"], "by the door");
    let over =
        ["node", "override", "edge-1", "--mtu", "1300", "--keepalive", "0", "--endpoint-allowed-ip", "10.0.0.0/8"];
    let over = s.cli_json(&over).await;
    assert_eq!((&over["override_mtu"], &over["override_keepalive"]), (&1300.into(), &0.into()), "{over}");
    assert_eq!(s.cli_json(&["node", "isolate", "edge-1"]).await["isolated"], true);
    assert_eq!(s.cli_json(&["node", "isolate", "edge-1", "--off"]).await["isolated"], false);
    let shown = s.cli_ok(&["node", "show", "edge-1"]).await;
    for part in ["by the door", "mtu 1300, keepalive 0", "10.0.0.0/8", "1 cpu, 64 MB", "10.8.0."] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert_eq!(s.cli_json(&["node", "show", "edge-1"]).await["capabilities"]["memory_mb"], 64);

    // Irreversible commands ask; without a terminal they need --yes.
    for args in [
        &["node", "disable", "edge-1"][..],
        &["node", "remove", "edge-1"],
        &["token", "revoke", id],
        &["signing-key", "retire", &s.cli_ok(&["signing-key", "add"]).await],
    ] {
        let (code, output) = s.cli(args).await;
        assert!(code == 2 && output.contains("--yes"), "{args:?}: {code} {output}");
    }
    let (code, output) = run_on_terminal(s, "node disable edge-1", "no").await;
    assert!(code == 2 && output.contains("Type yes") && output.contains("nothing was done"), "{code} {output}");
    assert_eq!(s.cli_json(&["node", "show", "edge-1"]).await["enabled"], true);
    let (code, output) = run_on_terminal(s, "node disable edge-1", "yes").await;
    assert!(code == 0 && output.contains("disabled"), "{code} {output}");
    assert_eq!(s.cli_json(&["node", "enable", "edge-1"]).await["enabled"], true);
    let revoked = s.cli_json(&["token", "revoke", id, "--yes"]).await;
    assert!(revoked[0]["revoked_at"].is_string(), "{revoked}");
    assert_eq!(s.device("edge-2").enrol(token).await.0, 401);

    let keys = s.cli_json(&["signing-key", "list"]).await;
    assert_eq!(keys.as_array().map(Vec::len), Some(2));
    let old = keys[0]["key"].as_str().unwrap();
    let (code, output) = s.cli(&["signing-key", "retire", old, "--yes"]).await;
    assert!(code == 2 && output.contains("edge-1, hub-1 have not yet kept"), "{code} {output}");
    let retired = s.cli_json(&["signing-key", "retire", old, "--lose-nodes", "--yes"]).await;
    assert_eq!(retired["state"], "retired");
    assert!(s.cli_ok(&["signing-key", "list"]).await.contains("retired"));
    let newer = keys[1]["key"].as_str().unwrap();
    let (code, output) = s.cli(&["signing-key", "retire", newer, "--yes"]).await;
    assert!(code == 2 && output.contains("last one"), "{output}");

    let status = s.cli_json(&["status"]).await;
    assert_eq!((&status["nodes"]["active"], &status["free_addresses"]["field"]), (&2.into(), &252.into()), "{status}");
    let status = s.cli_ok(&["status"]).await;
    assert!(status.contains("2 active") && status.contains("network field: 252 addresses free"), "{status}");
    assert_eq!(s.cli_json(&["node", "remove", "edge-1", "--yes"]).await["state"], "removed");
    let audit = s.cli_json(&["audit", "--entity", "edge-1"]).await;
    let actions: Vec<&str> = audit.as_array().unwrap().iter().map(|r| r["action"].as_str().unwrap()).collect();
    assert_eq!(actions[0], "remove");
    assert!(actions.contains(&"approve") && actions.contains(&"enrol"), "{actions:?}");
    assert!(audit[0]["user"].as_str().unwrap().starts_with("operator:"));
    assert!(s.cli_ok(&["audit", "--limit", "3"]).await.lines().count() == 4);

    // A backup, restored into a new control plane.
    let file = s.dir.path().join("fleet.backup");
    s.cli_ok(&["backup", file.to_str().unwrap()]).await;
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let (code, output) = s.cli(&["restore", file.to_str().unwrap()]).await;
    assert!(code == 1 && output.contains("not empty"), "{code} {output}");
    let other = fresh(kind).await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.toml");
    let state = dir.path().join("state");
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:{}\"]\nstate_dir = \"{}\"\n[store]\nurl = \"{}\"\n",
        crate::server::free_port(),
        state.display(),
        other.url
    );
    std::fs::write(&config, text).unwrap();
    let (code, output) = run(&config, &["restore", file.to_str().unwrap()]).await;
    assert!(code == 2 && output.contains("put it back to") && output.contains("--unverified"), "{code} {output}");
    let (code, output) = run(&config, &["restore", file.to_str().unwrap(), "--unverified"]).await;
    assert!(code == 0 && output.contains("put the master key back"), "{code} {output}");
    let (code, output) = run(&config, &["serve"]).await;
    assert!(code == 1 && output.contains("master.key is missing"), "no new master key is created: {code} {output}");
    std::fs::copy(s.dir.path().join("master.key"), state.join("master.key")).unwrap();
    let (code, output) = run(&config, &["node", "list", "--json"]).await;
    assert!(code == 0 && output.contains("hub-1"), "{output}");

    let (code, output) = run(&config, &["--json", "node", "show", "none"]).await;
    let error: serde_json::Value = serde_json::from_str(&output).unwrap();
    assert!(code == 2 && error["schema"] == 1 && error["exit_code"] == 2, "{output}");
    assert!(error["error"].as_str().unwrap().contains("there is no node none"), "{output}");
}
