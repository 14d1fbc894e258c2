//! Authentication: verifies a node's proof, an enrolment's proof or an operator's token before a handler runs.
use super::error_code::ErrorCode;
use super::extract::MAX_BODY;
use super::response::{ApiError, OperatorError};
use super::state::{ApiState, Member};
use crate::clock::now_ms;
use crate::connections::Connection;
use crate::nonce_queue::NonceRecord;
use crate::signing::MasterKey;
use crate::store::audit::Actor;
use crate::store::node::NodeState;
use crate::store::nonce::UsedNonce;
use crate::store::operator_key::OperatorRole;
use crate::store::token::constant_time_equal;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, OriginalUri, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use serde::de::DeserializeOwned;
use spoke_config::node::Role;
use spoke_enroll::request::{KEY_PROOF, RemovalAnswer, RequestParts, RequestProof, TimeAnswer, WINDOW_MS};
use spoke_enroll::wire::{ProblemCode, ProvisionRequest};
use spoke_model::error_chain::ErrorChain;
use spoke_model::key::PublicKey;
use spoke_model::key_proof::KeyProof;
use spoke_model::node_id::NodeId;
use spoke_model::secret::Secret;
use spoke_model::signature::{VerifyKey, sha256_hex};
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

/// Nodes cached at most.
const MAX_MEMBERS: usize = 200_000;

/// The node that signed a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its id.
    pub node: NodeId,
    /// Node or hub.
    pub role: Role,
    /// Its network.
    pub network: Arc<str>,
    /// Whether its hubs have it as a peer.
    pub enabled: bool,
    /// The verified proof.
    pub proof: RequestProof,
    /// The proof of the WireGuard key in the request, not checked yet.
    pub key_proof: Claim,
    /// Whether its nonce is recorded for all control planes; otherwise only this one refuses a replay.
    recorded: bool,
}

impl Caller {
    /// Refuses a request that changes something while its nonce cannot be recorded.
    pub fn require_recorded(&self) -> Result<(), ApiError> {
        if self.recorded { Ok(()) } else { Err(ApiError::internal()) }
    }
}

/// A signed request with a JSON body.
#[derive(Debug)]
pub struct Signed<T> {
    /// The node that signed it.
    pub caller: Caller,
    /// Its body.
    pub body: T,
}

/// A request for enrolment, signed by the identity key it brings.
pub struct EnrolmentRequest {
    /// Its body.
    pub request: ProvisionRequest,
    /// The enrolment token, not checked yet.
    pub token: String,
    /// The proof of its WireGuard key, not checked yet.
    pub key_proof: Claim,
}

impl std::fmt::Debug for EnrolmentRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolmentRequest").field("request", &self.request).finish_non_exhaustive()
    }
}

/// A claim to hold a WireGuard key: the proof, and the text it is made over.
#[derive(Clone, Debug)]
pub struct Claim {
    proof: Option<KeyProof>,
    message: String,
}

impl Claim {
    fn of(headers: &HeaderMap, signed: &RequestProof) -> Self {
        let proof = headers.get(KEY_PROOF).and_then(|h| h.to_str().ok()?.parse().ok());
        Self { proof, message: signed.signature.to_string() }
    }

    /// Whether it proves the possession of `key` to the holder of `master`.
    pub fn check(&self, key: PublicKey, master: &MasterKey) -> Result<(), ApiError> {
        let verifier = master.verifier();
        let holds = self.proof.is_some_and(|p| p.verify(verifier, key, self.message.as_bytes()));
        if holds { Ok(()) } else { Err(ApiError::key_not_proved(verifier.public())) }
    }
}

/// How operators authenticate at the listener of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatorAuth {
    /// Not at all: it serves devices.
    None,
    /// With `api.operator_token` only: it serves devices too, as in releases before the keys.
    TokenOnly,
    /// With a key, or with `api.operator_token`.
    TokenAndKeys,
}

/// An operator whose key is valid and whose role suffices for the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// Its name in the audit trail; `api`: the holder of `api.operator_token`.
    pub name: String,
    /// What it may do.
    pub role: OperatorRole,
}

impl Operator {
    /// For the audit trail.
    pub fn actor(&self) -> Actor {
        Actor::Operator(self.name.clone())
    }

