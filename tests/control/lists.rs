//! Lists of the operators' API: every one is filtered, sorted and paged, whatever changes meanwhile.
use crate::database::{Kind, fresh};
use crate::server::ControlPlane;
use serde_json::{Value, json};

crate::on_both_databases![pages_of_every_list_show_each_entity_once, pages_hold_while_the_list_changes];

async fn get(server: &ControlPlane, path: &str) -> Value {
    let (status, mut answer) = server.operator("GET", path, "").await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer["data"].take()
}

/// All items of a list by pages of `limit`.
async fn walk(server: &ControlPlane, path: &str, sort: &str, limit: usize) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let sort = if sort.is_empty() { String::new() } else { format!("&sort={sort}") };
        let mut page = get(server, &format!("{path}?limit={limit}&cursor={cursor}{sort}")).await;
        let Value::Array(found) = page["items"].take() else { panic!("{path}: no items") };
        assert!(found.len() <= limit, "{path}");
        items.extend(found);
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => return items,
        }
    }
}

async fn fleet(kind: Kind) -> ControlPlane {
    let server = ControlPlane::start(fresh(kind).await).await;
    for i in 0..3 {
        let network = json!({"name": format!("net-{i}"), "pool4": format!("10.{i}.0.0/16")});
        assert_eq!(server.operator("POST", "/api/networks", &network.to_string()).await.0, 200);
        let key = json!({"name": format!("panel-{i}"), "role": if i == 0 { "viewer" } else { "operator" }});
        assert_eq!(server.operator("POST", "/api/keys", &key.to_string()).await.0, 200);
        let release = json!({"network": format!("net-{i}"), "version": "1.4.0"});
        assert_eq!(server.operator("PUT", "/api/releases", &release.to_string()).await.0, 200);
    }
    for i in 0..5 {
        let node = json!({"node_id": format!("edge-{i}"), "network": format!("net-{}", i % 2), "label": format!("L{}", i % 3)});
        assert_eq!(server.operator("POST", "/api/nodes", &node.to_string()).await.0, 200);
    }
    server
}

async fn pages_of_every_list_show_each_entity_once(kind: Kind) {
    let server = fleet(kind).await;
    let (_, openapi) = server.operator("GET", "/api/openapi.json", "").await;
    let takes =
        |call: &Value, name: &str| call["parameters"].as_array().into_iter().flatten().any(|p| p["name"] == name);
    let mut lists = Vec::new();
    for (path, item) in openapi["paths"].as_object().unwrap().iter().filter(|(p, _)| !p.starts_with("/api/v1/")) {
        let answers = item["get"]["responses"]["200"].to_string();
        if takes(&item["get"], "cursor") {
            lists.push((path.as_str(), takes(&item["get"], "sort")));
        } else {
            assert!(
                !answers.contains("\"array\"") && !answers.contains("Listed"),
                "GET {path} is a list without pages"
            );
        }
    }
    let names: Vec<_> = lists.iter().map(|(path, _)| *path).collect();
    for path in ["/api/audit-logs", "/api/keys", "/api/networks", "/api/nodes", "/api/releases", "/api/tokens"] {
        assert!(names.contains(&path), "{path} of {names:?}");
    }
    for (path, sorted) in lists {
        let whole = walk(&server, path, "", 1000).await;
        assert!(whole.len() >= 3, "{path}: {whole:?}");
        assert_eq!(walk(&server, path, "", 1).await, whole, "{path}");
        assert_eq!(get(&server, &format!("{path}?limit=1&cursor=")).await["total_estimate"], whole.len(), "{path}");
        let (status, wrong) = server.operator("GET", &format!("{path}?cursor=nonsense!"), "").await;
        assert_eq!((status, &wrong["fields"]), (400, &json!(["cursor"])), "{path}: {wrong}");
        if !sorted {
            continue;
        }
        assert_eq!(get(&server, &format!("{path}?filter=no-such-text")).await["total_estimate"], 0, "{path}");
        // The orders there are, as the refusal of another one names them.
        let (status, wrong) = server.operator("GET", &format!("{path}?sort=nonsense"), "").await;
        assert_eq!((status, &wrong["fields"]), (400, &json!(["sort"])), "{path}: {wrong}");
        let message = wrong["message"].as_str().unwrap();
        let orders = message.split("one of ").nth(1).unwrap().split(';').next().unwrap().to_owned();
        for order in orders.split(", ") {
            let ascending = walk(&server, path, order, 2).await;
            let mut descending = walk(&server, path, &format!("-{order}"), 2).await;
            descending.reverse();
            assert_eq!(ascending, descending, "{path} by {order}");
            assert_eq!(ascending.len(), whole.len(), "{path} by {order}");
            assert!(whole.iter().all(|item| ascending.contains(item)), "{path} by {order}");
        }
    }
    let labels: Vec<_> = walk(&server, "/api/nodes", "-label", 2).await.iter().map(|n| n["label"].clone()).collect();
    assert_eq!(labels, ["L2", "L1", "L1", "L0", "L0"]);
    assert_eq!(get(&server, "/api/nodes?network=net-1&filter=L0&sort=-id").await["items"][0]["id"], "edge-3");
    // A cursor of another order is refused, and does not begin elsewhere.
    let by_label = get(&server, "/api/nodes?sort=label&limit=1").await["next_cursor"].as_str().unwrap().to_owned();
    assert_eq!(server.operator("GET", &format!("/api/nodes?limit=1&cursor={by_label}"), "").await.0, 400);
    // As panels of before read it.
    assert!(get(&server, "/api/audit-logs?limit=2&offset=1").await.is_array());
}

async fn pages_hold_while_the_list_changes(kind: Kind) {
    let server = fleet(kind).await;
    let first = get(&server, "/api/nodes?limit=2").await;
    let cursor = first["next_cursor"].as_str().unwrap();
    assert_eq!(server.operator("DELETE", "/api/nodes/edge-1", "").await.0, 200);
    for id in ["edge-00", "edge-9"] {
        let node = json!({"node_id": id, "network": "net-2"});
        assert_eq!(server.operator("POST", "/api/nodes", &node.to_string()).await.0, 200);
    }
    let rest = get(&server, &format!("/api/nodes?cursor={cursor}")).await;
    let ids: Vec<_> = rest["items"].as_array().unwrap().iter().map(|n| n["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["edge-2", "edge-3", "edge-4", "edge-9"], "nothing twice, nothing left out");
    assert_eq!(rest["total_estimate"], 7);
}
