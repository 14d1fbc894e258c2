//! The OpenAPI document of the agent API, served as `/v1/openapi.json`; `scripts/test-agent` checks the agent against it.

/// The document.
pub const DOCUMENT: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests {
    use super::super::auth::OPEN;
    use super::super::routes::resolve;
    use super::*;

    #[test]
    fn document_lists_the_served_calls() {
        let document: serde_json::Value = serde_json::from_str(DOCUMENT).unwrap();
        let mut calls = 0;
        for (path, methods) in document["paths"].as_object().unwrap() {
            let key = "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=";
            let real = path.replace("{if}", "wg0").replace("{key}", key);
            for (method, call) in methods.as_object().unwrap() {
                assert!(resolve(&method.to_uppercase(), &real).is_ok(), "{method} {path}");
                let open = call["security"].as_array().unwrap().is_empty();
                assert_eq!(open, OPEN.contains(&path.as_str()), "{path}");
                let nonce = call["parameters"].to_string().contains("nonce");
                assert_eq!(nonce, method != "get", "{method} {path}: a changing call takes a nonce");
                calls += 1;
            }
        }
        assert_eq!(calls, 19, "all calls are listed");
    }

    #[test]
    fn references_resolve() {
        let document: serde_json::Value = serde_json::from_str(DOCUMENT).unwrap();
        let mut references = 0;
        for part in DOCUMENT.split("\"$ref\":\"#").skip(1) {
            let pointer = part.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
            references += 1;
        }
        assert!(references > 50, "{references}");
    }
}
