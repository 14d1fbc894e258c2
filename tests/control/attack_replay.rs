//! Attacks with requests that were answered before: at a second control plane of the same fleet.
use crate::database::{Kind, fresh};
use crate::server::{ControlPlane, Settings};
use spoke_sys::http::Http as _;

crate::on_both_databases![replay_at_a_second_control_plane_is_refused];

async fn replay_at_a_second_control_plane_is_refused(kind: Kind) {
    let database = fresh(kind).await;
    let url = database.url.clone();
    let first = ControlPlane::start_on(&url, Some(database), Settings::default()).await;
    let replica_of = Some(first.dir.path().to_owned());
    let second = ControlPlane::start_on(&url, None, Settings { replica_of, ..Settings::default() }).await;
    first.cli_ok(&["network", "create", "field", "--pool4", "10.8.0.0/24"]).await;
    let token = first.cli_ok(&["hub", "add", "hub-1", "--network", "field", "--endpoint", "h.example.net:1"]).await;
    let mut hub = first.device("hub-1");
    assert_eq!(hub.enrol(&token).await.0, 200);
    let report = r#"{"generation": 1, "outcome": "applied", "healthy": true, "drift": 0, "version": "0.1.0"}"#;
    for (method, path, body, status) in [
        ("GET", "/api/v1/nodes/self/state?after=0", "", 200),
        ("GET", "/api/v1/wireguard/peers", "", 200),
        ("GET", "/api/v1/wireguard/pool/stats", "", 200),
        ("POST", "/api/v1/nodes/self/report", report, 204),
    ] {
        let request = hub.signed(method, path, body.as_bytes().to_vec());
        assert_eq!(first.client().send(request.clone()).await.unwrap().status, status, "{path}");
        for server in [&second, &first] {
            let replay = server.client().send(request.clone()).await.unwrap();
            let answer: serde_json::Value = serde_json::from_slice(&replay.body).unwrap();
            assert_eq!((replay.status, answer["detail"]["code"].as_str()), (401, Some("replay")), "{path}");
        }
    }
    assert_eq!(second.device("hub-1").ask("GET", "/api/v1/nodes/self/state?after=0", "").await.0, 200, "a new request");
}