    /// Refuses a request that needs another role.
    fn require(self, parts: &Parts) -> Result<Self, OperatorError> {
        let path = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |o| &o.0).path();
        let needed = required_role(&parts.method, path);
        if self.role >= needed {
            return Ok(self);
        }
        let (name, role, needed) = (&self.name, self.role.as_str(), needed.as_str());
        let message = format!("the key of {name} has the role {role}; this call needs {needed}");
        Err(OperatorError::new(ErrorCode::Role, message))
    }
}

/// The least role for a request.
pub fn required_role(method: &Method, path: &str) -> OperatorRole {
    if path == "/api/keys" || path.starts_with("/api/keys/") {
        OperatorRole::Admin
    } else if method.is_safe() {
        OperatorRole::Viewer
    } else {
        OperatorRole::Operator
    }
}

/// Who may read the peers.
#[derive(Clone, Debug)]
pub enum PeerReader {
    /// An operator: of every network.
    Operator,
    /// A hub: of its own network.
    Hub(Arc<str>),
}

impl PeerReader {
    /// The only network it may read; `None`: all.
    pub fn network(&self) -> Option<&str> {
        match self {
            Self::Operator => None,
            Self::Hub(network) => Some(network),
        }
    }

    /// Whether it may read `network`.
    pub fn may_read(&self, network: &str) -> bool {
        self.network().is_none_or(|own| own == network)
    }
}

async fn read_body(request: Request) -> Result<(Parts, Bytes), ApiError> {
    let (parts, body) = request.into_parts();
    let cut =
        || ApiError::new(ProblemCode::TooLarge, format!("the body has more than {MAX_BODY} bytes or came too slowly"));
    let read = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, MAX_BODY)).await;
    let bytes = read.map_err(|_| cut())?.map_err(|_| cut())?;
    Ok((parts, bytes))
}

fn proof_of(headers: &HeaderMap) -> Result<RequestProof, ApiError> {
    RequestProof::from_headers(|name| headers.get(name)?.to_str().ok())
        .ok_or_else(|| ApiError::new(ProblemCode::BadProof, "the request is not signed: see the spoke-* headers"))
}

fn bad_proof() -> ApiError {
    ApiError::new(ProblemCode::BadProof, "the signature is not of the node it names")
}

/// Whether `key` signed the request.
fn is_signed(parts: &Parts, body: &[u8], proof: &RequestProof, key: &VerifyKey) -> bool {
    let uri = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |o| &o.0);
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    proof.verify(&RequestParts { method: parts.method.as_str(), path, body }, key)
}

/// Under what a removed device is counted, apart from the present holder of its name: the digest of its key.
fn removed_holder(key: &VerifyKey) -> Result<NodeId, ApiError> {
    sha256_hex(&key.0).parse().map_err(|_| bad_proof())
}

impl ApiState {
    /// The server's time. The signature comes first: only the node itself learns that time.
    fn check_time(&self, proof: &RequestProof) -> Result<u64, ApiError> {
        let now = u64::try_from(now_ms()).unwrap_or(0);
        if !self.handlers.replays.accepts_time(proof.timestamp_ms, now) {
            let keys = self.keys.borrow();
            return Err(ApiError::clock_skew(keys.oldest().map(|k| TimeAnswer::sign(k, now, proof.nonce))));
        }
        Ok(now)
    }

    /// A node with an identity key, an active one from the cache while the store's epoch stays; `None`: there is none.
    async fn member(&self, node: &NodeId) -> Result<Option<Member>, ApiError> {
        let epoch = self.store.epoch();
        let cached = self.handlers.members.lock().unwrap_or_else(PoisonError::into_inner).get(node).cloned();
        if let Some(member) = cached.filter(|m| m.epoch == epoch) {
            return Ok(Some(member));
        }
        let Some(found) = self.store.read().await?.node(node).await? else { return Ok(None) };
        let Some(key) = found.identity_key else { return Ok(None) };
        let (state, role, enabled) = (found.state, found.role, found.enabled);
        let member = Member { key, state, role, network: found.network.into(), enabled, epoch };
        if member.state != NodeState::Active {
            return Ok(Some(member));
        }
        let mut members = self.handlers.members.lock().unwrap_or_else(PoisonError::into_inner);
        if members.len() >= MAX_MEMBERS {
            members.clear();
        }
        members.insert(node.clone(), member.clone());
        Ok(Some(member))
    }

