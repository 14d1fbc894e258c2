//! Attacks on the audit trail: floods, changes of records, removals.
use crate::database::{Kind, fresh, open};
use crate::fixture::{NOW, backup_key, open_with_network, operator};
use crate::server::ControlPlane;
use spoke_control::store::Store;
use spoke_control::store::audit::{Actor, AuditFilter};
use spoke_control::store::audit_chain::AuditRetention;
use std::collections::BTreeSet;

crate::on_both_databases![
    flood_of_a_node_leaves_few_records_and_the_operators_alone,
    changed_and_removed_records_are_found,
    audit_trail_is_kept_by_age_and_number,
    two_control_planes_write_one_chain,
    records_of_earlier_releases_are_kept_and_counted,
    addresses_of_unknown_clients_do_not_fill_the_audit_trail,
    audit_trail_is_verified_and_exported_by_command,
];

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

async fn add(store: &Store, actor: &Actor, at_ms: i64, details: serde_json::Value) {
    let mut tx = store.write().await.unwrap();
    tx.audit(at_ms, actor, "announce", ("node", "edge-1"), details).await.unwrap();
    tx.commit().await.unwrap();
}

async fn count(store: &Store) -> usize {
    let filter = AuditFilter { limit: 1_000_000, ..AuditFilter::default() };
    store.read().await.unwrap().audit_records(&filter).await.unwrap().len()
}

async fn fault(store: &Store, noted: &[&str]) -> Option<String> {
    let noted = noted.iter().map(|n| (*n).to_owned()).collect();
    store.read().await.unwrap().verify_audit(&noted).await.unwrap().fault()
}

fn keep(days: i64, records: i64) -> AuditRetention {
    AuditRetention { keep_ms: days * DAY_MS, records }
}

/// A node announces another key at each of its five requests a second: 430 MB a day.
async fn flood_of_a_node_leaves_few_records_and_the_operators_alone(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    let node = Actor::Node("edge-1".into());
    let before = count(&store).await;
    for i in 0..500 {
        add(&store, &node, NOW + i * 200, serde_json::json!({"wireguard_public_key": format!("key {i}")})).await;
        if i % 100 == 0 {
            add(&store, &operator(), NOW + i * 200, serde_json::json!({"i": i})).await;
        }
    }
    let after = count(&store).await;
    assert!(after - before <= 5 + 5, "{} records of 505 changes", after - before);
    assert!(store.prune_audit(NOW + HOUR_MS + 1, keep(365, 1_000)).await.unwrap());
    let filter = AuditFilter { action: Some("announce".into()), limit: 1, ..AuditFilter::default() };
    let newest = store.read().await.unwrap().audit_records(&filter).await.unwrap().remove(0);
    assert_eq!((newest.actor.as_str(), &newest.details["repeats"]), ("node:edge-1", &495.into()), "none is forgotten");
    assert_eq!(fault(&store, &[]).await, None);
    add(&store, &node, NOW + HOUR_MS + 2, serde_json::json!({})).await;
    assert_eq!(count(&store).await, after + 2, "the next hour begins with whole records");
}

async fn changed_and_removed_records_are_found(kind: Kind) {
    let mut heads = Vec::new();
    let attacks: [(&str, &'static str, bool); 6] = [
        ("nothing", "UPDATE audit SET details = details", false),
        ("a change", "UPDATE audit SET actor = 'operator:other' WHERE id = (SELECT MIN(id) + 2 FROM audit)", true),
        ("a removal", "DELETE FROM audit WHERE id = (SELECT MIN(id) + 2 FROM audit)", true),
        ("of the oldest", "DELETE FROM audit WHERE id = (SELECT MIN(id) FROM audit)", true),
        ("of the newest", "DELETE FROM audit WHERE id = (SELECT MAX(id) FROM audit)", true),
        ("of all", "DELETE FROM audit", true),
    ];
    for (name, sql, found) in attacks {
        let (store, _db) = open(kind).await;
        for i in 0..5 {
            add(&store, &operator(), NOW + i, serde_json::json!({"i": i})).await;
        }
        let head = store.read().await.unwrap().verify_audit(&BTreeSet::new()).await.unwrap().chains[0].head.clone();
        assert_eq!(fault(&store, &[&head]).await, None);
        let mut tx = store.write().await.unwrap();
        tx.run(sql, &[]).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(fault(&store, &[]).await.is_some(), found, "{name}");
        heads.push(head);
    }
    // Written again as a whole, with a chain that fits.
    let (store, _db) = open(kind).await;
    add(&store, &operator(), NOW, serde_json::json!({"i": "forged"})).await;
    assert_eq!(fault(&store, &[]).await, None);
    assert!(fault(&store, &[&heads[0]]).await.is_some_and(|f| f.contains("written again")));
}

async fn audit_trail_is_kept_by_age_and_number(kind: Kind) {
    let (store, _db) = open(kind).await;
    for i in 0..1_100 {
        let mut tx = store.write().await.unwrap();
        tx.audit(NOW + i, &operator(), "set", ("node", "edge-1"), serde_json::json!({"i": i})).await.unwrap();
        tx.commit().await.unwrap();
    }
    store.prune_audit(NOW + DAY_MS, keep(365, 1_090)).await.unwrap();
    assert_eq!(count(&store).await, 1_090, "by number");
    assert_eq!(fault(&store, &[]).await, None, "the rest is a chain");
    // The clock jumps by years.
    store.prune_audit(NOW + 10_000 * DAY_MS, keep(365, 1_090)).await.unwrap();
    assert_eq!(count(&store).await, 1_000, "by age, but never all of it");
    assert_eq!(fault(&store, &[]).await, None);
    add(&store, &operator(), NOW + 2, serde_json::json!({})).await;
    assert_eq!(fault(&store, &[]).await, None);
}

/// Each writer reads the newest hash before it adds a record: two that read the same one would fork the chain.
async fn two_control_planes_write_one_chain(kind: Kind) {
    let (first, db) = open(kind).await;
    let second = Store::open(&db.url).await.unwrap();
    let write = async |store: Store, who: &'static str| {
        for i in 0..40 {
            let mut tx = store.write().await.unwrap();
            // The order of the chains differs between the writers.
            let node = Actor::Node(format!("{who}-{i}"));
            let mut actors = [&node, &operator()].map(Clone::clone);
            if who == "b" {
                actors.reverse();
            }
            for actor in &actors {
                let entity = ("node", actor.to_string());
                tx.audit(NOW + i, actor, "set", (entity.0, &entity.1), serde_json::json!({"i": i})).await.unwrap();
            }
            tx.commit().await.unwrap();
        }
    };
    let prune = async |store: Store| {
        for i in 0..10 {
            store.prune_audit(NOW + i * DAY_MS, keep(36_500, 1_000)).await.unwrap();
        }
    };
    tokio::join!(
        write(first.clone(), "a"),
        write(second.clone(), "b"),
        write(second.clone(), "c"),
        prune(first.clone())
    );
    assert_eq!(count(&first).await, 240);
    let report = second.read().await.unwrap().verify_audit(&BTreeSet::new()).await.unwrap();
    assert_eq!((report.fault(), report.unchained), (None, 0));
    assert!(report.chains.iter().all(|c| c.records == 120), "{report:?}");
}

