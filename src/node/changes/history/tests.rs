//! The file: bounded in size and in number of generations.
use super::*;
use spoke_change::audit::Actor;
use spoke_change::declared::Revision;
use spoke_change::record::StateChange;
use spoke_model::key::PublicKey;
use spoke_model::time::Wall;
use spoke_net::api_state::{ApiStateLink, ApiStatePeer};

/// A state of `peers` peers, each with this keepalive.
fn state(peers: u8, keepalive: u16) -> ApiState {
    let peers = (0..peers).map(|n| {
        let peer = ApiStatePeer { keepalive, ..ApiStatePeer::default() };
        (PublicKey([n; 32]), Arc::new(peer))
    });
    let link = ApiStateLink { peers: peers.collect(), ..ApiStateLink::default() };
    ApiState { links: [("wg0".parse().unwrap(), link)].into() }
}

async fn commit(store: &mut Store, state: &ApiState) {
    commit_by(store, state, Actor::User(0)).await;
}

async fn commit_by(store: &mut Store, state: &ApiState, actor: Actor) {
    let record = GenerationRecord {
        generation: 0,
        wall: Wall(0),
        trusted: true,
        actor,
        what: "test".into(),
        confirm: None,
        restores: None,
        change: StateChange::default(),
        revision: Revision::default(),
    };
    let record = store.history().next(state, record);
    store.commit(record, Arc::new(state.clone()), None).await.unwrap();
}

#[tokio::test]
async fn only_changes_of_clients_are_calls() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!may_have_calls(dir.path()), "no store");
    let mut store = Store::open(dir.path(), 10, "boot", Boot::default());
    commit_by(&mut store, &ApiState::default(), Actor::Configuration).await;
    assert!(!may_have_calls(dir.path()), "an agent that was enabled later has accepted none");
    commit_by(&mut store, &ApiState::default(), Actor::Panel([192, 0, 2, 1].into())).await;
    assert!(may_have_calls(dir.path()));
}

#[tokio::test]
async fn store_is_bounded_and_keeps_the_previous_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), 10, "boot", Boot::default());
    store.max_bytes = 60_000;
    // Each generation replaces all peers: some 20 kB a line.
    for keepalive in 1..=40 {
        commit(&mut store, &state(200, keepalive)).await;
        let len = std::fs::metadata(dir.path().join(FILE)).unwrap().len();
        assert!(len <= 90_000, "{len} after {keepalive}");
        assert_eq!(store.history().current(), u64::from(keepalive));
        let previous = store.history().previous().unwrap();
        let before = if keepalive == 1 { ApiState::default() } else { state(200, keepalive - 1) };
        assert_eq!(store.history().at(previous).unwrap(), before);
    }
    let again = Store::open(dir.path(), 10, "boot", Boot::default());
    assert_eq!(**again.history().state(), state(200, 40));
    assert_eq!(again.history().at(39).unwrap(), state(200, 39));
    assert_eq!(*peek(dir.path()).unwrap(), state(200, 40));
    // A state above the limit by itself is kept.
    let mut store = again;
    store.max_bytes = 10;
    for keepalive in 41..=44 {
        commit(&mut store, &state(200, keepalive)).await;
    }
    assert_eq!((**store.history().state()).clone(), state(200, 44));
    assert_eq!(store.history().at(43).unwrap(), state(200, 43));
}

#[test]
fn peek_at_a_missing_store_creates_none() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(*peek(dir.path()).unwrap(), ApiState::default());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn older_version_reads_the_store_of_a_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let open = || Store::open(dir.path(), 10, "boot", Boot::default());
    let mut store = open();
    commit(&mut store, &state(3, 1)).await;
    commit(&mut store, &state(3, 2)).await;
    store.journal.append(br#"{"line":"something","of":"later"}"#, true).await.unwrap();
    commit(&mut store, &state(3, 3)).await;
    let before = std::fs::read(&path).unwrap();
    assert_eq!(*peek(dir.path()).unwrap(), state(3, 2));
    let mut older = open();
    assert_eq!((older.history().current(), (**older.history().state()).clone()), (2, state(3, 2)));
    commit(&mut older, &state(3, 9)).await;
    assert_eq!(std::fs::read(dir.path().join("changes.journal.damaged")).unwrap(), before, "nothing is lost");
    let again = open();
    assert_eq!((again.history().current(), (**again.history().state()).clone()), (3, state(3, 9)));

    // No line can be parsed.
    let text = std::fs::read(&path).unwrap();
    let mut journal = Journal::open(path.clone()).0;
    journal.replace(["{}"].into_iter().collect()).await.unwrap();
    assert_ne!(std::fs::read(&path).unwrap(), text);
    let mut older = open();
    assert_eq!(**older.history().state(), ApiState::default());
    commit(&mut older, &state(1, 1)).await;
    assert_eq!(**open().history().state(), state(1, 1));
}
