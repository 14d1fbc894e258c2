//! Databases in trouble under a served control plane: locked, full, read-only, cut off in the middle, restarted under load.
use crate::db::{Cluster, Kind, fresh};
use crate::serving::{Device, Serving, Setup, run, until};
use spoke_control::store::Store;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::task::JoinSet;

crate::on_both![a_kill_in_the_middle_leaves_nothing_half_done, writes_wait_for_a_lock_and_give_up];

const STATE: &str = "/api/v1/nodes/self/state";

async fn fleet(serving: &Serving, pool: &str) -> String {
    serving.done(&["network", "create", "field", "--pool4", pool]).await;
    serving.done(&["token", "create", "--network", "field", "--uses", "10000"]).await
}

/// Enrols until the answer is yes; gives the address, and how often it was something else.
async fn persist(mut device: Device, token: String) -> (Device, String, u32) {
    let mut refused = 0;
    loop {
        let asked = device.try_enrol(&token).await;
        match asked {
            Ok((200, answer)) => {
                let address = answer["config"]["assigned_ip"].as_str().unwrap().to_owned();
                return (device, address, refused);
            }
            Ok((503, answer)) => assert_eq!(answer["detail"]["code"], "unavailable", "{answer}"),
            // Signed before this process began: what an earlier one has seen is not taken again.
            Ok((401, answer)) if answer["detail"]["code"] == "clock_skew" => {}
            Ok((status, answer)) => panic!("{status} {answer}"),
            Err(_) => {}
        }
        refused += 1;
        assert!(refused < 2000, "{} is never let in", device.id);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Every node has one address of its own, the one it was told; no use of a token is lost or counted twice.
async fn nothing_is_half_done(serving: &Serving, told: &[(String, String)]) {
    let nodes = serving.json(&["node", "list"]).await;
    let nodes = nodes.as_array().unwrap();
    let mut seen = BTreeSet::new();
    for node in nodes {
        let address = node["addresses"][0].as_str().expect("an address").split('/').next().unwrap().to_owned();
        assert_eq!(node["addresses"].as_array().unwrap().len(), 1, "{node}");
        assert!(seen.insert(address.clone()), "{address} twice");
        if let Some((_, mine)) = told.iter().find(|(id, _)| node["id"] == id.as_str()) {
            assert_eq!(&address, mine, "what was answered holds");
        }
    }
    for (id, _) in told {
        assert!(nodes.iter().any(|n| n["id"] == id.as_str()), "{id} was let in and is gone");
    }
    let tokens = serving.json(&["token", "list"]).await;
    assert_eq!(tokens[0]["uses"].as_u64(), Some(nodes.len() as u64), "one use a node");
    let audit = serving.json(&["audit", "--limit", "10000"]).await;
    let enrolled = audit.as_array().unwrap().iter().filter(|r| r["action"] == "enrol").count();
    assert_eq!(enrolled, nodes.len(), "one record a node");
}

async fn a_kill_in_the_middle_leaves_nothing_half_done(kind: Kind) {
    let mut serving = Serving::start(fresh(kind).await).await;
    let token = fleet(&serving, "10.8.0.0/20").await;
    let mut joining = JoinSet::new();
    for i in 0..60 {
        joining.spawn(persist(serving.device(&format!("edge-{i}")), token.clone()));
    }
    let mut told = Vec::new();
    for _ in 0..3 {
        for _ in 0..8 {
            let (device, address, _) = joining.join_next().await.unwrap().unwrap();
            told.push((device.id.to_string(), address));
        }
        serving.kill().await;
        serving.start_again().await;
        nothing_is_half_done_yet(&serving, &told).await;
    }
    while let Some(done) = joining.join_next().await {
        let (device, address, _) = done.unwrap();
        told.push((device.id.to_string(), address));
    }
    assert_eq!(told.len(), 60);
    nothing_is_half_done(&serving, &told).await;
    serving.stop().await;
}

/// As [`nothing_is_half_done`], while others go on enrolling: only what cannot change under the look.
async fn nothing_is_half_done_yet(serving: &Serving, told: &[(String, String)]) {
    let nodes = serving.json(&["node", "list"]).await;
    for (id, address) in told {
        let node = nodes.as_array().unwrap().iter().find(|n| n["id"] == id.as_str()).expect("let in and gone");
        assert!(node["addresses"][0].as_str().unwrap().starts_with(&format!("{address}/")), "{node}");
    }
}

async fn writes_wait_for_a_lock_and_give_up(kind: Kind) {
    let database = fresh(kind).await;
    let url = database.url.clone();
    let serving = Serving::start(database).await;
    let token = fleet(&serving, "10.8.0.0/24").await;
    let mut known = serving.device("known");
    assert_eq!(known.enrol(&token).await.0, 200);
    // Somebody else writes and does not end: the file's write lock, or the network's row.
    let other = Store::open(&url).await.unwrap();
    let mut tx = other.write().await.unwrap();
    tx.lock_network("field").await.unwrap();
    let mut edge = serving.device("edge-1");
    let (status, answer) = edge.enrol(&token).await;
    assert_eq!((status, answer["detail"]["code"].as_str()), (503, Some("unavailable")), "{answer}");
    let said = serving.said();
    assert!(said.contains("busy") || said.contains("locked"), "the log names it: {said}");
    assert_eq!(known.ask("GET", &format!("{STATE}?after=0"), "").await.0, 200, "reading goes on");
    drop(tx);
    assert_eq!(edge.enrol(&token).await.0, 200);
    nothing_is_half_done(&serving, &[]).await;
}

/// A command that mounts `mount` and then becomes the control plane, in a mount namespace of its own.
fn mounted(mount: &str) -> Vec<String> {
    let mut words: Vec<String> = ["unshare", "--mount", "--propagation", "private"].map(str::to_owned).into();
    if !rustix::process::geteuid().is_root() {
        words.push("--map-root-user".into());
    }
    words.extend(["sh", "-c", &format!("{mount} && exec \"$@\""), "sh"].map(str::to_owned));
    words
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_and_recovers() {
    let disk = tempfile::tempdir().unwrap();
    let at = disk.path().display();
    let database = crate::db::Database::at(format!("sqlite:{at}/fleet.db"));
    let setup = Setup { wrap: mounted(&format!("mount -t tmpfs -o size=8m,mode=0700 tmpfs {at}")), ..Setup::default() };
    let serving = Serving::start_as(database, setup).await;
    // The command line works on the store itself, which only the process sees here: operators come by HTTP.
    let made = serving.operator("POST", "/api/networks", r#"{"name": "field", "pool4": "10.8.0.0/20"}"#).await;
    assert_eq!(made.0, 200, "{made:?}");
    let made = serving.operator("POST", "/api/tokens", r#"{"network": "field", "max_uses": 1000}"#).await;
    let token = made.1["data"]["token"].as_str().unwrap().to_owned();
    assert_eq!(serving.device("edge-0").enrol(&token).await.0, 200);
    let filler = serving.inside(&disk.path().join("filler"));
    let fill = || {
        use std::io::Write as _;
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&filler).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    };
    fill();
    let mut refused = None;
    for i in 1..200 {
        // What the log of the database has grown before still takes a few.
        let (status, answer) = serving.device(&format!("edge-{i}")).enrol(&token).await;
        if status != 200 {
            refused = Some((i, status, answer));
            break;
        }
        fill();
    }
    let (i, status, answer) = refused.expect("the disk is full");
    assert_eq!((status, answer["detail"]["code"].as_str()), (503, Some("unavailable")), "{answer}");
    assert!(serving.said().contains("no space left"), "{}", serving.said());
    let (status, list) = serving.operator("GET", "/api/nodes", "").await;
    assert_eq!(
        (status, list["data"].as_array().map(Vec::len)),
        (200, Some(i)),
        "reading goes on, and nothing is half done"
    );
    std::fs::remove_file(&filler).unwrap();
    let (status, answer) = serving.device(&format!("edge-{i}")).enrol(&token).await;
    assert_eq!(status, 200, "without a restart: {answer} {}", serving.said());
    let (_, tokens) = serving.operator("GET", "/api/tokens", "").await;
    assert_eq!(tokens["data"][0]["uses"], i + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_file_is_named_with_its_remedy() {
    let database = fresh(Kind::Sqlite).await;
    let file = std::path::PathBuf::from(database.url.strip_prefix("sqlite:").unwrap());
    let mut serving = Serving::start(database).await;
    fleet(&serving, "10.8.0.0/24").await;
    serving.stop().await;
    let dir = file.parent().unwrap().display();
    let words = mounted(&format!("mount --bind {dir} {dir} && mount -o remount,bind,ro {dir}"));
    let out = tokio::process::Command::new(&words[0])
        .args(&words[1..])
        .args([env!("CARGO_BIN_EXE_spoke-control"), "--config"])
        .arg(serving.dir.path().join("spoke-control.toml"))
        .arg("serve")
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("read-only") && said.contains("owner"), "{said}");
    serving.start_again().await;
    assert!(serving.done(&["network", "list"]).await.contains("field"), "nothing was harmed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_postgres_still_serves_who_is_there() {
    let cluster = Cluster::start().await;
    let url = cluster.database().await;
    let serving = Serving::start_on(&url, None, Setup::default()).await;
    let token = fleet(&serving, "10.8.0.0/24").await;
    let mut known = serving.device("known");
    assert_eq!(known.enrol(&token).await.0, 200);
    cluster.sql(&["ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"]).await;
    let mut count = 0;
    let refused = until("it is read-only", async || {
        count += 1;
        let (status, answer) = serving.device(&format!("early-{count}")).enrol(&token).await;
        (status != 200).then_some((status, answer["detail"]["code"].clone()))
    })
    .await;
    assert_eq!(refused, (503, "unavailable".into()));
    assert!(serving.said().contains("read-only"), "{}", serving.said());
    assert_eq!(known.ask("GET", &format!("{STATE}?after=0"), "").await.0, 200);
    let (code, said) =
        run(&serving.dir.path().join("spoke-control.toml"), &["token", "create", "--network", "field"]).await;
    assert!(code == 1 && said.contains("read-only"), "{code} {said}");
    cluster.sql(&["ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"]).await;
    persist(serving.device("edge-2"), token).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_postgres_under_load_loses_nothing() {
    let cluster = Cluster::start().await;
    let url = cluster.database().await;
    let mut serving = Serving::start_on(&url, None, Setup::default()).await;
    let token = fleet(&serving, "10.8.0.0/20").await;
    let mut waiting = serving.device("waiting");
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
        joining.spawn(persist(serving.device(&format!("edge-{i}")), token.clone()));
    }
    let (mut told, mut refused) = (Vec::new(), 0);
    for mode in ["fast", "immediate"] {
        for _ in 0..15 {
            let (device, address, no) = joining.join_next().await.unwrap().unwrap();
            told.push((device.id.to_string(), address));
            refused += no;
        }
        cluster.restart(mode).await;
    }
    while let Some(done) = joining.join_next().await {
        let (device, address, no) = done.unwrap();
        told.push((device.id.to_string(), address));
        refused += no;
    }
    assert!(refused > 0, "somebody met the restart");
    nothing_is_half_done(&serving, &told).await;
    assert!(!polling.is_finished(), "who waits is not bothered");
    // Another process changes the node: the notification finds its way again.
    serving.done(&["node", "override", "waiting", "--mtu", "1300"]).await;
    let (status, document) = tokio::time::timeout(Duration::from_secs(60), polling).await.unwrap().unwrap();
    assert_eq!((status, &document["document"]["interfaces"][0]["overrides"]["mtu"]), (200, &1300.into()));
    serving.stop().await;
}

/// Several control planes on one database: no client has to come back to the same one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_one_control_plane() {
    let database = fresh(Kind::Postgres).await;
    let url = database.url.clone();
    let mut first = Serving::start(database).await;
    let like = Some(first.dir.path().to_owned());
    let second = Serving::start_on(&url, None, Setup { like, ..Setup::default() }).await;
    let third =
        Serving::start_on(&url, None, Setup { like: Some(second.dir.path().to_owned()), ..Setup::default() }).await;
    let token = fleet(&first, "10.8.0.0/20").await;
    let all = [&first, &second, &third];
    let mut joining = JoinSet::new();
    for i in 0..90 {
        joining.spawn(persist(all[i % 3].device(&format!("edge-{i}")), token.clone()));
    }
    let told: Vec<_> = joining.join_all().await.into_iter().map(|(d, a, _)| (d.id.to_string(), a)).collect();
    let different: BTreeSet<_> = told.iter().map(|t| &t.1).collect();
    assert_eq!(different.len(), 90, "no address twice");
    nothing_is_half_done(&third, &told).await;

    // Enrolled by one, waits at another, changed by a third; a request that changes something counts once among them all.
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
        "wireguard_address": "10.8.0.2", "wireguard_public_key": crate::world::request("edge-0").wireguard_public_key,
        "interface_name": "wg0", "hub_endpoint": "192.0.2.1:51820", "registered_at": "2026-01-01T00:00:00Z",
    });
    let request = first.device("edge-0").signed("POST", "/api/v1/nodes/register", register.to_string().into_bytes());
    let (mut here, mut there) = (first.client(), third.client());
    let send = async |http: &mut spoke_sys::http::HttpsClient| {
        spoke_sys::http::Http::send(http, request.clone()).await.unwrap().status
    };
    assert_eq!((send(&mut here).await, send(&mut there).await), (200, 401), "a replay at another one");

    // Who is called at one, comes back at another.
    let mut edge = second.device("edge-2");
    let (_, state) = edge.ask("GET", &format!("{STATE}?after=0"), "").await;
    let generation = state["document"]["generation"].as_u64().unwrap();
    let polling = tokio::spawn(async move {
        loop {
            edge.ask("GET", &format!("{STATE}?after={generation}&wait=50"), "").await;
        }
    });
    until("the node waits", async || (second.status().await["connected"] == 1).then_some(())).await;
    let (_, answer) = third.operator("POST", "/api/nodes/edge-2/test", "").await;
    assert_eq!(answer["data"]["reachable"], true, "{answer}");
    polling.abort();

    // A signing key made by one is used by all.
    let key = first.done(&["signing-key", "add"]).await;
    let mut edge = third.device("edge-1");
    until("the third one signs with the new key", async || {
        let (_, envelope) = edge.ask("GET", &format!("{STATE}?after=0"), "").await;
        envelope["signatures"].as_array()?.iter().any(|s| s["key"] == key.as_str()).then_some(())
    })
    .await;
    first.stop().await;
    assert_eq!(third.device("edge-3").enrol(&token).await.0, 200, "one less is no matter");
}
