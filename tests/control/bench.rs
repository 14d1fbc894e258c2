//! Figures of a served control plane with simulated nodes: HTTPS clients over the loopback, bounded in number and time. Run
//! by `scripts/bench-control`, not with the tests.
use crate::database::{Kind, fresh};
use crate::relay::relay;
use crate::server::{ControlPlane, Device, OPERATOR, plain};
use spoke_model::backoff::{Backoff, JitterRng};
use spoke_sys::http::{Http as _, HttpsClient, Trust};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const STATE: &str = "/api/v1/nodes/self/state";

fn percentile(sorted: &[Duration], p: usize) -> Duration {
    sorted.get(sorted.len().saturating_sub(1) * p / 100).copied().unwrap_or_default()
}

/// Resident memory of the server, in KiB.
fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn enrolled(server: &ControlPlane, token: &str, count: usize) -> (Vec<Device>, Duration) {
    let began = Instant::now();
    let room = Arc::new(tokio::sync::Semaphore::new(32));
    let mut joining = JoinSet::new();
    for i in 0..count {
        let (mut device, token, room) = (server.device(&format!("sim-{i}")), token.to_owned(), room.clone());
        joining.spawn(async move {
            let _permit = room.acquire().await.unwrap();
            let (status, answer) = device.enrol(&token).await;
            assert_eq!(status, 200, "{answer}");
            device
        });
    }
    let devices = joining.join_all().await;
    (devices, began.elapsed())
}

/// Long-polls until a newer document arrives; returns its time of arrival.
async fn poll(mut device: Device, settled: Arc<AtomicU64>) -> (Device, Instant) {
    let (status, first) = device.ask("GET", &format!("{STATE}?after=0"), "").await;
    assert_eq!(status, 200, "{first}");
    let generation = first["document"]["generation"].as_u64().unwrap();
    settled.fetch_add(1, Ordering::Relaxed);
    loop {
        let mut request = device.signed("GET", &format!("{STATE}?after={generation}&wait=300"), Vec::new());
        request.timeout = Duration::from_secs(330);
        if let Ok(answer) = device.http.send(request).await
            && answer.status == 200
        {
            return (device, Instant::now());
        }
    }
}

async fn connected(server: &ControlPlane) -> u64 {
    server.operator("GET", "/api/status", "").await.1["data"]["connected"].as_u64().unwrap_or(0)
}

