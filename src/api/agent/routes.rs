//! Maps method and path to a call.
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;

/// A call. Bodies are parsed after authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `GET /health`.
    Health,
    /// `GET /v1/status`.
    Status,
    /// `GET /v1/metrics`.
    Metrics,
    /// `GET /v1/openapi.json`.
    OpenApi,
    /// `GET /v1/drift`.
    Drift,
    /// `POST /v1/drift/reconcile`.
    Reconcile,
    /// `GET /v1/history`.
    History,
    /// `POST /v1/confirm`.
    Confirm,
    /// `POST /v1/rollback`.
    Rollback,
    /// `GET /v1/wg/{if}/dump`.
    Dump(IfName),
    /// `POST /v1/wg/{if}/peers`.
    AddPeer(IfName),
    /// `PUT /v1/wg/{if}/peers/{key}`.
    ChangePeer(IfName, PublicKey),
    /// `DELETE /v1/wg/{if}/peers/{key}`.
    RemovePeer(IfName, PublicKey),
    /// `POST /v1/wg/{if}/syncconf`.
    SyncConf(IfName),
    /// `GET /v1/wg/{if}/config`.
    GetConfig(IfName),
    /// `PUT /v1/wg/{if}/config`.
    PutConfig(IfName),
    /// `POST /v1/wg/{if}/enable`.
    Enable(IfName),
    /// `POST /v1/wg/{if}/disable`.
    Disable(IfName),
    /// `DELETE /v1/wg/{if}`.
    Delete(IfName),
}

/// Why a request names no call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCall {
    /// 404.
    #[error("Not found")]
    Unknown,
    /// 405, with the allowed methods.
    #[error("Method not allowed")]
    Method(&'static str),
    /// 400.
    #[error("Invalid interface name: 1 to 15 characters out of A-Z a-z 0-9 _ . - that do not begin with - or .")]
    BadLink,
    /// 400.
    #[error("Invalid public key: expected 44 characters of base64 (32 bytes)")]
    BadKey,
}

/// Resolves a call. `path` is decoded; keys may contain `/`, sent raw or as `%2F`.
pub fn resolve(method: &str, path: &str) -> Result<Call, NoCall> {
    let method = if method == "HEAD" { "GET" } else { method };
    let only = |wanted: &'static str, call: Call| {
        if method == wanted { Ok(call) } else { Err(NoCall::Method(wanted)) }
    };
    match path {
        "/health" => return only("GET", Call::Health),
        "/v1/status" => return only("GET", Call::Status),
        "/v1/metrics" => return only("GET", Call::Metrics),
        "/v1/openapi.json" => return only("GET", Call::OpenApi),
        "/v1/drift" => return only("GET", Call::Drift),
        "/v1/drift/reconcile" => return only("POST", Call::Reconcile),
        "/v1/history" => return only("GET", Call::History),
        "/v1/confirm" => return only("POST", Call::Confirm),
        "/v1/rollback" => return only("POST", Call::Rollback),
        _ => {}
    }
    let rest = path.strip_prefix("/v1/wg/").ok_or(NoCall::Unknown)?;
    let (name, tail) = rest.split_once('/').map_or((rest, None), |(name, tail)| (name, Some(tail)));
    let link = || name.parse::<IfName>().map_err(|_| NoCall::BadLink);
    match tail {
        None => {
            let link = link()?;
            only("DELETE", Call::Delete(link))
        }
        Some("dump") => only("GET", Call::Dump(link()?)),
        Some("peers") => only("POST", Call::AddPeer(link()?)),
        Some("syncconf") => only("POST", Call::SyncConf(link()?)),
        Some("enable") => only("POST", Call::Enable(link()?)),
        Some("disable") => only("POST", Call::Disable(link()?)),
        Some("config") => match method {
            "GET" => Ok(Call::GetConfig(link()?)),
            "PUT" => Ok(Call::PutConfig(link()?)),
            _ => Err(NoCall::Method("GET, PUT")),
        },
        Some(tail) => {
            let key = tail.strip_prefix("peers/").ok_or(NoCall::Unknown)?;
            if !matches!(method, "PUT" | "DELETE") {
                return Err(NoCall::Method("PUT, DELETE"));
            }
            let (link, key) = (link()?, key.parse().map_err(|_| NoCall::BadKey)?);
            Ok(if method == "PUT" { Call::ChangePeer(link, key) } else { Call::RemovePeer(link, key) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::decode_path;
    use proptest::prelude::*;

    #[test]
    fn key_with_slash_is_accepted_raw_and_encoded() {
        let key = "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=";
        let want = Call::RemovePeer("wg0".parse().unwrap(), key.parse().unwrap());
        for path in [
            format!("/v1/wg/wg0/peers/{key}"),
            format!("/v1/wg/wg0/peers/{}", key.replace('/', "%2F")),
            format!("/v1/wg/wg0/peers/{}", key.replace('/', "%2f").replace('+', "%2B").replace('=', "%3D")),
        ] {
            assert_eq!(resolve("DELETE", &decode_path(&path).unwrap()), Ok(want.clone()), "{path}");
        }
    }

    #[test]
    fn unknown_calls_are_refused() {
        let cases = [
            ("GET", "/", NoCall::Unknown),
            ("GET", "/v1/wg/wg0/nothing", NoCall::Unknown),
            ("GET", "/v1/wg/a/b/dump", NoCall::Unknown),
            ("POST", "/v1/status", NoCall::Method("GET")),
            ("GET", "/v1/wg/wg0/peers", NoCall::Method("POST")),
            ("PATCH", "/v1/wg/wg0/config", NoCall::Method("GET, PUT")),
            ("GET", "/v1/wg/../dump", NoCall::BadLink),
            ("GET", "/v1/wg/wg 0/dump", NoCall::BadLink),
            ("GET", "/v1/wg/--help/dump", NoCall::BadLink),
            ("GET", "/v1/wg//dump", NoCall::BadLink),
            ("DELETE", "/v1/wg/a234567890123456", NoCall::BadLink),
            ("PUT", "/v1/wg/wg0/peers/short", NoCall::BadKey),
        ];
        for (method, path, want) in cases {
            assert_eq!(resolve(method, path), Err(want), "{method} {path}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_paths_do_not_panic(method in "[A-Z]{0,6}", path in "(/v1/wg/)?\\PC{0,60}") {
            let _ = resolve(&method, &path);
        }
    }
}