    /// The node that signed a request. Nothing is kept for a request that it did not sign, and nothing about it is
    /// disclosed: its state is judged last.
    async fn caller(&self, request: Request) -> Result<(Caller, Bytes), ApiError> {
        let proof = proof_of(request.headers())?;
        let member = self.member(&proof.node).await?;
        if member.is_none() && self.store.read().await?.removed_identities(&proof.node).await?.is_empty() {
            return Err(bad_proof());
        }
        let (parts, body) = read_body(request).await?;
        let Some(member) = member.filter(|m| is_signed(&parts, &body, &proof, &m.key)) else {
            return Err(self.removed_device(&parts, &body, proof).await);
        };
        let now = self.check_time(&proof)?;
        self.limits.check_node(&proof.node)?;
        if !self.handlers.replays.remember(&proof, now)? {
            return Err(ApiError::replay());
        }
        // For as long as its time is within the window of any control plane.
        let until_ms = i64::try_from(now.saturating_add(2 * WINDOW_MS)).unwrap_or(i64::MAX);
        let used = UsedNonce { node: proof.node.clone(), nonce: proof.nonce.to_hex(), until_ms };
        let recorded = match self.nonces.record(used).await {
            NonceRecord::New => true,
            NonceRecord::Used => return Err(ApiError::replay()),
            // Reads and reports are served while the store takes no writes.
            NonceRecord::Unknown => false,
        };
        prove(&parts);
        match member.state {
            NodeState::Active => {}
            NodeState::Pending => return Err(ApiError::pending()),
            NodeState::Removed => {
                let keys = self.keys.borrow();
                let removal = keys.oldest().map(|k| RemovalAnswer::sign(k, &proof.node, proof.nonce));
                return Err(ApiError::removal(removal));
            }
            NodeState::Expected => return Err(ApiError::removed()),
        }
        let key_proof = Claim::of(&parts.headers, &proof);
        let Member { role, network, enabled, .. } = member;
        let caller = Caller { node: proof.node.clone(), role, network, enabled, proof, key_proof, recorded };
        Ok((caller, body))
    }

    /// The answer to a device that signed with no key of the node it names: its removal, if the key is of a device that was
    /// removed under that name, and else the same as to every unknown caller.
    async fn removed_device(&self, parts: &Parts, body: &[u8], mut proof: RequestProof) -> ApiError {
        let name = proof.node.clone();
        let answer = async {
            let mut tx = self.store.read().await?;
            let keys = tx.removed_identities(&name).await?;
            let own = keys.into_iter().find(|key| is_signed(parts, body, &proof, key)).ok_or_else(bad_proof)?;
            let now = self.check_time(&proof)?;
            proof.node = removed_holder(&own)?;
            self.limits.check_node(&proof.node)?;
            if !self.handlers.replays.remember(&proof, now)? {
                return Err(ApiError::replay());
            }
            // A signed removal makes a device erase its state. The text signed has no key in it, so it is not given to one
            // device while another one is enrolled under the name.
            let is_held = tx.node(&name).await?.is_some_and(|n| n.identity_key.is_some_and(|k| k != own));
            let keys = self.keys.borrow();
            let key = keys.oldest().filter(|_| !is_held);
            Ok::<_, ApiError>(ApiError::removal(key.map(|k| RemovalAnswer::sign(k, &name, proof.nonce))))
        };
        answer.await.unwrap_or_else(|e| e)
    }

    /// The operator whose token or key the request brings. Wrong ones never stop a right one: of those beyond the limit of
    /// their address only the answer differs.
    async fn operator(&self, parts: &Parts) -> Result<Option<Operator>, ApiError> {
        let auth = parts.extensions.get::<OperatorAuth>().copied().unwrap_or(OperatorAuth::None);
        let Some(token) = bearer(&parts.headers).filter(|_| auth != OperatorAuth::None) else { return Ok(None) };
        let address = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|c| c.0.ip());
        let digest = sha256_hex(token.as_bytes());
        let is_configured =
            |t: &Secret<String>| constant_time_equal(digest.as_bytes(), sha256_hex(t.reveal().as_bytes()).as_bytes());
        let found = match self.operator_token.as_ref().is_some_and(is_configured) {
            true => Some(Operator { name: "api".to_owned(), role: OperatorRole::Admin }),
            false if auth == OperatorAuth::TokenAndKeys => self.holder(token).await?,
            false => None,
        };
        if let (None, Some(address)) = (&found, address) {
            self.limits.count_invalid_token(address, now_ms())?;
        }
        if found.is_some() {
            prove(parts);
        }
        Ok(found)
    }

    /// The holder of an operator's key.
    async fn holder(&self, key: &str) -> Result<Option<Operator>, ApiError> {
        let now = now_ms();
        let Some(key) = self.store.read().await?.valid_operator_key(key, now).await? else { return Ok(None) };
        if key.is_use_due(now) {
            // Reads are answered while the store takes no writes.
            let stored = async {
                let mut tx = self.store.write().await?;
                tx.use_operator_key(&key.id, now).await?;
                tx.commit().await
            };
            if let Err(e) = stored.await {
                tracing::debug!(key = key.id, error = %ErrorChain(&e), "use of an operator's key not stored");
            }
        }
        Ok(Some(Operator { name: key.name, role: key.role }))
    }
}