/// One column of the table.
#[derive(Default)]
struct Column {
    title: String,
    cells: Vec<(&'static str, String)>,
}

impl Column {
    fn put(&mut self, row: &'static str, cell: String) {
        eprintln!("{}: {row}: {cell}", self.title);
        self.cells.push((row, cell));
    }
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

/// Reconnects as a device does: within the spread after the first failure, then with backoff.
async fn reconnect(mut device: Device, began: Instant, tries: Arc<Vec<AtomicU64>>) -> Duration {
    const SPREAD_MS: u64 = 60_000;
    let nonce = crate::server::nonce().0;
    let mut rng = JitterRng::new(u64::from_le_bytes(nonce[..8].try_into().unwrap()));
    let mut backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(120));
    let mut wait = Duration::from_millis(rng.next_u64() % SPREAD_MS) + backoff.fail(&mut rng);
    loop {
        tokio::time::sleep(wait).await;
        if let Some(second) = tries.get(usize::try_from(began.elapsed().as_secs()).unwrap()) {
            second.fetch_add(1, Ordering::Relaxed);
        }
        let request = device.signed("GET", &format!("{STATE}?after=0"), Vec::new());
        if device.http.send(request).await.is_ok_and(|a| a.status == 200) {
            return began.elapsed();
        }
        wait = backoff.fail(&mut rng);
    }
}

async fn measure(kind: Kind, count: usize) -> Column {
    let mut column = Column { title: format!("{kind:?} {count}"), ..Column::default() };
    let mut server = ControlPlane::start(fresh(kind).await).await;
    server.cli_ok(&["network", "create", "field", "--pool4", "10.0.0.0/12"]).await;
    let token = server.cli_ok(&["token", "create", "--network", "field", "--uses", "100000"]).await;
    let empty = resident(server.pid());
    let (devices, took) = enrolled(&server, &token, count).await;
    column.put("enrolments/s", format!("{:.0}", count as f64 / took.as_secs_f64()));

    let settled = Arc::new(AtomicU64::new(0));
    let mut polling: JoinSet<_> = devices.into_iter().map(|d| poll(d, settled.clone())).collect();
    let began = Instant::now();
    // A node with its first document and an open poll waits for the next one.
    while settled.load(Ordering::Relaxed) < count as u64 || connected(&server).await < count as u64 {
        assert!(began.elapsed() < Duration::from_secs(300), "{} of {count} connected", connected(&server).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    column.put("all waiting after, s", format!("{:.1}", began.elapsed().as_secs_f64()));
    let full = resident(server.pid());
    column.put("server memory a node, KiB", format!("{:.1}", (full - empty) as f64 / count as f64));
    column.put("server memory in all, MiB", format!("{:.0}", full as f64 / 1024.0));

    // One node at a time, as an operator changes one node.
    let mut single = Vec::new();
    let mut operator = server.client();
    for i in 0..200 {
        let body = format!("{{\"overrides\": {{\"override_mtu\": {}}}}}", 1300 + i);
        let at = Instant::now();
        let path = format!("/api/nodes/sim-{i}");
        let answer = operator.send(plain("PUT", &path, &body, Some(OPERATOR))).await.unwrap();
        assert_eq!(answer.status, 200);
        let (device, came) = polling.join_next().await.unwrap().unwrap();
        assert_eq!(device.id.as_str(), format!("sim-{i}"));
        single.push(came - at);
    }
    single.sort();
    column.put("one change to its node p50, ms", format!("{:.1}", ms(percentile(&single, 50))));
    column.put("one change to its node p99, ms", format!("{:.1}", ms(percentile(&single, 99))));

    // All at once, as a network changes.
    let at = Instant::now();
    let answer = operator.send(plain("PUT", "/api/networks/field", r#"{"mtu": 1400}"#, Some(OPERATOR))).await.unwrap();
    assert_eq!(answer.status, 200);
    let (mut devices, mut all) = (Vec::new(), Vec::new());
    while let Some(done) = polling.join_next().await {
        let (device, came) = done.unwrap();
        all.push(came - at);
        devices.push(device);
    }
    all.sort();
    column.put("one change to all p50, ms", format!("{:.0}", ms(percentile(&all, 50))));
    column.put("one change to all p99, ms", format!("{:.0}", ms(percentile(&all, 99))));

    // Heartbeats as fast as a hundred clients can for ten seconds.
    let sent = Arc::new(AtomicU64::new(0));
    let until = Instant::now() + Duration::from_secs(10);
    let mut beating = JoinSet::new();
    let rest = devices.split_off(devices.len().min(100));
    for mut device in devices {
        let sent = sent.clone();
        beating.spawn(async move {
            while Instant::now() < until {
                if device.ask("POST", REPORT, HEARTBEAT).await.0 == 204 {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }
            device
        });
    }
    let mut devices = beating.join_all().await;
    column.put("heartbeats/s", (sent.load(Ordering::Relaxed) / 10).to_string());
    devices.extend(rest);

    // A restart with every long-poll open.
    server.stop().await;
    let began = Instant::now();
    server.start_again().await;
    column.put("restart until it listens, s", format!("{:.1}", began.elapsed().as_secs_f64()));
    let tries: Arc<Vec<AtomicU64>> = Arc::new((0..300).map(|_| AtomicU64::new(0)).collect());
    let back: JoinSet<_> = devices.into_iter().map(|d| reconnect(d, began, tries.clone())).collect();
    let mut at = back.join_all().await;
    at.sort();
    column.put("all back after a restart, s", format!("{:.1}", at.last().unwrap().as_secs_f64()));
    let peak = tries.iter().map(|t| t.load(Ordering::Relaxed)).max().unwrap_or(0);
    column.put("requests/s meanwhile, at most", peak.to_string());
    column
}

const REPORT: &str = "/api/v1/nodes/self/report";
const HEARTBEAT: &str = r#"{"generation": 2, "outcome": "applied", "healthy": true, "drift": 0, "version": "0.1.0"}"#;

/// Bytes of TLS between one device and the server, counted by a relay.
async fn idle_cost() {
    let server = ControlPlane::start(fresh(Kind::Sqlite).await).await;
    server.cli_ok(&["network", "create", "field", "--pool4", "10.8.0.0/24"]).await;
    let token = server.cli_ok(&["token", "create", "--network", "field"]).await;
    let (port, count) = relay(server.port).await;
    let mut device = server.device("edge-1");
    device.enrol(&token).await;
    device.http = HttpsClient::new(format!("localhost:{port}").parse().unwrap(), &Trust::Pin(server.pin)).unwrap();
    let mut passed = 0;
    let mut since = || {
        let now = count.load(Ordering::Relaxed);
        now - std::mem::replace(&mut passed, now)
    };
    device.ask("GET", &format!("{STATE}?after=999"), "").await;
    let connect = since();
    for _ in 0..20 {
        assert_eq!(device.ask("GET", &format!("{STATE}?after=999"), "").await.0, 204);
    }
    let poll = since() / 20;
    let connect = connect - poll;
    for _ in 0..20 {
        assert_eq!(device.ask("POST", REPORT, HEARTBEAT).await.0, 204);
    }
    let report = since() / 20;
    // Further connections resume the TLS session.
    device.http = device.http.another();
    device.ask("GET", &format!("{STATE}?after=999"), "").await;
    let again = since() - poll;
    // By the device's defaults: a poll of ten minutes, a report of fifteen; each with a connection of its own at worst.
    // Four segments of 52 bytes of headers an exchange, eight a handshake, and a keepalive each way every two minutes.
    let (polls, reports) = (144, 96);
    let kept = polls * (poll + 4 * 52) + reports * (report + 4 * 52) + 2 * 720 * 52 + 2 * connect;
    let worst = polls * (poll + again + 12 * 52) + reports * (report + again + 12 * 52) + connect;
    println!("idle: {connect} bytes to connect, {again} to connect again, {poll} a poll, {report} a report");
    println!(
        "idle: {:.2} MB a day on kept connections, {:.2} MB if each exchange needs a new one",
        mb(kept),
        mb(worst)
    );
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures, not a test: scripts/bench-control"]
async fn figures() {
    idle_cost().await;
    let counts = std::env::var("SPOKE_BENCH_NODES").unwrap_or_else(|_| "1000".into());
    let mut columns = Vec::new();
    for count in counts.split(',').map(|c| c.parse().unwrap()) {
        for kind in [Kind::Sqlite, Kind::Postgres] {
            columns.push(measure(kind, count).await);
        }
    }
    println!("\n{:<32}{}", "", columns.iter().map(|c| format!("{:>16}", c.title)).collect::<String>());
    for (i, (row, _)) in columns[0].cells.iter().enumerate() {
        let cells: String = columns.iter().map(|c| format!("{:>16}", c.cells[i].1)).collect();
        println!("{row:<32}{cells}");
    }
}
