//! Figures of a served control plane with simulated nodes: real HTTPS clients over the loopback, bounded in number and time.
//! Run by `scripts/bench-control`; never part of the tests.
use crate::db::{Kind, fresh};
use crate::serving::{Device, OPERATOR, Serving, plain};
use spoke::sys::http::Http as _;
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

async fn enrolled(serving: &Serving, token: &str, count: usize) -> (Vec<Device>, Duration) {
    let began = Instant::now();
    let room = Arc::new(tokio::sync::Semaphore::new(32));
    let mut joining = JoinSet::new();
    for i in 0..count {
        let (mut device, token, room) = (serving.device(&format!("sim-{i}")), token.to_owned(), room.clone());
        joining.spawn(async move {
            let _seat = room.acquire().await.unwrap();
            let (status, answer) = device.enrol(&token).await;
            assert_eq!(status, 200, "{answer}");
            device
        });
    }
    let devices = joining.join_all().await;
    (devices, began.elapsed())
}

/// Asks for news until there are any; the moment they came.
async fn poll(mut device: Device) -> (Device, Instant) {
    let (status, first) = device.ask("GET", &format!("{STATE}?after=0"), "").await;
    assert_eq!(status, 200, "{first}");
    let generation = first["document"]["generation"].as_u64().unwrap();
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

async fn connected(serving: &Serving) -> u64 {
    serving.operator("GET", "/api/status", "").await.1["data"]["connected"].as_u64().unwrap_or(0)
}

async fn measure(kind: Kind, count: usize) {
    let mut serving = Serving::start(fresh(kind).await).await;
    serving.done(&["network", "create", "field", "--pool4", "10.0.0.0/12"]).await;
    let token = serving.done(&["token", "create", "--network", "field", "--uses", "100000"]).await;
    let empty = resident(serving.pid());
    let (devices, took) = enrolled(&serving, &token, count).await;
    println!("{kind:?} {count}: enrolments/s {:.0}", count as f64 / took.as_secs_f64());

    let mut polling: JoinSet<_> = devices.into_iter().map(poll).collect();
    let began = Instant::now();
    while connected(&serving).await < count as u64 {
        assert!(began.elapsed() < Duration::from_secs(240), "{} of {count} connected", connected(&serving).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("{kind:?} {count}: connected and waiting within {:.1} s", began.elapsed().as_secs_f64());
    let full = resident(serving.pid());
    println!("{kind:?} {count}: server memory {} KiB a node ({full} KiB in all)", (full - empty) / count as u64);

    // One node at a time, as an operator changes one node.
    let mut single = Vec::new();
    let mut operator = serving.client();
    for i in 0..100 {
        let body = format!("{{\"overrides\": {{\"override_mtu\": {}}}}}", 1300 + i);
        let at = Instant::now();
        let path = format!("/api/nodes/sim-{i}");
        let answer = operator.send(plain("PUT", &path, &body, Some(OPERATOR))).await.unwrap();
        assert_eq!(answer.status, 200);
        let (_, came) = polling.join_next().await.unwrap().unwrap();
        single.push(came - at);
    }
    single.sort();
    println!(
        "{kind:?} {count}: one change to its node p50 {:.1} ms, p99 {:.1} ms",
        percentile(&single, 50).as_secs_f64() * 1e3,
        percentile(&single, 99).as_secs_f64() * 1e3
    );

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
    println!(
        "{kind:?} {count}: one change to all {} nodes p50 {:.0} ms, p99 {:.0} ms",
        all.len(),
        percentile(&all, 50).as_secs_f64() * 1e3,
        percentile(&all, 99).as_secs_f64() * 1e3
    );

    // Heartbeats as fast as a hundred clients can for five seconds.
    let sent = Arc::new(AtomicU64::new(0));
    let until = Instant::now() + Duration::from_secs(5);
    let mut beating = JoinSet::new();
    let rest = devices.split_off(devices.len().min(100));
    for mut device in devices {
        let sent = sent.clone();
        beating.spawn(async move {
            let body = r#"{"generation": 2, "outcome": "applied", "healthy": true, "drift": 0, "version": "0.1.0"}"#;
            while Instant::now() < until {
                if device.ask("POST", "/api/v1/nodes/self/report", body).await.0 == 204 {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }
            device
        });
    }
    let mut devices = beating.join_all().await;
    println!("{kind:?} {count}: heartbeats/s {}", sent.load(Ordering::Relaxed) / 5);
    devices.extend(rest);

    // A restart: every node waits a random time within the spread, as the device does, and comes back.
    serving.stop().await;
    serving.start_again().await;
    let spread = Duration::from_secs(20);
    let began = Instant::now();
    let mut back = JoinSet::new();
    for mut device in devices {
        let nonce = crate::serving::nonce().0;
        let wait = spread
            .mul_f64(f64::from(u32::from_le_bytes([nonce[0], nonce[1], nonce[2], nonce[3]])) / f64::from(u32::MAX));
        back.spawn(async move {
            tokio::time::sleep(wait).await;
            assert_eq!(device.ask("GET", &format!("{STATE}?after=0"), "").await.0, 200);
            began.elapsed()
        });
    }
    let mut at = back.join_all().await;
    at.sort();
    let mut seconds = std::collections::BTreeMap::new();
    for t in &at {
        *seconds.entry(t.as_secs()).or_insert(0u64) += 1;
    }
    println!(
        "{kind:?} {count}: back after a restart within {:.1} s (spread {} s), at most {} a second",
        at.last().unwrap().as_secs_f64(),
        spread.as_secs(),
        seconds.values().max().unwrap()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures, not a test: scripts/bench-control"]
async fn figures() {
    let counts = std::env::var("SPOKE_BENCH_NODES").unwrap_or_else(|_| "1000".into());
    for count in counts.split(',').map(|c| c.parse().unwrap()) {
        for kind in [Kind::Sqlite, Kind::Postgres] {
            measure(kind, count).await;
        }
    }
}