async fn records_of_earlier_releases_are_kept_and_counted(kind: Kind) {
    let (store, _db) = open(kind).await;
    let mut tx = store.write().await.unwrap();
    for _ in 0..3 {
        let sql = "INSERT INTO audit (at_ms, actor, action, entity_type, entity_id, details)
            VALUES ($1, 'operator:before', 'set', 'node', 'edge-1', '{}')";
        tx.run(sql, &[NOW.into()]).await.unwrap();
    }
    tx.commit().await.unwrap();
    add(&store, &operator(), NOW + 1, serde_json::json!({})).await;
    let report = store.read().await.unwrap().verify_audit(&BTreeSet::new()).await.unwrap();
    assert_eq!((report.fault(), report.unchained), (None, 3));
    assert_eq!(report.unchained_until_ms, Some(NOW.unsigned_abs()));
    assert_eq!(count(&store).await, 4);
    // A backup keeps the chain, and the hashes still fit where it is restored.
    let mut file = Vec::new();
    store.backup(&mut file, &backup_key()).await.unwrap();
    let (restored, _other) = open(kind).await;
    restored.restore(file.as_slice(), Some(&backup_key())).await.unwrap();
    let head = report.chains[0].head.clone();
    assert_eq!(fault(&restored, &[&head]).await, None);
    add(&restored, &operator(), NOW + 2, serde_json::json!({})).await;
    assert_eq!((fault(&restored, &[&head]).await, count(&restored).await), (None, 5));
}

async fn addresses_of_unknown_clients_do_not_fill_the_audit_trail(kind: Kind) {
    let (store, _db) = open(kind).await;
    for i in 0..300 {
        let mut tx = store.write().await.unwrap();
        let address = format!("192.0.2.{i}");
        tx.audit(NOW, &Actor::System, "token_refused", ("address", &address), serde_json::json!({})).await.unwrap();
        tx.commit().await.unwrap();
    }
    assert_eq!(count(&store).await, 100);
    store.prune_audit(NOW + HOUR_MS, keep(365, 1_000)).await.unwrap();
    let filter = AuditFilter { limit: 1, ..AuditFilter::default() };
    let newest = store.read().await.unwrap().audit_records(&filter).await.unwrap().remove(0);
    assert_eq!((newest.entity_id.as_str(), &newest.details["repeats"]), ("*", &200.into()));
}

async fn audit_trail_is_verified_and_exported_by_command(kind: Kind) {
    let server = ControlPlane::start(fresh(kind).await).await;
    server.create_network("10.8.0.0/24").await;
    let report = server.cli_json(&["audit", "verify"]).await;
    let head = report["chains"][0]["head"].as_str().unwrap().to_owned();
    assert_eq!(report["chains"][0]["chain"], "operators");
    let exported = server.cli_ok(&["audit", "export"]).await;
    let records: Vec<serde_json::Value> = exported.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(records.last().unwrap()["hash"], head.as_str());
    let listed = server.cli_json(&["audit", "--limit", "1000"]).await;
    assert_eq!(listed.as_array().unwrap().len(), records.len());
    let (store, sql) = (Store::open(&server.url()).await.unwrap(), "UPDATE audit SET actor = 'operator:other'");
    let mut tx = store.write().await.unwrap();
    tx.run(sql, &[]).await.unwrap();
    tx.commit().await.unwrap();
    let (code, output) = server.cli(&["audit", "verify", "--noted", &head]).await;
    assert!(code == 1 && output.contains("was changed"), "{code} {output}");
}
