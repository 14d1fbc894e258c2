//! The store on both databases: transactions, wake-ups, jobs, reports, backup, migrations.
use crate::database::{Kind, open};
use crate::fixture::{
    NOW, document, hub, join, network, open_with_network, operator, put_report, report, store_report, token,
};
use spoke_control::api::view::NodeView;
use spoke_control::registry::node_change::NodeChange;
use spoke_control::registry::nodes;
use spoke_control::signing::{MasterKey, SigningKeys};
use spoke_control::store::backup::{BackupError, NOT_DUMPED, NOT_DUMPED_COLUMNS, dumped_columns};
use spoke_control::store::nonce::UsedNonce;
use spoke_control::store::operator_key::OperatorRole;
use spoke_control::store::report::ReceivedReport;
use spoke_control::store::{Store, StoreError};
use spoke_enroll::document::StateDocument;
use spoke_enroll::wire::ReportOrder;
use std::collections::BTreeSet;

crate::on_both_databases![
    dropped_transaction_leaves_nothing,
    changes_wake_other_processes,
    due_job_runs_once,
    older_report_is_ignored,
    reports_are_ordered_without_a_clock,
    clock_set_back_stops_neither_reports_nor_jobs,
    backup_restores_into_either_database,
    changed_backup_is_refused,
    every_table_is_dumped_or_exempt_by_name,
    job_has_one_holder_until_its_term_ends,
    newer_schema_is_refused,
];

async fn dropped_transaction_leaves_nothing(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    let once = token(&store, 1).await;
    let mut tx = store.write().await.unwrap();
    tx.redeem_token(&once, &"edge-1".parse().unwrap(), NOW).await.unwrap().unwrap();
    tx.raise_network_generations("field").await.unwrap();
    drop(tx);
    join(&store, "edge-1", &once).await.expect("the dropped transaction did not use the token");
    let mut tx = store.write().await.unwrap();
    let field = store.read().await.unwrap().network("field").await.unwrap().unwrap();
    let again = tx.add_network(&field, NOW).await;
    assert!(matches!(again, Err(StoreError::UniqueViolation(_))), "{again:?}");
}

