//! Faults of the database under a served control plane: kills, locks, full and read-only disks, restarts under load;
//! replicas on one database.
use crate::database::{Cluster, Kind, fresh};
use crate::server::{ControlPlane, Device, Settings, run, wait_until};
use spoke_control::store::Store;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::task::JoinSet;

crate::on_both_databases![kill_leaves_no_partial_enrolment, locked_database_is_503];

const STATE: &str = "/api/v1/nodes/self/state";

/// Enrols until accepted; returns the device and its address.
async fn enrol_until_accepted(mut device: Device, token: String) -> (Device, String) {
    let mut refused = 0;
    loop {
        let asked = device.try_enrol(&token).await;
        match asked {
            Ok((200, answer)) => {
                let address = answer["config"]["assigned_ip"].as_str().unwrap().to_owned();
                return (device, address);
            }
            Ok((503, answer)) => assert_eq!(answer["detail"]["code"], "unavailable", "{answer}"),
            // Signed before the restarted process began.
            Ok((401, answer)) if answer["detail"]["code"] == "clock_skew" => {}
            Ok((status, answer)) => panic!("{status} {answer}"),
            Err(_) => {}
        }
        refused += 1;
        assert!(refused < 2000, "{} is never accepted", device.id);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Every node has one address of its own, the one in its answer; token uses and audit records match the nodes.
async fn assert_consistent(server: &ControlPlane, answered: &[(String, String)]) {
    let nodes = server.cli_json(&["node", "list"]).await;
    let nodes = nodes.as_array().unwrap();
    let mut seen = BTreeSet::new();
    for node in nodes {
        let address = node["addresses"][0].as_str().expect("an address").split('/').next().unwrap().to_owned();
        assert_eq!(node["addresses"].as_array().unwrap().len(), 1, "{node}");
        assert!(seen.insert(address.clone()), "{address} twice");
        if let Some((_, mine)) = answered.iter().find(|(id, _)| node["id"] == id.as_str()) {
            assert_eq!(&address, mine, "the answered address is kept");
        }
    }
    for (id, _) in answered {
        assert!(nodes.iter().any(|n| n["id"] == id.as_str()), "{id} was accepted and is missing");
    }
    let tokens = server.cli_json(&["token", "list"]).await;
    assert_eq!(tokens[0]["uses"].as_u64(), Some(nodes.len() as u64), "one token use a node");
    let audit = server.cli_json(&["audit", "--limit", "10000"]).await;
    let enrolled = audit.as_array().unwrap().iter().filter(|r| r["action"] == "enrol").count();
    assert_eq!(enrolled, nodes.len(), "one audit record a node");
}

async fn kill_leaves_no_partial_enrolment(kind: Kind) {
    let (mut server, token) = ControlPlane::start_with_network(kind, "10.8.0.0/20").await;
    let mut joining = JoinSet::new();
    for i in 0..60 {
        joining.spawn(enrol_until_accepted(server.device(&format!("edge-{i}")), token.clone()));
    }
    let mut answered = Vec::new();
    for _ in 0..3 {
        for _ in 0..8 {
            let (device, address) = joining.join_next().await.unwrap().unwrap();
            answered.push((device.id.to_string(), address));
        }
        server.kill().await;
        server.start_again().await;
        assert_enrolled_nodes_kept(&server, &answered).await;
    }
    while let Some(done) = joining.join_next().await {
        let (device, address) = done.unwrap();
        answered.push((device.id.to_string(), address));
    }
    assert_eq!(answered.len(), 60);
    assert_consistent(&server, &answered).await;
    server.stop().await;
}

/// The accepted nodes have their answered addresses, while others are enrolling.
async fn assert_enrolled_nodes_kept(server: &ControlPlane, answered: &[(String, String)]) {
    let nodes = server.cli_json(&["node", "list"]).await;
    for (id, address) in answered {
        let node = nodes.as_array().unwrap().iter().find(|n| n["id"] == id.as_str()).expect("accepted and missing");
        assert!(node["addresses"][0].as_str().unwrap().starts_with(&format!("{address}/")), "{node}");
    }
}

async fn locked_database_is_503(kind: Kind) {
    let database = fresh(kind).await;
    let url = database.url.clone();
    let server = ControlPlane::start(database).await;
    let token = server.create_network("10.8.0.0/24").await;
    let mut known = server.device("known");
    assert_eq!(known.enrol(&token).await.0, 200);
    // Another writer does not end: it holds the file's write lock, or the network's row.
    let other = Store::open(&url).await.unwrap();
    let mut tx = other.write().await.unwrap();
    tx.lock_network("field").await.unwrap();
    let mut edge = server.device("edge-1");
    let (status, answer) = edge.enrol(&token).await;
    assert_eq!((status, answer["detail"]["code"].as_str()), (503, Some("unavailable")), "{answer}");
    let log = server.log();
    assert!(log.contains("busy") || log.contains("locked"), "{log}");
    assert_eq!(known.ask("GET", &format!("{STATE}?after=0"), "").await.0, 200, "reads are served");
    drop(tx);
    assert_eq!(edge.enrol(&token).await.0, 200);
    assert_consistent(&server, &[]).await;
}

/// A command line that runs `mount` in a mount namespace of its own and then becomes the control plane.
fn mounted(mount: &str) -> Vec<String> {
    let mut words: Vec<String> = ["unshare", "--mount", "--propagation", "private"].map(str::to_owned).into();
    if !rustix::process::geteuid().is_root() {
        words.push("--map-root-user".into());
    }
    words.extend(["sh", "-c", &format!("{mount} && exec \"$@\""), "sh"].map(str::to_owned));
    words
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_refuses_and_recovers() {
    let disk = tempfile::tempdir().unwrap();
    let at = disk.path().display();
    let database = crate::database::Database::at(format!("sqlite:{at}/fleet.db"));
    let setup =
        Settings { wrap: mounted(&format!("mount -t tmpfs -o size=8m,mode=0700 tmpfs {at}")), ..Settings::default() };
    let server = ControlPlane::start_as(database, setup).await;
    // Only the process sees this database, so operators use HTTP instead of the command line.
    let created = server.operator("POST", "/api/networks", r#"{"name": "field", "pool4": "10.8.0.0/20"}"#).await;
    assert_eq!(created.0, 200, "{created:?}");
    let created = server.operator("POST", "/api/tokens", r#"{"network": "field", "max_uses": 1000}"#).await;
    let token = created.1["data"]["token"].as_str().unwrap().to_owned();
    assert_eq!(server.device("edge-0").enrol(&token).await.0, 200);
    let filler = server.inside(&disk.path().join("filler"));
    let fill = || {
        use std::io::Write as _;
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&filler).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    };
    fill();
    let mut refused = None;
    for i in 1..200 {
        // The preallocated write-ahead log takes a few more.
        let (status, answer) = server.device(&format!("edge-{i}")).enrol(&token).await;
        if status != 200 {
            refused = Some((i, status, answer));
            break;
        }
        fill();
    }
    let (i, status, answer) = refused.expect("the disk is full");
    assert_eq!((status, answer["detail"]["code"].as_str()), (503, Some("unavailable")), "{answer}");
    assert!(server.log().contains("no space left"), "{}", server.log());
    let (status, list) = server.operator("GET", "/api/nodes", "").await;
    assert_eq!(
        (status, list["data"]["items"].as_array().map(Vec::len)),
        (200, Some(i)),
        "reads are served, and there is no partial enrolment"
    );
    std::fs::remove_file(&filler).unwrap();
    let (status, answer) = server.device(&format!("edge-{i}")).enrol(&token).await;
    assert_eq!(status, 200, "without a restart: {answer} {}", server.log());
    let (_, tokens) = server.operator("GET", "/api/tokens", "").await;
    assert_eq!(tokens["data"]["items"][0]["uses"], i + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_file_error_names_remedy() {
    let database = fresh(Kind::Sqlite).await;
    let file = std::path::PathBuf::from(database.url.strip_prefix("sqlite:").unwrap());
    let mut server = ControlPlane::start(database).await;
    server.create_network("10.8.0.0/24").await;
    server.stop().await;
    let dir = file.parent().unwrap().display();
    let words = mounted(&format!("mount --bind {dir} {dir} && mount -o remount,bind,ro {dir}"));
    let out = tokio::process::Command::new(&words[0])
        .args(&words[1..])
        .args([env!("CARGO_BIN_EXE_spoke-control"), "--config"])
        .arg(server.dir.path().join("spoke-control.toml"))
        .arg("serve")
        .output()
        .await
        .unwrap();
    let log = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{log}");
    assert!(log.contains("read-only") && log.contains("owner"), "{log}");
    server.start_again().await;
    assert!(server.cli_ok(&["network", "list"]).await.contains("field"), "the data is intact");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_postgres_still_serves_reads() {
    let cluster = Cluster::start().await;
    let url = cluster.database().await;
    let server = ControlPlane::start_on(&url, None, Settings::default()).await;
    let token = server.create_network("10.8.0.0/24").await;
    let mut known = server.device("known");
    assert_eq!(known.enrol(&token).await.0, 200);
    cluster.sql(&["ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"]).await;
    let mut count = 0;
    let refused = wait_until("writes are refused", async || {
        count += 1;
        let (status, answer) = server.device(&format!("early-{count}")).enrol(&token).await;
        (status != 200).then_some((status, answer["detail"]["code"].clone()))
    })
    .await;
    assert_eq!(refused, (503, "unavailable".into()));
    assert!(server.log().contains("read-only"), "{}", server.log());
    assert_eq!(known.ask("GET", &format!("{STATE}?after=0"), "").await.0, 200);
    let (code, log) =
        run(&server.dir.path().join("spoke-control.toml"), &["token", "create", "--network", "field"]).await;
    assert!(code == 1 && log.contains("read-only"), "{code} {log}");
    cluster.sql(&["ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"]).await;
    enrol_until_accepted(server.device("edge-2"), token).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_restart_under_load_loses_nothing() {
    let cluster = Cluster::start().await;
    let url = cluster.database().await;
    let mut server = ControlPlane::start_on(&url, None, Settings::default()).await;
    let token = server.create_network("10.8.0.0/20").await;
    let mut waiting = server.device("waiting");
    assert_eq!(waiting.enrol(&token).await.0, 200);
    let (_, first) = waiting.ask("GET", &format!("{STATE}?after=0"), "").await;
    let generation = first["document"]["generation"].as_u64().unwrap();
    // One long-poll from before the first restart to after the last.
    let path = format!("{STATE}?after={generation}&wait=300");
    let mut request = waiting.signed("GET", &path, Vec::new());
    request.timeout = Duration::from_secs(310);
    let polling = tokio::spawn(async move {
        let answer = spoke_sys::http::Http::send(&mut waiting.http, request).await.unwrap();
        (answer.status, serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap_or_default())
    });
    let mut joining = JoinSet::new();
    for i in 0..80 {
        joining.spawn(enrol_until_accepted(server.device(&format!("edge-{i}")), token.clone()));
    }
    let mut answered = Vec::new();
    for mode in ["fast", "immediate"] {
        for _ in 0..15 {
            let (device, address) = joining.join_next().await.unwrap().unwrap();
            answered.push((device.id.to_string(), address));
        }
        cluster.restart(mode).await;
    }
    while let Some(done) = joining.join_next().await {
        let (device, address) = done.unwrap();
        answered.push((device.id.to_string(), address));
    }
    assert_consistent(&server, &answered).await;
    assert!(!polling.is_finished(), "the long-poll stays open");
    // Notifications work again: a change by another process ends the long-poll.
    server.cli_ok(&["node", "override", "waiting", "--mtu", "1300"]).await;
    let (status, document) = tokio::time::timeout(Duration::from_secs(60), polling).await.unwrap().unwrap();
    assert_eq!((status, &document["document"]["interfaces"][0]["overrides"]["mtu"]), (200, &1300.into()));
    server.stop().await;
}

/// Several control planes on one database: every client may use any of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_one_fleet() {
    let database = fresh(Kind::Postgres).await;
    let url = database.url.clone();
    let mut first = ControlPlane::start(database).await;
    let replica_of = Some(first.dir.path().to_owned());
    let second = ControlPlane::start_on(&url, None, Settings { replica_of, ..Settings::default() }).await;
    let third = ControlPlane::start_on(
        &url,
        None,
        Settings { replica_of: Some(second.dir.path().to_owned()), ..Settings::default() },
    )
    .await;
    let token = first.create_network("10.8.0.0/20").await;
    let all = [&first, &second, &third];
    let mut joining = JoinSet::new();
    for i in 0..90 {
        joining.spawn(enrol_until_accepted(all[i % 3].device(&format!("edge-{i}")), token.clone()));
    }
    let answered: Vec<_> = joining.join_all().await.into_iter().map(|(d, a)| (d.id.to_string(), a)).collect();
    let different: BTreeSet<_> = answered.iter().map(|t| &t.1).collect();
    assert_eq!(different.len(), 90, "no address twice");
    assert_consistent(&third, &answered).await;

    // Enrolled at one, polls at another, changed at a third. A replay of a change is refused at every one.
    let mut edge = second.device("edge-0");
    let (status, state) = edge.ask("GET", &format!("{STATE}?after=0"), "").await;
    assert_eq!(status, 200);
    let generation = state["document"]["generation"].as_u64().unwrap();
    let polling =
        tokio::spawn(async move { edge.ask("GET", &format!("{STATE}?after={generation}&wait=50"), "").await });
    let (status, _) = third.operator("PUT", "/api/nodes/edge-0", r#"{"overrides": {"override_mtu": 1300}}"#).await;
    assert_eq!(status, 200);
    let (status, document) = polling.await.unwrap();
    assert_eq!((status, &document["document"]["interfaces"][0]["overrides"]["mtu"]), (200, &1300.into()));
    let register = serde_json::json!({
        "wireguard_address": "10.8.0.2", "wireguard_public_key": crate::fixture::request("edge-0").wireguard_public_key,
        "interface_name": "wg0", "hub_endpoint": "192.0.2.1:51820", "registered_at": "2026-01-01T00:00:00Z",
    });
    let request = first.device("edge-0").signed("POST", "/api/v1/nodes/register", register.to_string().into_bytes());
    let (mut here, mut there) = (first.client(), third.client());
    let send = async |http: &mut spoke_sys::http::HttpsClient| {
        spoke_sys::http::Http::send(http, request.clone()).await.unwrap().status
    };
    assert_eq!((send(&mut here).await, send(&mut there).await), (200, 401), "replayed at another one");

    // Probed at one, polls at another.
    let mut edge = second.device("edge-2");
    let (_, state) = edge.ask("GET", &format!("{STATE}?after=0"), "").await;
    let generation = state["document"]["generation"].as_u64().unwrap();
    let polling = tokio::spawn(async move {
        loop {
            edge.ask("GET", &format!("{STATE}?after={generation}&wait=50"), "").await;
        }
    });
    second.wait_for_polls(1).await;
    wait_until("the node passes", async || {
        (third.operator("POST", "/api/nodes/edge-2/test", "").await.0 == 200).then_some(())
    })
    .await;
    polling.abort();

    // A signing key added at one is used by all.
    let key = first.cli_ok(&["signing-key", "add"]).await;
    let mut edge = third.device("edge-1");
    wait_until("the third one signs with the new key", async || {
        let (_, envelope) = edge.ask("GET", &format!("{STATE}?after=0"), "").await;
        envelope["signatures"].as_array()?.iter().any(|s| s["key"] == key.as_str()).then_some(())
    })
    .await;
    first.stop().await;
    assert_eq!(third.device("edge-3").enrol(&token).await.0, 200, "the others serve on");
}
