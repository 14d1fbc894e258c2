//! Requests to the control plane, signed with the node's identity key, and the errors it answers with.
use spoke_enroll::request::{KEY_PROOF, Nonce, RequestParts, SIGNATURE};
use spoke_enroll::status::OutageCause;
use spoke_enroll::wire::Problem;
use spoke_model::key::{PublicKey, SecretKey};
use spoke_model::key_proof::KeyProof;
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

/// Adds a proof that this device holds `key`, for the holder of `verifier`, to a signed request.
pub(crate) fn prove_key(request: &mut Request, key: &SecretKey, verifier: PublicKey) {
    let signature = request.headers.iter().find(|(name, _)| *name == SIGNATURE).map(|(_, value)| value.as_bytes());
    let proof = signature.and_then(|signature| KeyProof::new(key, verifier, signature));
    request.headers.extend(proof.map(|p| (KEY_PROOF, p.to_string())));
}

/// The key that the control plane wants a proof for, where it has refused a request for the lack of one.
pub(crate) fn key_verifier(answer: &Answer) -> Option<PublicKey> {
    problem(answer)?.detail.key_verifier
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

/// The kind of the control plane's error in `answer`.
pub(crate) fn refusal_cause(answer: &Answer) -> OutageCause {
    problem(answer).map_or_else(OutageCause::default, |p| OutageCause::of(p.detail.code))
}

/// The message of the control plane's error, or the status.
pub(crate) fn error_message(answer: &Answer) -> String {
    problem(answer).map_or_else(|| format!("status {}", answer.status), |p| p.detail.message)
}
