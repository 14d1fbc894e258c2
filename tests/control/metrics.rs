//! `/metrics` of the serving program: figures of the database, of its process and of its clients.
use crate::database::{Kind, fresh};
use crate::server::{ControlPlane, Settings, free_port, wait_until};
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

crate::on_both_databases![metrics_are_figures_of_the_fleet];

async fn get(port: u16, head: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// The samples by series.
async fn samples(port: u16) -> BTreeMap<String, f64> {
    let text = get(port, "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1").await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let lines = text.lines().filter(|l| l.starts_with("spoke_") || l.starts_with("process_"));
    lines.filter_map(|l| l.rsplit_once(' ').map(|(series, n)| (series.to_owned(), n.parse().unwrap()))).collect()
}

async fn metrics_are_figures_of_the_fleet(kind: Kind) {
    let port = free_port();
    let sections = format!("[metrics]\nlisten = [\"127.0.0.1:{port}\"]\n");
    let control = ControlPlane::start_as(fresh(kind).await, Settings { sections, ..Settings::default() }).await;
    let token = control.create_network("10.80.0.0/24").await;
    let network = "spoke_control_free_addresses{network=\"field\"}";
    let before = wait_until("the network in the figures", async || {
        Some(samples(port).await).filter(|all| all.contains_key(network))
    })
    .await;
    assert_eq!((before["spoke_control_database_up"], before["spoke_control_nodes{state=\"active\"}"]), (1.0, 0.0));

    let mut device = control.device("edge-1");
    assert_eq!(device.enrol(&token).await.0, 200);
    let refused = control.device("edge-2").enrol("not a token").await.0;
    assert!(refused >= 400, "{refused}");
    let report =
        serde_json::json!({"generation": 1, "outcome": "reverted", "healthy": false, "drift": 0, "version": "0.1.0"});
    let report = device.ask("POST", "/api/v1/nodes/self/report?run=1&number=1", &report.to_string()).await;
    assert_eq!(report.0, 204, "{}", report.1);
    let after = wait_until("the node's report in the figures", async || {
        Some(samples(port).await).filter(|all| all["spoke_control_reports{health=\"unhealthy\"}"] == 1.0)
    })
    .await;
    for (series, value) in [
        ("spoke_control_nodes{state=\"active\"}", 1.0),
        ("spoke_control_nodes_reporting", 1.0),
        ("spoke_control_states{outcome=\"reverted\"}", 1.0),
        ("spoke_control_versions{version=\"0.1.0\"}", 1.0),
        ("spoke_control_tokens", 1.0),
    ] {
        assert_eq!(after[series], value, "{series}");
    }
    assert!(after[network] < before[network], "an address is taken");
    for code in [200, 204, refused] {
        let series = format!("spoke_control_responses_total{{code=\"{code}\"}}");
        assert!(after[&series] > before[&series], "{series}");
    }
    assert!(after["process_resident_memory_bytes"] > 1e6 && after["process_open_fds"] > 5.0, "{after:?}");
    assert_eq!(after["process_start_time_seconds"], before["process_start_time_seconds"]);
    assert!(after["spoke_control_certificate_expiry_timestamp_seconds"] > 1e9);

    for (head, status) in [
        ("GET /metrics HTTP/1.1\r\nHost: rebound.example", 421),
        ("GET /api/nodes HTTP/1.1\r\nHost: 127.0.0.1", 404),
        ("POST /metrics HTTP/1.1\r\nHost: 127.0.0.1", 405),
    ] {
        let text = get(port, head).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {text}");
    }
}
