//! Authentication of a node's requests: an Ed25519 signature over request, time and nonce.
//!
//! Signatures instead of client certificates, because a board may boot in 1970 and a certificate depends on dates,
//! because its renewal fails after a long time offline, and because a TLS proxy in front of several control planes
//! would have to be trusted with the identity. The time only bounds how long nonces are remembered. The signature is
//! verified before the time, so only the node itself receives the server's time, signed by the control plane's key.
//!
//! Signed text, one item per line: `spoke-request-v1`, node id, method, path with query, SHA-256 of the body in hex,
//! milliseconds since 1970, nonce in hex. No item can contain a line feed, so the text is unambiguous.
use serde::{Deserialize, Serialize};
use spoke_model::node_id::NodeId;
use spoke_model::signature::{SignKey, Signature, VerifyKey, sha256_hex};

/// Header with the node id.
pub const NODE: &str = "spoke-node";
/// Header with milliseconds since 1970.
pub const TIMESTAMP: &str = "spoke-timestamp";
/// Header with the nonce: 32 lower-case hex digits.
pub const NONCE: &str = "spoke-nonce";
/// Header with the signature.
pub const SIGNATURE: &str = "spoke-signature";

/// Header with a [`spoke_model::key_proof::KeyProof`] of the WireGuard key that the request names, over the text of the
/// signature. A control plane without it ignores the header.
pub const KEY_PROOF: &str = "spoke-key-proof";

/// Accepted difference between the time of a request and the server's, in milliseconds; nonces are remembered for twice
/// as long.
pub const WINDOW_MS: u64 = 120_000;

/// The headers that authenticate a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestProof {
    /// The node.
    pub node: NodeId,
    /// The node's estimate of the server's time, in milliseconds since 1970.
    pub timestamp_ms: u64,
    /// Unique to the request.
    pub nonce: Nonce,
    /// Over the text above.
    pub signature: Signature,
}

/// 16 random bytes, used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce(pub [u8; 16]);

impl Nonce {
    /// 32 lower-case hex digits.
    pub fn to_hex(self) -> String {
        use std::fmt::Write as _;
        self.0.iter().fold(String::with_capacity(32), |mut text, b| {
            let _ = write!(text, "{b:02x}");
            text
        })
    }

    /// Reads [`Nonce::to_hex`]; `None` for any other text.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut out = [0; 16];
        for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(out))
    }
}

/// The signed parts of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestParts<'a> {
    /// `GET`, `POST`, …
    pub method: &'a str,
    /// Path with the query, as on the request line.
    pub path: &'a str,
    /// The body; may be empty.
    pub body: &'a [u8],
}

impl RequestParts<'_> {
    fn text(&self, node: &NodeId, timestamp_ms: u64, nonce: Nonce) -> String {
        let (method, path, body) = (self.method, self.path, sha256_hex(self.body));
        format!("spoke-request-v1\n{node}\n{method}\n{path}\n{body}\n{timestamp_ms}\n{}", nonce.to_hex())
    }

    /// Signs for `node`.
    pub fn prove(&self, key: &SignKey, node: &NodeId, timestamp_ms: u64, nonce: Nonce) -> RequestProof {
        let signature = key.sign(self.text(node, timestamp_ms, nonce).as_bytes());
        RequestProof { node: node.clone(), timestamp_ms, nonce, signature }
    }
}

impl RequestProof {
    /// Reads the four headers through `header`; `None` if one is missing or malformed.
    pub fn from_headers<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        Some(Self {
            node: header(NODE)?.parse().ok()?,
            timestamp_ms: header(TIMESTAMP)?.parse().ok()?,
            nonce: Nonce::from_hex(header(NONCE)?)?,
            signature: header(SIGNATURE)?.parse().ok()?,
        })
    }

    /// The headers to send.
    pub fn headers(&self) -> [(&'static str, String); 4] {
        [
            (NODE, self.node.to_string()),
            (TIMESTAMP, self.timestamp_ms.to_string()),
            (NONCE, self.nonce.to_hex()),
            (SIGNATURE, self.signature.to_string()),
        ]
    }

    /// Whether the holder of `key` signed exactly this request.
    pub fn verify(&self, parts: &RequestParts<'_>, key: &VerifyKey) -> bool {
        key.verify(parts.text(&self.node, self.timestamp_ms, self.nonce).as_bytes(), &self.signature)
    }
}

/// The server's time, sent to a node whose clock is off; signed, because a board without a clock cannot check the dates
/// of a TLS certificate and must not accept a time from a third party.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeAnswer {
    /// Milliseconds since 1970.
    pub server_time_ms: u64,
    /// The nonce of the request, in hex; prevents replays.
    pub nonce: String,
    /// Who signed.
    pub key: VerifyKey,
    /// Over the text of [`TimeAnswer::sign`].
    pub signature: Signature,
}

impl TimeAnswer {
    fn text(server_time_ms: u64, nonce: &str) -> String {
        format!("spoke-time-v1\n{server_time_ms}\n{nonce}")
    }

    /// Signs the time in answer to the request with `nonce`.
    pub fn sign(key: &SignKey, server_time_ms: u64, nonce: Nonce) -> Self {
        let nonce = nonce.to_hex();
        let signature = key.sign(Self::text(server_time_ms, &nonce).as_bytes());
        Self { server_time_ms, nonce, key: key.public(), signature }
    }

