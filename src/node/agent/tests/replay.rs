//! The same call sent again.
use super::*;
use spoke_api::agent::auth::WINDOW;

#[tokio::test(start_paused = true)]
async fn replay_is_refused_after_restart_and_clock_jump() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), FakeKernel::new(), clock()).await;
    let body = json!({"public_key": KEY}).to_string();
    let request = node.request("POST", "/v1/wg/wg0/peers", &body, None);
    assert_eq!(node.send(request.clone()).await.0, 200);
    let used = (401, json!({"error": Denied::Replayed.to_string()}));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(node.send(request.clone()).await, used);
    let read = node.request("GET", "/v1/wg/wg0/dump", "", None);
    assert_eq!(
        (node.send(read.clone()).await.0, node.send(read).await.0),
        (200, 200),
        "a safe request may be repeated"
    );
    let again = node.request("POST", "/v1/wg/wg0/peers", &body, Some("n1"));
    assert_eq!(node.send(again.clone()).await.0, 200, "a nonce lets it be repeated");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(node.send(again).await.0, 401, "once");
    node.clock.jump_to(Wall(NOW + 5000));
    let late = node.request("DELETE", &format!("/v1/wg/wg0/peers/{KEY}"), "", None);
    assert_eq!(node.send(late).await.0, 200);
    node.clock.jump_to(Wall(NOW));
    let forgotten = (401, json!({"error": Denied::Forgotten.to_string()}));
    assert_eq!(node.send(request.clone()).await, forgotten, "dropped for age, then the clock was set back");
    let clock = node.clock.clone();
    node.kill().await;
    let node = Node::start(dir.path(), FakeKernel::new(), clock).await;
    assert_eq!(node.send(request).await, used);
    let mut query = node.request("DELETE", &format!("/v1/wg/wg0/peers/{KEY}"), "", None);
    query.query = Some("force=1".into());
    assert_eq!(node.send(query).await.0, 400, "a query is not signed");
}

#[tokio::test(start_paused = true)]
async fn call_sent_twice_at_once_gets_the_first_answer() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), FakeKernel::new(), clock()).await;
    let body = json!({"public_key": KEY, "allowed_ips": ["10.0.1.2/24"]}).to_string();
    let request = node.request("POST", "/v1/wg/wg0/peers", &body, None);
    let (first, again) = tokio::join!(node.send(request.clone()), node.send(request.clone()));
    assert_eq!(first.0, 200, "{first:?}");
    assert!(first.1["warnings"][0].as_str().unwrap().contains("host 10.0.1.2/32"), "{first:?}");
    assert_eq!(again, first, "while the first is carried out");
    assert_eq!(node.send(request.clone()).await, first, "and after it");
    let (_, history) = node.ask("GET", "/v1/history", Value::Null).await;
    assert_eq!(history["generations"].as_array().unwrap().len(), 1, "carried out once");
    let restarted = request.clone();
    // Not the newest change any longer.
    assert_eq!(node.ask("POST", "/v1/wg/wg0/peers", json!({"public_key": OTHER})).await.0, 200);
    assert_eq!(node.send(request).await.0, 401);
    // The newest call, but taken back by another source.
    let last = node.request("DELETE", &format!("/v1/wg/wg0/peers/{OTHER}"), "", None);
    assert_eq!(node.send(last.clone()).await.0, 200);
    node.agent.deps.changes.rollback(None, Actor::User(0)).await.unwrap();
    assert_eq!(node.send(last).await.0, 401);
    assert_eq!(node.peers().len(), 2, "nothing was done again");
    let clock = node.clock.clone();
    node.kill().await;
    let node = Node::start(dir.path(), FakeKernel::new(), clock).await;
    assert_eq!(node.send(restarted).await.0, 401);
}

#[tokio::test(start_paused = true)]
async fn replay_is_refused_after_its_record_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), FakeKernel::new(), clock()).await;
    let body = json!({"public_key": KEY}).to_string();
    let now = node.clock.wall();
    node.clock.jump_to(Wall(now.secs() - 5));
    let early = node.request("POST", "/v1/wg/wg0/peers", &body, None);
    node.clock.jump_to(now);
    let forgotten = (401, json!({"error": Denied::Forgotten.to_string()}));
    assert_eq!(node.send(early).await, forgotten, "signed before a new device was there");
    let request = node.request("POST", "/v1/wg/wg0/peers", &body, None);
    assert_eq!(node.send(request.clone()).await.0, 200);
    let clock = node.clock.clone();
    node.kill().await;
    std::fs::remove_file(dir.path().join(REPLAYS)).unwrap();
    let node = Node::start(dir.path(), FakeKernel::new(), clock).await;
    assert_eq!(node.send(request).await, forgotten);
    node.clock.jump_to(Wall(node.clock.wall().secs() + WINDOW + 1));
    let later = node.request("POST", "/v1/wg/wg0/peers", &body, None);
    assert_eq!(node.send(later).await.0, 200, "not for ever");
}
