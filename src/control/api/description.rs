//! Completes the OpenAPI document with what is the same for every call of operators: errors, headers, roles.
use super::auth::required_role;
use axum::http::Method;
use serde_json::{Value, json};

/// Errors that any call of operators may answer.
const GENERAL: [(&str, &str); 4] = [
    ("401", "no valid key"),
    ("403", "the role of the key does not suffice"),
    ("429", "too many requests"),
    ("503", "the control plane or its database cannot serve the request"),
];

/// The document with errors, headers, authentication and the least role of each call of operators.
pub fn complete(mut document: Value) -> Value {
    document["components"]["securitySchemes"] = json!({"key": {"type": "http", "scheme": "bearer"}});
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    for (path, item) in paths.filter(|(path, _)| !path.starts_with("/api/v1/")) {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            let Ok(method) = Method::from_bytes(method.to_uppercase().as_bytes()) else { continue };
            operation["security"] = json!([{"key": []}]);
            operation["x-role"] = json!(required_role(&method, path).as_str());
            complete_responses(&mut operation["responses"]);
            let changes = operation["responses"]["412"].is_object();
            let conditional = changes.then(|| header("If-Match", "the ETag of what is changed, or *"));
            let once = (method == Method::POST)
                .then(|| header("Idempotency-Key", "1 to 128 characters: a repeated request gets the first answer"));
            let added: Vec<Value> = conditional.into_iter().chain(once).collect();
            match operation["parameters"].as_array_mut() {
                Some(parameters) => parameters.extend(added),
                None if added.is_empty() => {}
                None => operation["parameters"] = Value::Array(added),
            }
        }
    }
    document
}

fn complete_responses(responses: &mut Value) {
    for (code, description) in GENERAL {
        if !responses[code].is_object() {
            responses[code] = json!({"description": description});
        }
    }
    for (code, response) in responses.as_object_mut().into_iter().flatten() {
        if code.as_str() >= "400" && !response["content"].is_object() {
            response["content"] = json!({"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}});
        }
    }
}

fn header(name: &str, description: &str) -> Value {
    json!({"name": name, "in": "header", "required": false, "description": description, "schema": {"type": "string"}})
}