    /// The time, if a pinned key signed it for the request with `nonce`.
    pub fn verify(&self, nonce: Nonce, pinned: &[VerifyKey]) -> Option<u64> {
        let fits = self.nonce == nonce.to_hex()
            && pinned.contains(&self.key)
            && self.key.verify(Self::text(self.server_time_ms, &self.nonce).as_bytes(), &self.signature);
        fits.then_some(self.server_time_ms)
    }
}

/// The removal of a node from the fleet, sent to that node. Signed, because the node erases its state: no third party may
/// make it do so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemovalAnswer {
    /// The nonce of the request, in hex; prevents replays after the node was enrolled again.
    pub nonce: String,
    /// Who signed.
    pub key: VerifyKey,
    /// Over the text of [`RemovalAnswer::sign`].
    pub signature: Signature,
}

impl RemovalAnswer {
    fn text(node: &NodeId, nonce: &str) -> String {
        format!("spoke-removal-v1\n{node}\n{nonce}")
    }

    /// Signs the removal of `node` in answer to its request with `nonce`.
    pub fn sign(key: &SignKey, node: &NodeId, nonce: Nonce) -> Self {
        let nonce = nonce.to_hex();
        let signature = key.sign(Self::text(node, &nonce).as_bytes());
        Self { nonce, key: key.public(), signature }
    }

    /// Whether a pinned key signed the removal of `node` for its request with `nonce`.
    pub fn verify(&self, node: &NodeId, nonce: Nonce, pinned: &[VerifyKey]) -> bool {
        self.nonce == nonce.to_hex()
            && pinned.contains(&self.key)
            && self.key.verify(Self::text(node, &self.nonce).as_bytes(), &self.signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(n: u8) -> SignKey {
        SignKey::from_seed(&[n; 32]).unwrap()
    }

    fn node() -> NodeId {
        "edge-1".parse().unwrap()
    }

    #[test]
    fn headers_carry_the_proof() {
        let parts = RequestParts { method: "POST", path: "/api/v1/nodes/register", body: b"{}" };
        let proof = parts.prove(&key(1), &node(), 1_700_000_000_000, Nonce([9; 16]));
        let headers = proof.headers();
        let read = RequestProof::from_headers(|name| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str()));
        assert_eq!(read.as_ref(), Some(&proof));
        assert!(read.unwrap().verify(&parts, &key(1).public()));
        assert!(!proof.verify(&parts, &key(2).public()), "another node's key");
        assert!(!proof.verify(&RequestParts { body: b"[]", ..parts }, &key(1).public()));
        assert!(!proof.verify(&RequestParts { method: "PUT", ..parts }, &key(1).public()));
        assert!(!proof.verify(&RequestParts { path: "/api/v1/nodes/register?x", ..parts }, &key(1).public()));
        let posing = RequestProof { node: "edge-2".parse().unwrap(), ..proof };
        assert!(!posing.verify(&parts, &key(1).public()), "the node id is signed as well");
    }

    #[test]
    fn server_time_needs_pinned_key_and_own_nonce() {
        let answer = TimeAnswer::sign(&key(1), 1_800_000_000_000, Nonce([1; 16]));
        assert_eq!(answer.verify(Nonce([1; 16]), &[key(1).public()]), Some(1_800_000_000_000));
        assert_eq!(answer.verify(Nonce([2; 16]), &[key(1).public()]), None);
        assert_eq!(answer.verify(Nonce([1; 16]), &[key(2).public()]), None);
        let later = TimeAnswer { server_time_ms: 1, ..answer };
        assert_eq!(later.verify(Nonce([1; 16]), &[key(1).public()]), None);
    }

    #[test]
    fn removal_needs_pinned_key_own_nonce_and_own_name() {
        let (nonce, pinned) = (Nonce([1; 16]), [key(1).public()]);
        let answer = RemovalAnswer::sign(&key(1), &node(), nonce);
        assert!(answer.verify(&node(), nonce, &pinned));
        assert!(!answer.verify(&node(), Nonce([2; 16]), &pinned), "recorded before the node was enrolled again");
        assert!(!answer.verify(&"edge-2".parse().unwrap(), nonce, &pinned), "of another node");
        assert!(!RemovalAnswer::sign(&key(2), &node(), nonce).verify(&node(), nonce, &pinned));
        let posing = RemovalAnswer { key: key(1).public(), ..RemovalAnswer::sign(&key(2), &node(), nonce) };
        assert!(!posing.verify(&node(), nonce, &pinned));
        let time = TimeAnswer::sign(&key(1), 1, nonce);
        let posing = RemovalAnswer { signature: time.signature, ..answer };
        assert!(!posing.verify(&node(), nonce, &pinned), "a signed time is no removal");
    }

    proptest! {
        #[test]
        fn nonces_read_back(bytes: [u8; 16]) {
            prop_assert_eq!(Nonce::from_hex(&Nonce(bytes).to_hex()), Some(Nonce(bytes)));
        }

        #[test]
        fn any_header_text_never_panics(text in "\\PC{0,90}") {
            let _ = Nonce::from_hex(&text);
            prop_assert!(RequestProof::from_headers(|_| Some(text.as_str())).is_none());
        }

        #[test]
        fn any_change_of_time_breaks_the_proof(t: u32, other: u32) {
            prop_assume!(t != other);
            let parts = RequestParts { method: "GET", path: "/", body: b"" };
            let proof = parts.prove(&key(1), &node(), u64::from(t), Nonce([0; 16]));
            let moved = RequestProof { timestamp_ms: u64::from(other), ..proof };
            prop_assert!(!moved.verify(&parts, &key(1).public()));
        }
    }
}
