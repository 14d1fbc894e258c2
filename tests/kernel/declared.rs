//! A node that boots from the last state of its control plane, which is unreachable: plan, ownership, and the actor of each
//! generation.
use crate::netns::Namespace;
use crate::panel::{Node, key};
use serde_json::{Value, json};
use spoke_enroll::document::{StateDocument, VERSION};
use spoke_enroll::identity::Enrolment;
use spoke_model::signature::SignKey;
use spoke_sys::disk::Document;

const LINKS: &str = "[health]\nenabled = false\n\
    [control]\nurl = \"https://192.0.2.9:8443\"\n\
    pin = \"sha256:0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f\"\n\
    [[interface]]\nname = \"wg0\"\nlisten_port = 51820\n\
    [[interface.peer]]\npublic_key = \"BAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ=\"\nallowed_ips = [\"10.9.4.0/24\"]\n";

/// Writes a signed state with one peer and an override as the node's last good one.
fn store_state(node: &Node<'_>) {
    let signer = SignKey::from_seed(&[1; 32]).expect("a key");
    let text = json!({
        "version": VERSION, "node_id": "edge-1", "generation": 1, "role": "hub", "signing_keys": [signer.public()],
        "interfaces": [{
            "name": "wg0", "addresses": ["10.8.0.1/24"], "listen_port": 51820,
            "peers": [{ "node_id": "edge-2", "public_key": key(1), "allowed_ips": ["10.8.0.2/32"] }],
            "overrides": { "mtu": 1400 },
        }],
    });
    let document: StateDocument = serde_json::from_value(text).expect("a document");
    let enrolment = Enrolment {
        server: "192.0.2.9:8443".to_owned(),
        node_id: document.node_id.clone(),
        signing_keys: vec![signer.public()],
        fresh: false,
        removed: false,
        token: None,
        role: None,
        networks: None,
    };
    let state = node.path("state");
    std::fs::create_dir(&state).expect("a directory");
    Document::new(state.join("enrolment.json"), 1).store(&enrolment).expect("stored");
    Document::new(state.join("state.json"), 1).store(&document.sign([&signer]).expect("signed")).expect("stored");
}

#[test]
fn declared_state_keeps_its_owner_in_plan_and_history() {
    let device = Namespace::new("device");
    let mut node = Node::new(&device, LINKS);
    let file = node.path("spoke.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let text = text.replace("[node]\n", "[node]\nid = \"edge-1\"\n");
    std::fs::write(&file, &text).expect("written");
    store_state(&node);
    let over = "wg0: mtu 1400 by override, instead of 1280\n";
    let plan = node.tell("plan");
    assert!(plan.contains(over) && plan.contains("allowed-ips 10.8.0.2/32"), "{plan}");
    node.start();
    assert_eq!(node.peers("wg0"), [key(1), key(4)], "the stored state is enough");

    let mut panel = node.panel();
    panel.done("POST", "/v1/wg/wg0/peers", &json!({ "public_key": key(2), "allowed_ips": ["10.8.0.9/32"] }));
    for (method, path, body, holder) in [
        ("DELETE", format!("/v1/wg/wg0/peers/{}", key(1)), Value::Null, "the control plane"),
        ("PUT", format!("/v1/wg/wg0/peers/{}", key(1)), json!({ "allowed_ips": [] }), "the control plane"),
        ("DELETE", format!("/v1/wg/wg0/peers/{}", key(4)), Value::Null, "the configuration"),
        ("DELETE", "/v1/wg/wg0".to_owned(), Value::Null, "the control plane"),
        (
            "POST",
            "/v1/wg/wg0/peers".to_owned(),
            json!({ "public_key": key(3), "allowed_ips": ["10.8.0.2/32"] }),
            key(1).as_str(),
        ),
    ] {
        let (status, reply) = panel.ask(method, &path, &body).expect("a response");
        let error = reply["error"].as_str().unwrap_or_default();
        assert!(status == 409 && error.contains(holder), "{method} {path}: {status} {reply}");
    }

    // Without a running supervisor and without the interface: the plan has API state and declared state.
    node.kill();
    device.ip("link del wg0");
    let plan = node.tell("plan");
    for part in [over, "allowed-ips 10.8.0.2/32", "allowed-ips 10.8.0.9/32", "allowed-ips 10.9.4.0/24"] {
        assert!(plan.contains(part), "{part} in {plan}");
    }

    // A start with an unchanged configuration makes no generation and writes nothing; one with a changed file does.
    let file_of_changes = node.path("state/changes.journal");
    let journal = || std::fs::read(&file_of_changes).expect("the journal");
    let before = journal();
    node.start();
    node.kill();
    assert!(journal() == before, "an unchanged start must not write");
    std::fs::write(&file, text.replace("listen_port = 51820\n", "listen_port = 51820\nfwmark = 7\n")).expect("written");
    node.start();
    let history = node.json("config history --json");
    assert_eq!((&history[0]["generation"], &history[0]["actor"]), (&2.into(), &"configuration".into()), "{history:#}");
    assert_eq!(node.tell("config diff 1 2"), "~ interface.wg0.fwmark = 7, instead of 0\n");
    let printed = node.tell("config rollback");
    assert!(
        printed.contains("generation 3 is in force") && printed.contains(&format!("- wg0 peer {}", key(2))),
        "{printed}"
    );
    assert!(
        printed.contains("! 1 value not set through the API") && printed.contains("in the configuration file"),
        "{printed}"
    );
    assert_eq!(node.peers("wg0"), [key(1), key(4)]);
    assert_eq!(device.run("wg show wg0 fwmark").trim(), "0x7");
    assert!(node.tell("audit list").contains("interface.wg0.fwmark = 7"));
}

