//! The stream of events: resumed where it was, across replicas, and quiet while nothing changes.
use crate::database::{Kind, fresh, open};
use crate::fixture::{NOW, join, open_with_network, operator, put_report, report, token};
use crate::limits::tls;
use crate::server::{ControlPlane, OPERATOR, Settings, wait_until};
use serde_json::{Value, json};
use spoke_control::report_queue;
use spoke_control::store::Store;
use spoke_control::store::event::EventsAfter;
use spoke_control::store::report::ReceivedReport;
use spoke_enroll::wire::NodeReport;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

crate::on_both_databases![
    stream_goes_on_where_it_was_at_another_replica,
    quiet_nodes_cause_no_event,
    lost_events_are_said_to_be_lost,
];

/// An open stream.
struct Stream {
    connection: tokio_rustls::client::TlsStream<tokio::net::TcpStream>,
    text: String,
}

impl Stream {
    async fn open(server: &ControlPlane, query: &str, last: Option<i64>) -> Self {
        let mut connection = tls(server).await;
        let last = last.map(|l| format!("last-event-id: {l}\r\n")).unwrap_or_default();
        let head = format!(
            "GET /api/events{query} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {OPERATOR}\r\n{last}\r\n"
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        let mut stream = Self { connection, text: String::new() };
        stream.until("retry: 2000").await;
        assert!(
            stream.text.starts_with("HTTP/1.1 200") && stream.text.contains("text/event-stream"),
            "{}",
            stream.text
        );
        stream
    }

    /// Reads until `text` has come, and the event it is in is complete.
    async fn until(&mut self, text: &str) {
        let mut bytes = [0; 4096];
        while !self.text.find(text).is_some_and(|at| self.text[at..].contains("\n\n")) {
            let read = tokio::time::timeout(Duration::from_secs(60), self.connection.read(&mut bytes)).await;
            let read = read.unwrap_or_else(|_| panic!("no {text:?} in {}", self.text)).unwrap_or(0);
            assert!(read > 0, "ended without {text:?}: {}", self.text);
            self.text += std::str::from_utf8(&bytes[..read]).unwrap();
        }
    }

    /// The events so far: id, kind and data.
    fn events(&self) -> Vec<(i64, String, Value)> {
        let field = |event: &str, name: &str| {
            event.lines().find_map(|l| l.strip_prefix(name).map(str::to_owned)).unwrap_or_default()
        };
        // With the sizes of chunks in lines of their own.
        let parts = self.text.split("\n\n").filter(|e| e.contains("\ndata: "));
        parts
            .map(|e| {
                (
                    field(e, "id: ").parse().unwrap(),
                    field(e, "event: "),
                    serde_json::from_str(&field(e, "data: ")).unwrap(),
                )
            })
            .collect()
    }
}

async fn stream_goes_on_where_it_was_at_another_replica(kind: Kind) {
    let first = ControlPlane::start(fresh(kind).await).await;
    let replica_of = Some(first.dir.path().to_owned());
    let second = ControlPlane::start_on(&first.url(), None, Settings { replica_of, ..Settings::default() }).await;
    let mut stream = Stream::open(&second, "", None).await;
    first.create_network("10.8.0.0/24").await;
    let label = async |text: &str| {
        let body = json!({"label": text}).to_string();
        assert_eq!(first.operator("PUT", "/api/nodes/edge-1", &body).await.0, 200);
    };
    let node = r#"{"node_id": "edge-1", "network": "field"}"#;
    assert_eq!(first.operator("POST", "/api/nodes", node).await.0, 200);
    stream.until(r#""entity_id":"edge-1""#).await;
    let seen = stream.events();
    let (last, kind, data) = seen.last().unwrap();
    assert_eq!((kind.as_str(), &data["action"], &data["user"]), ("audit", &json!("create"), &json!("operator:api")));
    assert!(data["timestamp"].is_string(), "{data}");
    drop(stream);

    // Cut off meanwhile: nothing lost, nothing twice, at whatever replica it comes back.
    for text in ["one", "two", "three"] {
        label(text).await;
    }
    for server in [&first, &second] {
        let mut again = Stream::open(server, "", Some(*last)).await;
        again.until("three").await;
        let labels: Vec<_> = again.events().iter().map(|e| e.2["details"]["label"].clone()).collect();
        assert_eq!(labels, ["one", "two", "three"]);
        let ids: Vec<_> = again.events().iter().map(|e| e.0 - last).collect();
        assert_eq!(ids, [1, 2, 3]);
    }
    let mut polled = Stream::open(&first, &format!("?wait=0&after={last}"), None).await;
    polled.until("three").await;
    for bad in ["?after=x", "?since=1"] {
        assert_eq!(first.operator("GET", &format!("/api/events{bad}"), "").await.0, 400, "{bad}");
    }
}

async fn after(store: &Store, last: i64) -> Vec<(String, Value)> {
    match store.read().await.unwrap().events_after(last).await.unwrap() {
        EventsAfter::Next(events) => events.into_iter().map(|e| (e.kind, e.details)).collect(),
        lost => panic!("{lost:?}"),
    }
}

async fn quiet_nodes_cause_no_event(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    let token = token(&store, 9).await;
    for id in ["edge-1", "edge-2"] {
        join(&store, id, &token).await.unwrap();
        assert!(put_report(&store, id, NOW, None, report(1)).await);
    }
    let last = store.read().await.unwrap().last_event().await.unwrap();
    let (queue, writer) = report_queue::channel();
    let writing = tokio::spawn(writer.run(store.clone()));
    let mut at_ms = NOW;
    let mut send = |id: &str, report: NodeReport| {
        at_ms += 1000;
        let node = id.parse().unwrap();
        queue
            .put(ReceivedReport {
                node,
                order: None,
                sent_ms: at_ms,
                received_ms: at_ms,
                takes_preshared: false,
                report,
            })
            .unwrap();
    };
    for _ in 0..20 {
        send("edge-1", report(1));
        send("edge-2", report(1));
    }
    send("edge-1", NodeReport { healthy: false, ..report(1) });
    send("edge-1", NodeReport { healthy: false, ..report(1) });
    send("edge-1", NodeReport { healthy: true, drift: 3, ..report(1) });
    send("edge-1", NodeReport { healthy: true, drift: 2, ..report(1) });
    send("edge-1", report(1));
    drop(queue);
    tokio::time::timeout(Duration::from_secs(60), writing).await.unwrap().unwrap();
    let events = after(&store, last).await;
    let healthy = |h: bool| ("node".to_owned(), json!({"healthy": h, "outcome": "applied", "generation": 1}));
    let drift = |n: u64| ("drift".to_owned(), json!({"drift": n}));
    assert_eq!(events, [healthy(false), healthy(true), drift(3), drift(0)], "each change once");
}

async fn lost_events_are_said_to_be_lost(kind: Kind) {
    let (store, _db) = open(kind).await;
    let mut tx = store.write().await.unwrap();
    for i in 0..3 {
        tx.audit(NOW + i, &operator(), "set", ("node", "edge-1"), json!({"i": i})).await.unwrap();
    }
    tx.commit().await.unwrap();
    let read = async |last| store.read().await.unwrap().events_after(last).await.unwrap();
    assert_eq!(after(&store, 1).await.len(), 2);
    assert_eq!(read(4).await, EventsAfter::Lost { last: 3 }, "of another database");
    assert_eq!(read(-1).await, EventsAfter::Lost { last: 3 });
    assert!(store.prune(NOW + 86_400_000 + 2).await.unwrap(), "the first two are older than a day");
    assert_eq!(after(&store, 2).await.len(), 1);
    assert_eq!(read(0).await, EventsAfter::Lost { last: 3 });
    assert_eq!(after(&store, 3).await, []);
    // A transaction that is dropped leaves no gap.
    let mut tx = store.write().await.unwrap();
    tx.audit(NOW, &operator(), "set", ("node", "edge-1"), Value::Null).await.unwrap();
    drop(tx);
    let waiting = store.events();
    let mut tx = store.write().await.unwrap();
    tx.audit(NOW + 86_400_000, &operator(), "set", ("node", "edge-1"), json!({})).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(after(&store, 3).await.len(), 1);
    wait_until("the stream is woken", async || waiting.has_changed().unwrap().then_some(())).await;
}
