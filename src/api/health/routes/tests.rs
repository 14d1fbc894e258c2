//! Paths, hosts and origins.
use super::*;
use spoke_model::time::{Boot, Wall};

fn request(method: &str, path: &str, host: Option<&str>, headers: &[(&str, &str)]) -> Request {
    Request {
        method: method.into(),
        path: path.into(),
        query: None,
        host: host.map(Into::into),
        headers: headers.iter().map(|(n, v)| ((*n).to_owned(), v.as_bytes().to_vec())).collect(),
        body: Vec::new(),
        source: "127.0.0.1:1".parse().unwrap(),
    }
}

fn ask(request: &Request) -> Response {
    let settings = Settings {
        enabled: true,
        listen: Vec::new(),
        tunnel: true,
        details_from: vec!["10.9.0.1/32".parse().unwrap()],
        allowed_origins: vec!["https://monitor.example".into()],
        allowed_hosts: vec!["router.lan".into()],
        peer_metrics: false,
    };
    let snapshot = Snapshot::default();
    let at = Moment { now: Boot::from_secs(9), wall: Wall(9), trusted: false, started: Boot::from_secs(1) };
    let view = View {
        snapshot: &snapshot,
        at,
        settings: &settings,
        interfaces: &Interfaces::default(),
        config: b"{}".as_slice().into(),
        config_stats: &json!({}),
        role: Role::Node,
        process: None,
        agent: None,
        page_policy: "default-src 'none'",
        details: &Details::default(),
    };
    route(&view, request)
}

fn header<'r>(r: &'r Response, name: &str) -> Option<&'r str> {
    r.headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str())
}

#[test]
fn documented_paths_are_served() {
    for (path, status) in [
        ("/", 200),
        ("/health", 200),
        ("/ready", 503),
        ("/stats", 200),
        ("/wireguard", 200),
        ("/config", 200),
        ("/metrics", 200),
        ("/health/", 404),
        ("/x", 404),
    ] {
        assert_eq!(ask(&request("GET", path, Some("localhost:8080"), &[])).status, status, "{path}");
    }
    assert_eq!(ask(&request("POST", "/health", Some("localhost"), &[])).status, 405);
}

#[test]
fn tunnel_peers_read_health_and_readiness_only() {
    let from = |source: &str, path: &str| {
        let source = source.parse().unwrap();
        ask(&Request { source, ..request("GET", path, Some("10.9.0.2:8080"), &[]) }).status
    };
    for path in ["/", "/stats", "/wireguard", "/config", "/metrics", "/x", "/health/", "//config", "/%63onfig"] {
        for other in ["10.9.0.7:1", "[fd00::7]:1", "192.0.2.1:1", "[::ffff:10.9.0.7]:1"] {
            assert_eq!(from(other, path), 403, "{other} {path}");
        }
    }
    for path in ["/wireguard", "/config", "/stats", "/metrics"] {
        for named in ["10.9.0.1:1", "[::ffff:10.9.0.1]:1", "[::1]:1", "127.0.0.1:1"] {
            assert_eq!(from(named, path), 200, "{named} {path}");
        }
    }
    assert_eq!((from("10.9.0.7:1", "/health"), from("10.9.0.7:1", "/ready")), (200, 503));
}

#[test]
fn foreign_hosts_are_refused() {
    for path in ["/", "/health", "/config"] {
        assert_eq!(ask(&request("GET", path, Some("evil.example:8080"), &[])).status, 421);
    }
    assert_eq!(ask(&request("GET", "/health", Some("router.lan"), &[])).status, 200);
    assert_eq!(ask(&request("GET", "/health", None, &[])).status, 200, "HTTP/1.0");
}

#[test]
fn only_allowed_origins_get_cors_headers() {
    let allowed = ask(&request("GET", "/health", Some("localhost"), &[("origin", "https://monitor.example")]));
    assert_eq!(header(&allowed, "access-control-allow-origin"), Some("https://monitor.example"));
    let denied = ask(&request("GET", "/health", Some("localhost"), &[("origin", "https://evil.example")]));
    assert_eq!(header(&denied, "access-control-allow-origin"), None);
    assert_eq!(header(&denied, "vary"), Some("Origin"));
    let asked = [("origin", "https://monitor.example"), ("access-control-request-private-network", "true")];
    let preflight = ask(&request("OPTIONS", "/health", Some("localhost"), &asked));
    assert_eq!((preflight.status, header(&preflight, "access-control-allow-private-network")), (204, Some("true")));
    assert_eq!(ask(&request("OPTIONS", "/health", Some("localhost"), &[])).status, 405);
}