#[test]
fn unreadable_enrolment_or_state_uses_the_other_copy() {
    for name in ["enrolment.json", "state.json", "rejected.json", "trial.json"] {
        let device = Namespace::new("device");
        let mut node = Node::new(&device, LINKS);
        let file = node.path("spoke.toml");
        let text = std::fs::read_to_string(&file).expect("the configuration");
        std::fs::write(&file, text.replace("[node]\n", "[node]\nid = \"edge-1\"\n")).expect("written");
        store_state(&node);
        let state = node.path("state");
        std::fs::copy(state.join("state.json"), state.join("state.json.prev")).expect("a previous copy");
        // A directory fails every read, as a dying card does.
        let _ = std::fs::remove_file(state.join(name));
        std::fs::create_dir(state.join(name)).expect("a directory");
        node.start();
        assert_eq!(node.peers("wg0"), [key(1), key(4)], "{name}");
    }
}

#[test]
fn faults_of_the_control_session_keep_no_tunnel_down() {
    for (file, pin) in [("state/identity.key", true), ("ca.pem", false)] {
        let device = Namespace::new("device");
        let mut node = Node::new(&device, LINKS);
        let path = node.path("spoke.toml");
        let text = std::fs::read_to_string(&path).expect("the configuration");
        let mut text = text.replace("[node]\n", "[node]\nid = \"edge-1\"\n");
        if !pin {
            let ca = node.path(file);
            text = text
                .lines()
                .map(|l| if l.starts_with("pin") { format!("ca = \"{}\"\n", ca.display()) } else { format!("{l}\n") })
                .collect();
        }
        std::fs::write(&path, text).expect("written");
        store_state(&node);
        if pin {
            let key = node.path(file);
            std::fs::write(&key, "half a key").expect("written");
            std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("changed");
        }
        node.start();
        assert_eq!(node.peers("wg0"), [key(1), key(4)], "{file}");
        let reason = node.json("status --json")["control"]["away"]["why"].as_str().unwrap_or_default().to_owned();
        assert!(reason.contains(file.rsplit('/').next().unwrap_or(file)), "{file} in {reason}");
        if pin {
            assert!(reason.contains("token create --node") && reason.contains("enrol --again"), "{reason}");
            assert_eq!(
                std::fs::read(node.path(file)).expect("the key"),
                b"half a key",
                "a damaged key is not replaced"
            );
        }
    }
}
