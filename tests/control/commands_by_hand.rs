//! What an operator does by hand: it changes what is named, and what would do harm is refused with the remedy.
use crate::database::{Kind, fresh, open};
use crate::fixture::{NOW, hub, join, operator, report, store_report, token};
use crate::server::{ControlPlane, Settings, run, wait_until};
use spoke_control::registry::networks;
use spoke_control::signing::{MasterKey, SigningKeys};
use spoke_control::store::network::Network;
use spoke_control::store::signing_key::{Retirement, Without};

crate::on_both_databases![
    override_changes_what_it_names,
    removed_node_is_not_healthy_and_not_changed,
    network_is_meant_where_only_one_can_be,
    overlapping_pools_are_refused,
    network_without_nodes_is_removed,
    retired_signing_key_becomes_active_again,
    lost_database_begins_no_new_fleet,
    first_start_that_was_cut_off_goes_on,
];

async fn override_changes_what_it_names(kind: Kind) {
    let (s, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    assert_eq!(s.device("edge-1").enrol(&token).await.0, 200);
    let set = async |args: &[&str]| s.cli_json(&[&["node", "override", "edge-1"], args].concat()).await;
    set(&["--mtu", "1300", "--keepalive", "0"]).await;
    let changed = set(&["--listen-port", "51999", "--dns", "10.8.0.53"]).await;
    for (name, value) in [("override_mtu", 1300), ("override_keepalive", 0), ("override_listen_port", 51999)] {
        assert_eq!(changed[name], value, "{changed}");
    }
    let generation = changed["generation"].as_u64().unwrap();
    let changed = set(&["--mtu", "1310", "--unset", "keepalive,dns"]).await;
    assert_eq!((&changed["override_mtu"], &changed["override_listen_port"]), (&1310.into(), &51999.into()));
    assert!(changed["override_keepalive"].is_null() && changed["override_dns"].is_null(), "{changed}");
    assert_eq!(changed["generation"], generation + 1, "one change");
    let printed = s.cli_ok(&["node", "override", "edge-1", "--keepalive", "15"]).await;
    assert!(printed.contains("listen port 51999, mtu 1310, keepalive 15"), "{printed}");
    for (args, part) in [
        (&["node", "override", "edge-1"][..], "--unset"),
        (&["node", "override", "edge-1", "--mtu", "1300", "--unset", "mtu"], "unset_overrides"),
        (&["node", "override", "edge-1", "--unset", "colour"], "listen-port"),
    ] {
        let (code, output) = s.cli(args).await;
        assert!(code == 2 && output.contains(part), "{args:?}: {code} {output}");
    }
    // The API does both: it replaces all, or changes what is named.
    let put = async |body: &str| s.operator("PUT", "/api/nodes/edge-1", body).await.1["data"].take();
    let named = put(r#"{"set_overrides": {"override_mtu": 1400}, "unset_overrides": ["override_keepalive"]}"#).await;
    assert_eq!((&named["override_mtu"], &named["override_listen_port"]), (&1400.into(), &51999.into()), "{named}");
    assert!(named["override_keepalive"].is_null(), "{named}");
    let all = put(r#"{"overrides": {"override_mtu": 1280}}"#).await;
    assert_eq!((&all["override_mtu"], all["override_listen_port"].is_null()), (&1280.into(), true), "{all}");
}

async fn removed_node_is_not_healthy_and_not_changed(kind: Kind) {
    let (s, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    assert_eq!(s.device("edge-1").enrol(&token).await.0, 200);
    let healthy = serde_json::to_string(&report(1)).unwrap();
    assert_eq!(s.device("edge-1").ask("POST", "/api/v1/nodes/self/report?run=1&number=1", &healthy).await.0, 204);
    wait_until("the report is stored", async || {
        (s.cli_json(&["node", "show", "edge-1"]).await["healthy"] == true).then_some(())
    })
    .await;
    assert!(s.cli_json(&["node", "remove", "edge-1", "--yes"]).await["healthy"].is_null());
    let listed = s.cli_ok(&["node", "list", "--state", "removed"]).await;
    assert!(listed.contains("edge-1") && !listed.contains("healthy"), "{listed}");
    for args in [
        &["node", "enable", "edge-1"][..],
        &["node", "rename", "edge-1", "roof"],
        &["node", "isolate", "edge-1"],
        &["node", "override", "edge-1", "--mtu", "1300"],
        &["node", "take-back", "edge-1", "--generation", "99999"],
    ] {
        let (code, output) = s.cli(args).await;
        assert!(code == 2 && output.contains("was removed from the fleet"), "{args:?}: {code} {output}");
    }
    let (code, output) = s.cli(&["release", "want", "1.4.0", "--node", "edge-1"]).await;
    assert!(code == 2 && output.contains("no node in this network"), "{code} {output}");
    // Nor does its successor begin with what it reported.
    let bound = s.cli_ok(&["node", "announce", "edge-1"]).await;
    assert_eq!(s.device("edge-1").enrol(&bound).await.0, 200);
    let shown = s.cli_json(&["node", "show", "edge-1"]).await;
    assert!(shown["healthy"].is_null() && shown["last_seen"].is_null(), "{shown}");
}

async fn network_is_meant_where_only_one_can_be(kind: Kind) {
    let s = ControlPlane::start(fresh(kind).await).await;
    let (code, output) = s.cli(&["token", "create"]).await;
    assert!(code == 2 && output.contains("network create"), "{code} {output}");
    s.cli_ok(&["network", "create", "field", "--pool4", "10.8.0.0/24"]).await;
    s.cli_ok(&["hub", "add", "hub-1", "--endpoint", "hub.example.net:51820"]).await;
    s.cli_ok(&["token", "create"]).await;
    s.cli_ok(&["release", "want", "1.4.0"]).await;
    s.cli_ok(&["network", "create", "other", "--pool4", "10.9.0.0/24"]).await;
    s.cli_ok(&["release", "want", "1.4.1", "--node", "hub-1"]).await;
    s.cli_ok(&["token", "create", "--node", "hub-1", "--note", "of the node"]).await;
    let tokens = s.cli_json(&["token", "list"]).await;
    let of_node = tokens.as_array().unwrap().iter().find(|t| t["note"] == "of the node").unwrap();
    assert_eq!(of_node["network"], "field", "{tokens}");
    for args in [&["token", "create"][..], &["token", "create", "--node", "new"], &["release", "want", "1.4.0"]] {
        let (code, output) = s.cli(args).await;
        assert!(code == 2 && output.contains("--network") && output.contains("field, other"), "{args:?}: {output}");
    }
    for version in ["banana", "latest", "v"] {
        let (code, output) = s.cli(&["release", "want", version, "--network", "field"]).await;
        assert!(code == 2 && output.contains("such as 1.4.0"), "{version}: {code} {output}");
    }
}

async fn overlapping_pools_are_refused(kind: Kind) {
    let (store, _db) = open(kind).await;
    let network = |name: &str, pool: &str| {
        let net: ipnet::IpNet = pool.parse().unwrap();
        let (pool4, pool6) = if pool.contains(':') { (None, Some(net)) } else { (Some(net), None) };
        Network::new(name, pool4, pool6, "wg0".parse().unwrap())
    };
    let create = async |network: &Network| networks::create(&store, network, &operator(), NOW).await;
    create(&network("field", "10.8.0.0/16")).await.unwrap();
    create(&network("six", "fd00:8::/48")).await.unwrap();
    for pool in ["10.8.0.0/16", "10.8.4.0/24", "10.0.0.0/8", "fd00:8:0:1::/64"] {
        let refused = create(&network("other", pool)).await.unwrap_err();
        assert!(refused.to_string().contains("overlaps"), "{pool}: {refused}");
    }
    create(&network("other", "10.9.0.0/16")).await.unwrap();
    let change = async |pool: &str| {
        let pool4 = Some(pool.parse().unwrap());
        networks::change(&store, "other", |n| n.pool4 = pool4, &operator(), NOW).await
    };
    assert!(change("10.8.0.0/15").await.is_err(), "grown into its neighbour");
    change("10.10.0.0/15").await.unwrap();
    // Made by a release that did not compare them: everything else still changes.
    let mut tx = store.write().await.unwrap();
    tx.add_network(&network("before", "10.8.0.0/24"), NOW).await.unwrap();
    tx.commit().await.unwrap();
    networks::change(&store, "before", |n| n.mtu = Some(1380), &operator(), NOW).await.unwrap();
}

async fn network_without_nodes_is_removed(kind: Kind) {
    let (s, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    assert_eq!(s.device("edge-1").enrol(&token).await.0, 200);
    s.cli_ok(&["release", "want", "1.4.0"]).await;
    let remove = ["network", "remove", "field", "--yes"];
    let (code, output) = s.cli(&remove).await;
    assert!(code == 2 && output.contains("edge-1 is in it"), "{code} {output}");
    let generation = s.cli_json(&["node", "remove", "edge-1", "--yes"]).await["generation"].as_u64().unwrap();
    assert_eq!(s.cli(&["network", "remove", "field"]).await.0, 2, "it asks");
    s.cli_ok(&remove).await;
    assert_eq!(s.cli_json(&["network", "list"]).await, serde_json::json!([]));
    let (code, output) = s.cli(&remove).await;
    assert!(code == 2 && output.contains("no network \"field\""), "{code} {output}");
    // The tokens went with it, and the device that may still hold its last state gets a later one.
    let again = s.create_network("10.8.0.0/24").await;
    assert_ne!(s.device("edge-2").enrol(&token).await.0, 200);
    assert_eq!(s.device("edge-1").enrol(&again).await.0, 403, "nor does a removed device come back by another token");
    let bound = s.cli_ok(&["token", "create", "--node", "edge-1"]).await;
    assert_eq!(s.device("edge-1").enrol(&bound).await.0, 200);
    assert!(s.cli_json(&["node", "show", "edge-1"]).await["generation"].as_u64().unwrap() > generation);
    let (status, _) = s.operator("DELETE", "/api/networks/field", "").await;
    assert_eq!(status, 409);
}

/// Retired too early, it locked out a node that had not kept a state with the new one.
async fn retired_signing_key_becomes_active_again(kind: Kind) {
    let (store, _db) = open(kind).await;
    let network = Network::new("field", Some("10.8.0.0/24".parse().unwrap()), None, "wg0".parse().unwrap());
    networks::create(&store, &network, &operator(), NOW).await.unwrap();
    let master = MasterKey::new(&[1; 32]).unwrap();
    SigningKeys::load(&store, &master, NOW).await.unwrap();
    hub(&store, "hub-1", None).await;
    join(&store, "edge-1", &token(&store, 1).await).await.unwrap();
    let kept = async || {
        let keys = store.read().await.unwrap().kept_signing_keys().await.unwrap();
        keys.into_iter().map(|k| (k.key.public, k.kept_by, k.nodes)).collect::<Vec<_>>()
    };
    let old = kept().await[0].0;
    assert_eq!(kept().await, [(old, Some(2), 2)]);
    let mut tx = store.write().await.unwrap();
    let new = SigningKeys::add(&mut tx, &master, NOW).await.unwrap();
    tx.commit().await.unwrap();
    let generation = async |id: &str| {
        let id = id.parse().unwrap();
        store.read().await.unwrap().node(&id).await.unwrap().unwrap().generation
    };
    assert_eq!(kept().await[1], (new, Some(0), 2));
    store_report(&store, "hub-1", NOW, report(generation("hub-1").await)).await;
    assert_eq!(kept().await[1], (new, Some(1), 2));
    let mut tx = store.write().await.unwrap();
    assert_eq!(tx.retire_signing_key(old, Without::AnyNode).await.unwrap(), Retirement::Retired);
    assert!(!tx.unretire_signing_key(new, NOW).await.unwrap(), "it is active");
    assert!(tx.unretire_signing_key(old, NOW).await.unwrap());
    tx.commit().await.unwrap();
    let keys = SigningKeys::load(&store, &master, NOW).await.unwrap();
    assert_eq!(keys.public(), [new, old], "the newest, for the nodes that have forgotten it");
    assert_eq!(kept().await[1], (old, Some(0), 2));
    for id in ["hub-1", "edge-1"] {
        store_report(&store, id, NOW + 1, report(generation(id).await)).await;
    }
    assert_eq!(kept().await[1], (old, Some(2), 2));
}

async fn lost_database_begins_no_new_fleet(kind: Kind) {
    let mut s = ControlPlane::start(fresh(kind).await).await;
    s.cli_ok(&["network", "create", "field", "--pool4", "10.8.0.0/24"]).await;
    let file = s.dir.path().join("fleet.backup");
    s.cli_ok(&["backup", file.to_str().unwrap()]).await;
    s.stop().await;
    // Another, empty database where the fleet's was.
    let (path, empty) = (s.dir.path().join("spoke-control.toml"), fresh(kind).await);
    let text = std::fs::read_to_string(&path).unwrap().replace(&s.url(), &empty.url);
    std::fs::write(&path, text).unwrap();
    for args in [&["serve"][..], &["node", "list"], &["network", "create", "other", "--pool4", "10.9.0.0/24"]] {
        let (code, output) = s.cli(args).await;
        assert!(code == 1 && output.contains("restore FILE") && output.contains("master.key"), "{args:?}: {output}");
    }
    s.cli_ok(&["restore", file.to_str().unwrap()]).await;
    s.start_again().await;
    assert_eq!(s.cli_json(&["network", "list"]).await[0]["name"], "field");
}

/// A power cut at any moment of the first start leaves nothing that the next one takes for a lost database.
async fn first_start_that_was_cut_off_goes_on(kind: Kind) {
    let (store, _db) = open(kind).await;
    let dir = tempfile::tempdir().unwrap();
    let (path, unnamed) = (dir.path().join("master.key"), dir.path().join("master.key.new"));
    let load = async || MasterKey::load_or_create(&path, &store, NOW).await;
    // Cut off before the first signing key was stored, then before the master key had its name.
    spoke_sys::disk::write_atomic(&unnamed, &[7; 32], false).unwrap();
    load().await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), [7; 32]);
    std::fs::rename(&path, &unnamed).unwrap();
    load().await.unwrap();
    assert!(path.exists() && !unnamed.exists());
    MasterKey::check_store(&path, &store).await.unwrap();
    // Of another start: it opens nothing here.
    std::fs::remove_file(&path).unwrap();
    spoke_sys::disk::write_atomic(&unnamed, &[8; 32], false).unwrap();
    assert!(load().await.unwrap_err().to_string().contains("is missing"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn address_that_only_this_machine_reaches_is_warned_of() {
    let server = ControlPlane::start_as(fresh(Kind::Sqlite).await, Settings::default()).await;
    wait_until("the warning is logged", async || {
        server.log().contains("server.public names this machine").then_some(())
    })
    .await;
    let (code, _) = run(&server.dir.path().join("spoke-control.toml"), &["status"]).await;
    assert_eq!(code, 0);
}
