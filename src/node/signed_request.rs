//! Requests to the control plane, signed with the node's identity key, and the errors it answers with.
use spoke_enroll::request::{Nonce, RequestParts};
use spoke_enroll::wire::Problem;
use spoke_model::node_id::NodeId;
use spoke_model::signature::SignKey;
use spoke_sys::http::{Answer, Request};
use std::time::Duration;

/// Time limit of a request; a long-poll has its hold time on top.
pub(crate) const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest ordinary answer, in bytes.
pub(crate) const MAX_ANSWER: usize = 256 << 10;

/// Signs requests of one node.
pub struct Signer {
    /// The identity key.
    pub key: SignKey,
    /// The node id.
    pub node: NodeId,
    /// Random bytes for nonces.
    pub random: fn() -> u64,
}

impl Signer {
    /// Signs `request` for the server's time `at_ms` (since 1970).
    pub(crate) fn sign(&self, at_ms: u64, mut request: Request) -> (Request, Nonce) {
        let (a, b) = ((self.random)().to_le_bytes(), (self.random)().to_le_bytes());
        let nonce = Nonce(std::array::from_fn(|i| if i < 8 { a[i] } else { b[i - 8] }));
        let parts = RequestParts { method: request.method, path: &request.path, body: &request.body };
        let proof = parts.prove(&self.key, &self.node, at_ms, nonce);
        request.headers.extend(proof.headers());
        (request, nonce)
    }
}

/// An ordinary `POST`, unsigned.
pub(crate) fn post(path: &str, body: Vec<u8>) -> Request {
    let headers = Vec::new();
    Request { method: "POST", path: path.to_owned(), headers, body, max: MAX_ANSWER, timeout: REPLY_TIMEOUT }
}

/// The control plane's error in `answer`.
pub(crate) fn problem(answer: &Answer) -> Option<Problem> {
    serde_json::from_slice(&answer.body).ok()
}

/// The message of the control plane's error, or the status.
pub(crate) fn error_message(answer: &Answer) -> String {
    problem(answer).map_or_else(|| format!("status {}", answer.status), |p| p.detail.message)
}
