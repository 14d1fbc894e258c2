//! HTTP requests and responses of the local endpoints and the agent API, independent of a server library.
pub mod limit;

use percent_encoding::percent_decode_str;
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

/// A complete request.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`, … as sent.
    pub method: String,
    /// The path as sent, percent-encoded, without the query.
    pub path: String,
    /// The query after `?`, as sent.
    pub query: Option<String>,
    /// The `Host` header, or the authority of an absolute request target.
    pub host: Option<String>,
    /// Names in lower case, values as sent.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Body as received.
    pub body: Vec<u8>,
    /// Address of the client.
    pub source: SocketAddr,
}

/// Without headers and body, which hold secrets.
impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} of {}, {} bytes", self.method, self.path, self.source, self.body.len())
    }
}

impl Request {
    /// The first value of a header, if it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(n, _)| n == name)?;
        std::str::from_utf8(value).ok()
    }

    /// Number of values of a header.
    pub fn count(&self, name: &str) -> usize {
        self.headers.iter().filter(|(n, _)| n == name).count()
    }

    /// Whether the method is safe (RFC 9110, 9.2.1).
    pub fn is_safe(&self) -> bool {
        matches!(self.method.as_str(), "GET" | "HEAD" | "OPTIONS")
    }
}

/// A response body.
#[derive(Clone, PartialEq, Eq)]
pub enum Body {
    /// Constant.
    Static(&'static str),
    /// For one response.
    Owned(Vec<u8>),
    /// Shared by many responses.
    Shared(Arc<[u8]>),
}

/// Its length: it may hold keys.
impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.bytes().len())
    }
}

impl Body {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Static(text) => text.as_bytes(),
            Self::Owned(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// `Content-Type`; empty for none.
    pub content_type: &'static str,
    /// Further headers, names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: Body,
}

impl Response {
    /// A JSON body; 500 if the value cannot be serialised.
    pub fn json<T: serde::Serialize + ?Sized>(status: u16, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(bytes) => Self::new(status, "application/json", Body::Owned(bytes)),
            Err(_) => {
                Self::new(500, "application/json", Body::Static(r#"{"error":"the response cannot be serialised"}"#))
            }
        }
    }

    /// Any body.
    pub const fn new(status: u16, content_type: &'static str, body: Body) -> Self {
        Self { status, content_type, headers: Vec::new(), body }
    }

    /// `{"error": text}`.
    pub fn error(status: u16, text: &str) -> Self {
        Self::json(status, &serde_json::json!({ "error": text }))
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// A path that cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path has a broken percent escape, a zero byte, or is not UTF-8")]
pub struct BadPath;

/// Percent-decodes a path. `+` stays: it means a space in queries only.
pub fn decode_path(raw: &str) -> Result<Cow<'_, str>, BadPath> {
    // The decoder leaves a broken escape as it stands.
    let is_escape = |rest: &str| rest.as_bytes().get(..2).is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit));
    if !raw.split('%').skip(1).all(is_escape) {
        return Err(BadPath);
    }
    let path = percent_decode_str(raw).decode_utf8().map_err(|_| BadPath)?;
    if path.contains('\0') { Err(BadPath) } else { Ok(path) }
}

/// Whether a `Host` value names this machine: an IP address, `localhost`, or one of `names`, with any port.
///
/// Against DNS rebinding: a page of another origin can resolve its name to our address, but not send our name or address
/// in this header.
pub fn host_is_ours(host: &str, names: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => {
            let Some((v6, port)) = rest.split_once(']') else { return false };
            return v6.parse::<std::net::Ipv6Addr>().is_ok() && port_is_fine(port.strip_prefix(':'), port);
        }
        None => match host.split_once(':') {
            Some((name, port)) if port_is_fine(Some(port), ":") => name,
            Some(_) => return false,
            None => host,
        },
    };
    name.parse::<std::net::Ipv4Addr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || names.iter().any(|n| n.eq_ignore_ascii_case(name))
}

fn port_is_fine(port: Option<&str>, rest: &str) -> bool {
    rest.is_empty() || port.is_some_and(|p| p.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn debug_shows_no_secret() {
        let request = Request {
            method: "PUT".into(),
            path: "/v1/wg/wg0/config".into(),
            query: None,
            host: None,
            headers: vec![("authorization".into(), b"hunter2".to_vec())],
            body: b"hunter2".to_vec(),
            source: ([127, 0, 0, 1], 1).into(),
        };
        let response =
            Response { status: 200, content_type: "", headers: Vec::new(), body: Body::Owned(b"hunter2".to_vec()) };
        let again = crate::socket::SocketRequest::EnrolAgain { token: Some("hunter2".into()) };
        let shown = format!("{request:?} {response:?} {again:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("104, 117") && shown.contains("/v1/wg/wg0"), "{shown}");
    }

    #[test]
    fn path_is_decoded_once() {
        assert_eq!(decode_path("/a%2Fb+%2B").unwrap(), "/a/b++");
        assert_eq!(decode_path("/%252F").unwrap(), "/%2F");
        for bad in ["/%", "/%2", "/%zz", "/%00", "/%ff", "/%+1"] {
            assert_eq!(decode_path(bad), Err(BadPath), "{bad}");
        }
    }

    #[test]
    fn only_own_hosts_are_accepted() {
        let names = ["router.lan".to_owned()];
        for ours in
            ["localhost:8080", "LOCALHOST", "127.0.0.1", "10.8.0.2:8080", "[::1]:8080", "[fd00::1]", "Router.LAN:1"]
        {
            assert!(host_is_ours(ours, &names), "{ours}");
        }
        for foreign in [
            "",
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil:80",
            "[::1",
            "[::1]x",
            "a:b:c",
            "127.0.0.1:x",
        ] {
            assert!(!host_is_ours(foreign, &names), "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn encoded_path_decodes_to_the_original(text in "[^\\x00]{0,40}") {
            let encoded: String = text.bytes().map(|b| format!("%{b:02X}")).collect();
            prop_assert_eq!(decode_path(&encoded).unwrap(), text);
        }

        #[test]
        fn arbitrary_text_does_not_panic(text in "\\PC{0,60}") {
            let _ = (decode_path(&text), host_is_ours(&text, &[]));
        }
    }
}