async fn changes_wake_other_processes(kind: Kind) {
    let (here, db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    let token = token(&here, 10).await;
    join(&here, "edge-1", &token).await.unwrap();
    let there = Store::open(&db.url).await.unwrap();
    let id = "edge-1".parse().unwrap();
    let mut waiter = there.waiter(&id);
    let listener = tokio::spawn({
        let there = there.clone();
        async move { there.listen().await }
    });
    // A new listener wakes every waiter, because it may have missed changes.
    waiter.changed().await;
    let change = NodeChange {
        overrides: Some(serde_json::from_str(r#"{"override_mtu": 1300}"#).unwrap()),
        ..Default::default()
    };
    nodes::change(&here, &id, &change, &operator(), NOW).await.unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(60), waiter.changed()).await.expect("the change wakes it");
    assert_eq!(document(&there, "edge-1").await.interfaces[0].overrides.mtu, Some(1300));
    drop(waiter);
    assert_eq!(there.waiter_count(), 0, "dropped waiters are forgotten");
    listener.abort();
}

async fn due_job_runs_once(kind: Kind) {
    let (store, _db) = open(kind).await;
    let mut claims = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        claims.spawn(async move {
            let mut tx = store.write().await.unwrap();
            let mine = tx.claim_job("sweep", NOW, 1000).await.unwrap();
            tx.commit().await.unwrap();
            mine
        });
    }
    assert_eq!(claims.join_all().await.into_iter().filter(|c| *c).count(), 1);
    assert!(store.prune(NOW).await.unwrap());
    assert!(!store.prune(NOW + 59_999).await.unwrap());
}

async fn older_report_is_ignored(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    join(&store, "edge-1", &token(&store, 1).await).await.unwrap();
    let put = async |sent_ms, generation| {
        let mut tx = store.write().await.unwrap();
        let node = "edge-1".parse().unwrap();
        let received = ReceivedReport {
            node,
            order: None,
            sent_ms,
            received_ms: NOW,
            takes_preshared: false,
            report: report(generation),
        };
        let taken = tx.put_report(&received).await.unwrap();
        tx.commit().await.unwrap();
        taken
    };
    assert!(put(NOW, 5).await);
    assert!(!put(NOW - 1, 9).await && !put(NOW, 9).await);
    assert!(!store_report(&store, "unknown", NOW, report(9)).await);
    let id = "edge-1".parse().unwrap();
    let status = store.read().await.unwrap().node_status(&id).await.unwrap().unwrap();
    let view: NodeView = status.into();
    assert_eq!(view.observed_generation, Some(5), "a replayed or late report changes nothing");
    assert_eq!(view.last_seen.as_deref(), Some("2026-01-01T00:00:00Z"));
    let mut tx = store.write().await.unwrap();
    let used = UsedNonce { node: id, nonce: "aa".into(), until_ms: NOW };
    assert!(tx.use_nonce(&used).await.unwrap());
    assert!(!tx.use_nonce(&used).await.unwrap(), "a nonce is used once");
}

async fn reports_are_ordered_without_a_clock(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    join(&store, "edge-1", &token(&store, 1).await).await.unwrap();
    let put = async |run, number, at_ms| {
        put_report(&store, "edge-1", at_ms, Some(ReportOrder { run, number }), report(number)).await
    };
    const DAY: i64 = 86_400_000;
    assert!(put(7, 1, NOW).await && put(7, 2, NOW + 1).await);
    assert!(!put(7, 1, NOW + 2).await && !put(7, 2, NOW + 3).await, "late or repeated");
    assert!(put(7, 3, NOW - DAY).await, "the server's clock was set back");
    assert!(put(u64::MAX, 1, NOW - DAY - 1).await, "the device was restarted");
    assert!(!put(7, 4, NOW).await, "a late report of the run before");
    assert!(put(u64::MAX, 2, NOW - 2 * DAY).await && put(9, 1, NOW).await);
    assert!(store_report(&store, "edge-1", NOW + 1, report(1)).await, "an older release does not number them");
    assert!(put(10, 1, NOW).await, "and the newer one again");
}

async fn clock_set_back_stops_neither_reports_nor_jobs(kind: Kind) {
    const DAY: i64 = 86_400_000;
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    join(&store, "edge-1", &token(&store, 1).await).await.unwrap();
    assert!(store_report(&store, "edge-1", NOW, report(1)).await);
    assert_eq!(store.read().await.unwrap().fleet_counts(NOW - DAY).await.unwrap().reporting, 0, "its age is unknown");
    assert!(
        store_report(&store, "edge-1", NOW - DAY, report(2)).await
            && store_report(&store, "edge-1", NOW - DAY + 1, report(3)).await
    );
    let counts = store.read().await.unwrap().fleet_counts(NOW - DAY + 2).await.unwrap();
    assert_eq!(counts.reporting, 1);

    let mut tx = store.write().await.unwrap();
    assert!(tx.hold_job("chain", "a", NOW, 30_000).await.unwrap());
    assert!(!tx.hold_job("chain", "b", NOW - 30_000, 30_000).await.unwrap(), "the clocks of two control planes differ");
    assert!(
        tx.hold_job("chain", "b", NOW - DAY, 30_000).await.unwrap(),
        "the term of a is of a future that will not come"
    );
    tx.commit().await.unwrap();
    assert!(store.prune(NOW).await.unwrap() && store.prune(NOW - DAY).await.unwrap());

    let master = MasterKey::new(&[1; 32]).unwrap();
    let first = SigningKeys::load(&store, &master, NOW).await.unwrap().public();
    let mut tx = store.write().await.unwrap();
    let second = SigningKeys::add(&mut tx, &master, NOW - DAY).await.unwrap();
    tx.commit().await.unwrap();
    let keys = SigningKeys::load(&store, &master, NOW).await.unwrap();
    assert_eq!(keys.public(), [first[0], second], "nodes know the first one");
    assert_eq!(keys.oldest().map(spoke_model::signature::SignKey::public), Some(first[0]));
}

async fn backup_restores_into_either_database(kind: Kind) {
    let (store, _db) = open(kind).await;
    let master = MasterKey::new(&[1; 32]).unwrap();
    let keys = SigningKeys::load(&store, &master, NOW).await.unwrap();
    network(&store, "10.8.0.0/24", |n| {
        n.dns = vec!["10.8.0.53".parse().unwrap()];
        let toml =
            "contract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 1\nendpoints = [\"http://h/k\"]";
        n.grants = Some(spoke_config::policy::GrantsPolicy::from_toml(toml).unwrap());
    })
    .await;
    hub(&store, "hub-1", Some("10.8.0.1")).await;
    let token = token(&store, 3).await;
    let config = join(&store, "edge-1", &token).await.unwrap();
    crate::release::set_release(&store, None, "1.4.0").await.unwrap();
    let before = document(&store, "edge-1").await;
    assert!(before.grants.is_some() && before.release.is_some());
    let mut backup = Vec::new();
    let rows = store.backup(&mut backup, &master.backup_key()).await.unwrap();
    let text = String::from_utf8(backup.clone()).unwrap();
    let key = master.backup_key();
    let key = Some(&key);
    assert!(!text.contains(token.splitn(3, '_').nth(2).unwrap()), "no token's secret is in it");

    for other in [Kind::Sqlite, Kind::Postgres] {
        let (restored, _db) = open(other).await;
        let end = text.rfind("{\"rows\"").unwrap();
        assert!(restored.restore(&backup[..end], key).await.unwrap_err().to_string().contains("cut short"));
        assert!(restored.restore(&backup[..end - 20], key).await.is_err(), "cut within a line");
        assert_eq!(restored.restore(backup.as_slice(), key).await.unwrap(), rows, "a failed restore left nothing");
        assert!(restored.restore(backup.as_slice(), key).await.unwrap_err().to_string().contains("not empty"));
        let again = join(&restored, "edge-1", &token).await.unwrap();
        assert_eq!(again, config);
        let after = document(&restored, "edge-1").await;
        assert!(after.generation > before.generation, "later than any generation lost since the backup");
        assert_eq!(StateDocument { generation: before.generation, ..after }, before);
        let theirs = SigningKeys::load(&restored, &master, NOW).await.unwrap();
        assert_eq!(theirs.public(), keys.public());
        join(&restored, "edge-2", &token).await.expect("the restored fleet accepts enrolments");
    }
    let (restored, _db) = open(kind).await;
    assert!(restored.restore(&b"{}\n"[..], key).await.is_err());
}

/// A backup decides who is an operator: one that was changed is not restored, nor one whose MAC was taken out.
async fn changed_backup_is_refused(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    let [key, other] = [1, 2].map(|seed| MasterKey::new(&[seed; 32]).unwrap().backup_key());
    spoke_control::registry::operator_keys::create(&store, ("panel", OperatorRole::Viewer), None, &operator(), NOW)
        .await
        .unwrap();
    let mut backup = Vec::new();
    store.backup(&mut backup, &key).await.unwrap();
    let text = String::from_utf8(backup).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let (rows, last) = lines.split_at(lines.len() - 1);
    let without_mac = format!("{}}}\n", last[0].split(",\"mac\"").next().unwrap());
    let with_extra = format!("{}\n{}\n", rows.join("\n"), last[0]);
    assert_eq!(with_extra, text);
    let newer = |from: &str, to: &str| text.replacen(from, to, 1);

    let (restored, _db) = open(kind).await;
    let refusal = async |text: &str, key| restored.restore(text.as_bytes(), key).await.unwrap_err();
    let changed = text.replace("\"role\":\"viewer\"", "\"role\":\"admin\"");
    assert_ne!(changed, text);
    let mut swapped = lines.clone();
    swapped.swap(2, 3);
    for bad in [&changed, &(swapped.join("\n") + "\n"), &text.replace("\"mac\":\"", "\"mac\":\"0")] {
        assert!(matches!(refusal(bad, Some(&key)).await, BackupError::Changed), "{bad}");
    }
    assert!(matches!(refusal(&text, Some(&other)).await, BackupError::Changed), "of another fleet");
    let stripped = format!("{}\n{without_mac}", rows.join("\n"));
    assert!(matches!(refusal(&stripped, Some(&key)).await, BackupError::NoMac), "{stripped}");
    let unknown = [newer("\"table\":\"network\"", "\"table\":\"galaxy\""), newer("\"pool4\":", "\"pool5\":")];
    for (text, what) in unknown.iter().zip(["table \"galaxy\"", "column \"pool5\" of table \"network\""]) {
        let error = refusal(text, None).await;
        assert!(matches!(&error, BackupError::Newer { what: w, .. } if w == what), "{error}");
        assert!(error.to_string().contains("with that release"), "{error}");
    }
    // Nothing of them was kept: the backup as it was made is restored, that of an older release only on request.
    restored.restore(text.as_bytes(), Some(&key)).await.unwrap();
    let (restored, _db) = open(kind).await;
    restored.restore(stripped.as_bytes(), None).await.unwrap();
}

async fn every_table_is_dumped_or_exempt_by_name(kind: Kind) {
    let (store, _db) = open(kind).await;
    let sql = match kind {
        Kind::Sqlite => {
            "SELECT m.name AS t, c.name AS c FROM sqlite_master m JOIN pragma_table_info(m.name) c
            WHERE m.type = 'table' AND m.name <> 'sqlite_sequence'"
        }
        Kind::Postgres => {
            "SELECT CAST(table_name AS TEXT) AS t, CAST(column_name AS TEXT) AS c FROM information_schema.columns
            WHERE table_schema = 'public'"
        }
    };
    let found = store.read().await.unwrap().rows(sql, &[]).await.unwrap();
    let found: BTreeSet<_> = found.iter().map(|r| (r.text("t").unwrap(), r.text("c").unwrap())).collect();
    assert!(found.len() > 100, "{found:?}");
    let dumped: BTreeSet<_> = dumped_columns().collect();
    for (table, column) in &found {
        let of_table = NOT_DUMPED.iter().any(|(t, why)| t == table && !why.is_empty());
        let of_column = NOT_DUMPED_COLUMNS.iter().any(|(t, c, _)| t == table && c == column);
        let is_dumped = dumped.contains(&(table.as_str(), column.as_str()));
        assert!(is_dumped || of_table || of_column, "{table}.{column} would be lost by a restore");
        assert!(!(is_dumped && of_table), "{table} is both");
    }
    for (table, column) in dumped {
        assert!(found.contains(&(table.to_owned(), column.to_owned())), "{table}.{column} does not exist");
    }
    // PostgreSQL wakes by NOTIFY.
    for (table, _) in NOT_DUMPED.iter().filter(|(t, _)| kind == Kind::Sqlite || *t != "wake") {
        assert!(found.iter().any(|(t, _)| t == table), "{table} does not exist");
    }
}

async fn job_has_one_holder_until_its_term_ends(kind: Kind) {
    let (store, _db) = open(kind).await;
    let hold = |who: &'static str, at| {
        let store = store.clone();
        async move {
            let mut tx = store.write().await.unwrap();
            let mine = tx.hold_job("chain", who, at, 1000).await.unwrap();
            tx.commit().await.unwrap();
            mine
        }
    };
    assert!(hold("a", NOW).await);
    assert!(!hold("b", NOW + 999).await);
    assert!(hold("a", NOW + 999).await, "its holder renews it");
    assert!(!hold("b", NOW + 1998).await);
    assert!(hold("b", NOW + 1999).await, "the term of a has ended");
    assert!(!hold("a", NOW + 2000).await);
    let mut tx = store.write().await.unwrap();
    tx.release_job("chain", "b").await.unwrap();
    tx.commit().await.unwrap();
    assert!(hold("a", NOW + 2000).await, "a released job is free at once");
    let mut many = tokio::task::JoinSet::new();
    for who in ["c", "d", "e", "f"] {
        many.spawn(hold(who, NOW + 10_000));
    }
    assert_eq!(many.join_all().await.into_iter().filter(|m| *m).count(), 1);
}

async fn newer_schema_is_refused(kind: Kind) {
    let (store, db) = open(kind).await;
    let mut tx = store.write().await.unwrap();
    let sql = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        SELECT 9999, 'newer', success, checksum, execution_time FROM _sqlx_migrations WHERE version = 1";
    assert_eq!(tx.run(sql, &[]).await.unwrap(), 1);
    tx.commit().await.unwrap();
    store.close().await;
    let refused = Store::open(&db.url).await;
    assert!(matches!(refused, Err(StoreError::NewerSchema(9999))), "{refused:?}");
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("9999") && message.contains("start that release"), "{message}");
}
