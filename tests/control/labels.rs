//! Labels of nodes, and lists by label, text, network and page.
use crate::database::{Kind, fresh};
use crate::server::ControlPlane;
use serde_json::json;

crate::on_both_databases![labels_select_nodes, pages_show_every_node_once, bad_labels_and_selectors_are_named];

async fn fleet(kind: Kind) -> ControlPlane {
    let server = ControlPlane::start(fresh(kind).await).await;
    server.create_network("10.8.0.0/24").await;
    for (id, label) in [("edge-1", "Pump"), ("edge-2", "50% Gate"), ("edge-3", "pump"), ("edge-10", "x_y")] {
        let body = json!({"node_id": id, "network": "field", "label": label}).to_string();
        assert_eq!(server.operator("POST", "/api/nodes", &body).await.0, 200);
    }
    server
}

async fn ids(server: &ControlPlane, query: &str) -> Vec<String> {
    let (status, answer) = server.operator("GET", &format!("/api/nodes?{query}"), "").await;
    assert_eq!(status, 200, "{answer}");
    let items = answer["data"]["items"].as_array().unwrap();
    assert_eq!(answer["data"]["total_estimate"], items.len(), "{answer}");
    items.iter().map(|n| n["id"].as_str().unwrap().to_owned()).collect()
}

async fn labels_select_nodes(kind: Kind) {
    let server = fleet(kind).await;
    let (status, node) =
        server.operator("PUT", "/api/nodes/edge-1/labels", r#"{"site": "berlin", "model": "pi3"}"#).await;
    assert_eq!((status, &node["data"]["labels"]), (200, &json!({"site": "berlin", "model": "pi3"})));
    server.cli_ok(&["node", "label", "edge-2", "site=berlin", "rack=7"]).await;
    server.cli_ok(&["node", "label", "edge-3", "site=oslo"]).await;

    assert_eq!(ids(&server, "selector=site%3Dberlin").await, ["edge-1", "edge-2"]);
    assert_eq!(ids(&server, "selector=site%3Dberlin,model!%3Dpi3").await, ["edge-2"]);
    assert_eq!(ids(&server, "selector=site!%3Dberlin").await, ["edge-10", "edge-3"], "also those without the label");
    assert_eq!(ids(&server, "filter=PUMP").await, ["edge-1", "edge-3"]);
    assert_eq!(ids(&server, "filter=50%25").await, ["edge-2"], "no pattern");
    assert_eq!(ids(&server, "filter=x_y").await, ["edge-10"]);
    assert_eq!(ids(&server, "filter=EDGE-1&state=expected&network=field").await, ["edge-1", "edge-10"]);
    assert_eq!(ids(&server, "network=other").await, Vec::<String>::new());
    let listed = server.cli_json(&["node", "list", "--selector", "site=berlin", "--filter", "gate"]).await;
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["id"]), (1, &json!("edge-2")));

    server.cli_ok(&["node", "label", "edge-2", "rack-", "site=oslo"]).await;
    assert_eq!(ids(&server, "selector=site%3Doslo").await, ["edge-2", "edge-3"]);
    let shown = server.cli_json(&["node", "show", "edge-2"]).await;
    assert_eq!(shown["labels"], json!({"site": "oslo"}));
    let (_, trail) = server.operator("GET", "/api/audit-logs?action=set_labels&entity_id=edge-2", "").await;
    let newest = &trail["data"][0]["details"];
    assert_eq!((&newest["before"]["rack"], &newest["after"]), (&json!("7"), &json!({"site": "oslo"})), "{trail}");
}

async fn pages_show_every_node_once(kind: Kind) {
    let server = fleet(kind).await;
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let (_, answer) = server.operator("GET", &format!("/api/nodes?limit=2&cursor={cursor}"), "").await;
        let page = &answer["data"];
        assert_eq!(page["total_estimate"], 4, "of all pages");
        seen.extend(page["items"].as_array().unwrap().iter().map(|n| n["id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(seen, ["edge-1", "edge-10", "edge-2", "edge-3"]);
}

async fn bad_labels_and_selectors_are_named(kind: Kind) {
    let server = fleet(kind).await;
    for (method, path, body, code, names) in [
        ("GET", "/api/nodes?selector=site", "", 400, "'site'"),
        ("GET", "/api/nodes?state=gone", "", 400, "gone"),
        ("GET", "/api/nodes?limit=many", "", 400, ""),
        ("PUT", "/api/nodes/edge-1/labels", r#"{"si te": "x"}"#, 400, "labels"),
        ("PUT", "/api/nodes/edge-1/labels", r#"{"site": ""}"#, 400, "labels"),
        ("PUT", "/api/nodes/edge-1/labels", r#"{"site": 7}"#, 400, "integer"),
        ("PUT", "/api/nodes/absent/labels", r#"{"site": "x"}"#, 404, "absent"),
    ] {
        let (status, answer) = server.operator(method, path, body).await;
        assert_eq!(status, code, "{path} {body}: {answer}");
        assert!(answer.to_string().contains(names), "{path} {body}: {answer}");
    }
    let (code, output) = server.cli(&["node", "label", "edge-1", "site"]).await;
    assert!(code == 2 && output.contains("'site' is no label"), "{code} {output}");
    let (code, output) = server.cli(&["node", "list", "--selector", "a=b,c"]).await;
    assert!(code == 2 && output.contains("'c'"), "{code} {output}");
}
