//! `http` and `https` URLs, read by one parser wherever the configuration or a message has one.
use crate::address::{BadHostPort, HostPort};
use std::fmt;
use std::str::FromStr;

/// Longest URL, in bytes.
const MAX_BYTES: usize = 2048;

/// A URL in normal form: scheme and host in lower case, no default port. It may hold a key: `Debug` and
/// [`HttpUrl::origin`] show scheme, host and port only.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpUrl {
    tls: bool,
    server: HostPort,
    tail: String,
}

/// Text that is not such a URL. The text itself is left out: it may hold a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// Another scheme, or none.
    #[error("does not begin with https:// or http://")]
    Scheme,
    /// A user name or a password.
    #[error("has a user name or password, which is not supported: remove what is before the @")]
    UserInfo,
    /// The host or the port.
    #[error("has no valid host and port: a port is 1 to 65535")]
    Server,
    /// A placeholder such as `${KEY}` or `<KEY>` that nothing has replaced.
    #[error("has a placeholder in {{}} or <>: put the value in its place")]
    Placeholder,
    /// Blanks, control characters or others that no URL has.
    #[error("has a character that no URL has: blanks and characters beyond ASCII are written as %20 and the like")]
    Character,
    /// Longer than 2,048 bytes.
    #[error("is longer than {MAX_BYTES} bytes")]
    Length,
}

impl From<BadHostPort> for BadUrl {
    fn from(_: BadHostPort) -> Self {
        Self::Server
    }
}

impl HttpUrl {
    /// Whether the scheme is `https`.
    pub const fn is_tls(&self) -> bool {
        self.tls
    }

    /// Where the server is.
    pub const fn server(&self) -> &HostPort {
        &self.server
    }

    /// Path, query and fragment; empty if there is none.
    pub fn tail(&self) -> &str {
        &self.tail
    }

    /// Scheme, host and port.
    pub fn origin(&self) -> String {
        let (scheme, default) = if self.tls { ("https", 443) } else { ("http", 80) };
        let server = self.server.to_string();
        let server = match server.strip_suffix(&format!(":{default}")) {
            Some(host) if self.server.port == default => host,
            Some(_) | None => &server,
        };
        format!("{scheme}://{server}")
    }

    /// The whole URL, with what may be a key; only for the client that opens it.
    pub fn reveal(&self) -> String {
        format!("{}{}", self.origin(), self.tail)
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin())
    }
}

impl FromStr for HttpUrl {
    type Err = BadUrl;
    fn from_str(text: &str) -> Result<Self, BadUrl> {
        if text.len() > MAX_BYTES {
            return Err(BadUrl::Length);
        }
        let (scheme, rest) = text.split_once("://").ok_or(BadUrl::Scheme)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(BadUrl::Scheme),
        };
        if rest.contains(['{', '}', '<', '>']) {
            return Err(BadUrl::Placeholder);
        }
        if !rest.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(BadUrl::Character);
        }
        let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(at);
        if authority.contains('@') {
            return Err(BadUrl::UserInfo);
        }
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let mut server: HostPort = match has_port {
            true => authority.parse()?,
            false => format!("{authority}:{}", if tls { 443 } else { 80 }).parse()?,
        };
        if server.has_scope() {
            return Err(BadUrl::Server);
        }
        server.host.make_ascii_lowercase();
        Ok(Self { tls, server, tail: tail.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls_have_one_normal_form() {
        for (text, expected, server) in [
            ("https://rpc.example.net/v2/KEY?a=b#c", "https://rpc.example.net/v2/KEY?a=b#c", "rpc.example.net:443"),
            ("HTTPS://RPC.Example.Net:443/V2", "https://rpc.example.net/V2", "rpc.example.net:443"),
            ("http://127.0.0.1:8545", "http://127.0.0.1:8545", "127.0.0.1:8545"),
            ("Http://h:80/", "http://h/", "h:80"),
            ("http://h:443?x", "http://h:443?x", "h:443"),
            ("https://[2001:db8::1]", "https://[2001:db8::1]", "[2001:db8::1]:443"),
            ("https://[2001:DB8:0::1]:8443/", "https://[2001:db8::1]:8443/", "[2001:db8::1]:8443"),
            ("https://control.example.net.:8443", "https://control.example.net:8443", "control.example.net:8443"),
        ] {
            let url: HttpUrl = text.parse().unwrap();
            assert_eq!((url.reveal().as_str(), url.server().to_string().as_str()), (expected, server), "{text}");
        }
        let url: HttpUrl = "https://h.example/v2/s3cret".parse().unwrap();
        assert_eq!((format!("{url:?}"), url.origin()), ("https://h.example".into(), "https://h.example".into()));
    }

    #[test]
    fn malformed_urls_are_refused() {
        for (text, problem) in [
            ("http://127.0.0.1:99999/v2/key", BadUrl::Server),
            ("http://127.0.0.1:0/", BadUrl::Server),
            ("http://h:/", BadUrl::Server),
            ("https://", BadUrl::Server),
            ("https:///path", BadUrl::Server),
            ("https://[::1", BadUrl::Server),
            ("https://[fe80::1%eth0]:1/", BadUrl::Server),
            ("https://a b/", BadUrl::Character),
            ("https://h/\u{fc}", BadUrl::Character),
            ("https://h/${INFURA_KEY}", BadUrl::Placeholder),
            ("https://{host}/", BadUrl::Placeholder),
            ("https://user:pass@h/", BadUrl::UserInfo),
            ("ftp://h/", BadUrl::Scheme),
            ("h:443", BadUrl::Scheme),
            ("", BadUrl::Scheme),
        ] {
            assert_eq!(text.parse::<HttpUrl>(), Err(problem), "{text}");
        }
        assert_eq!(format!("https://h/{}", "a".repeat(3000)).parse::<HttpUrl>(), Err(BadUrl::Length));
    }

    proptest! {
        #[test]
        fn normal_form_reads_back(text in "(https?|HTTP)://[a-zA-Z0-9.:@\\[\\]%-]{0,30}(/[ -~]{0,20})?") {
            if let Ok(url) = text.parse::<HttpUrl>() {
                prop_assert_eq!(url.reveal().parse::<HttpUrl>().unwrap(), url);
            }
        }
    }
}