/// Marks the connection of a request as one that is not closed to make room for unauthenticated clients.
fn prove(parts: &Parts) {
    if let Some(place) = parts.extensions.get::<Arc<Connection>>() {
        place.prove();
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|e| ApiError::new(ProblemCode::BadRequest, e))
}

impl FromRequest<Arc<ApiState>> for Caller {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &Arc<ApiState>) -> Result<Self, ApiError> {
        Ok(state.caller(request).await?.0)
    }
}

impl<T: DeserializeOwned> FromRequest<Arc<ApiState>> for Signed<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &Arc<ApiState>) -> Result<Self, ApiError> {
        let (caller, bytes) = state.caller(request).await?;
        Ok(Self { caller, body: parse(&bytes)? })
    }
}

impl FromRequest<Arc<ApiState>> for EnrolmentRequest {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &Arc<ApiState>) -> Result<Self, ApiError> {
        let missing = "an enrolment token is missing: Authorization: Bearer …";
        let token = bearer(request.headers()).ok_or_else(|| ApiError::new(ProblemCode::BadToken, missing))?.to_owned();
        let proof = proof_of(request.headers())?;
        let (parts, bytes) = read_body(request).await?;
        let request: ProvisionRequest = parse(&bytes)?;
        if proof.node != request.node_id {
            return Err(bad_proof());
        }
        // No nonce is kept before the token is proved: a repeated enrolment gets the same answer, and to repeat it takes its token.
        if !is_signed(&parts, &bytes, &proof, &request.identity_public_key) {
            return Err(bad_proof());
        }
        state.check_time(&proof)?;
        let key_proof = Claim::of(&parts.headers, &proof);
        Ok(Self { request, token, key_proof })
    }
}

impl FromRequestParts<Arc<ApiState>> for Operator {
    type Rejection = OperatorError;
    async fn from_request_parts(parts: &mut Parts, state: &Arc<ApiState>) -> Result<Self, OperatorError> {
        // Verified before its idempotency key was looked at.
        if let Some(operator) = parts.extensions.get::<Self>() {
            return Ok(operator.clone());
        }
        if let Some(operator) = state.operator(parts).await? {
            return operator.require(parts);
        }
        let message =
            "the operator's key is missing or wrong: Authorization: Bearer …; make one with `spoke-control key create`";
        Err(OperatorError::new(ErrorCode::NoKey, message))
    }
}

impl FromRequest<Arc<ApiState>> for PeerReader {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &Arc<ApiState>) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        // Every role may read.
        if state.operator(&parts).await?.is_some() {
            return Ok(Self::Operator);
        }
        let (caller, _) = state.caller(Request::from_parts(parts, body)).await?;
        match caller.role {
            Role::Hub => Ok(Self::Hub(caller.network)),
            Role::Node => Err(ApiError::new(ProblemCode::BadProof, "only hubs and operators may read the peers")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_need_an_admin_and_changes_an_operator() {
        use OperatorRole::{Admin, Operator, Viewer};
        for (method, path, role) in [
            (Method::GET, "/api/nodes", Viewer),
            (Method::HEAD, "/api/keysmith", Viewer),
            (Method::POST, "/api/nodes", Operator),
            (Method::DELETE, "/api/v1/wireguard/peers/edge-1", Operator),
            (Method::GET, "/api/keys", Admin),
            (Method::DELETE, "/api/keys/0", Admin),
        ] {
            assert_eq!(required_role(&method, path), role, "{method} {path}");
        }
        assert!(Viewer < Operator && Operator < Admin);
    }
}
