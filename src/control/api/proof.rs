//! Who asks: takes a node's proof out of a request, or an operator's token, before a handler sees anything.
use super::answer::{Failure, Refused};
use super::{App, MAX_BODY, now_ms};
use crate::store::node::NodeState;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use spoke_config::node::Role;
use spoke_enroll::request::{RequestParts, RequestProof, TimeAnswer, WINDOW_MS};
use spoke_enroll::wire::ProblemCode;
use spoke_model::node_id::NodeId;
use spoke_model::signature::{VerifyKey, sha256_hex};
use spoke_model::time::Boot;
use spoke_sys::clock::{Clock as _, SystemClock};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Nonces remembered at most; more than honest nodes ever use within the window.
const MAX_NONCES: usize = 2_000_000;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

/// Keys of nodes remembered at most.
const MAX_MEMBERS: usize = 200_000;

#[derive(Clone, Copy, Debug)]
struct Member {
    key: VerifyKey,
    role: Role,
    epoch: u64,
}

/// What is remembered of proofs: nonces within the window, and the keys of nodes that asked lately.
#[derive(Debug)]
pub struct Proofs {
    /// When this process began. Nothing older is accepted: what an earlier one has seen is not remembered. A node whose
    /// clock is behind gets the server's time and asks again. It is counted back from now, not kept as a time of day: a
    /// server whose clock is set back would refuse the whole fleet until the clock is where it was.
    began: Boot,
    nonces: Mutex<Nonces>,
    members: Mutex<HashMap<NodeId, Member>>,
}

#[derive(Debug, Default)]
struct Nonces {
    young: HashSet<(NodeId, [u8; 16])>,
    old: HashSet<(NodeId, [u8; 16])>,
    turned_ms: u64,
}

impl Proofs {
    /// An empty memory of a process that begins now.
    pub fn begin() -> Self {
        Self { began: SystemClock.now(), nonces: Mutex::default(), members: Mutex::default() }
    }

    /// Whether a request of `timestamp_ms` may come at `now_ms`, where `up` is how long this process runs.
    fn in_time(timestamp_ms: u64, now_ms: u64, up: Duration) -> bool {
        let began_ms = now_ms.saturating_sub(u64::try_from(up.as_millis()).unwrap_or(u64::MAX));
        timestamp_ms.abs_diff(now_ms) <= WINDOW_MS && timestamp_ms >= began_ms
    }

    /// Remembers a nonce. `Ok(false)`: it was there. `Err`: too many.
    fn fresh(&self, proof: &RequestProof, now_ms: u64) -> Result<bool, Failure> {
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        // A request is accepted from a window before to a window after its time: two windows keep every one that counts. A
        // clock that was set back turns them as well, or they would only gather until it has caught up.
        if now_ms.abs_diff(nonces.turned_ms) > 2 * WINDOW_MS {
            nonces.old = std::mem::take(&mut nonces.young);
            nonces.turned_ms = now_ms;
        }
        let item = (proof.node.clone(), proof.nonce.0);
        if nonces.old.contains(&item) {
            return Ok(false);
        }
        if nonces.young.len() >= MAX_NONCES {
            return Err(Failure::new(ProblemCode::RateLimited, "too many requests"));
        }
        Ok(nonces.young.insert(item))
    }
}

/// The node a request comes from, proved.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub node: NodeId,
    /// Node or hub.
    pub role: Role,
    /// The proof, for those who remember it longer.
    pub proof: RequestProof,
}

/// A proved request with a JSON body.
#[derive(Debug)]
pub struct Signed<T> {
    /// Who asks.
    pub caller: Caller,
    /// What.
    pub body: T,
}

async fn whole(request: Request) -> Result<(Parts, Bytes), Failure> {
    let (parts, body) = request.into_parts();
    let cut =
        || Failure::new(ProblemCode::TooLarge, format!("the body has more than {MAX_BODY} bytes or came too slowly"));
    let read = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, MAX_BODY)).await;
    let bytes = read.map_err(|_| cut())?.map_err(|_| cut())?;
    Ok((parts, bytes))
}

/// Reads the proof of a request and checks it with `key_of` its node.
fn proof_of(headers: &HeaderMap) -> Result<RequestProof, Failure> {
    RequestProof::from_headers(|name| headers.get(name)?.to_str().ok())
        .ok_or_else(|| Failure::new(ProblemCode::BadProof, "the request is not signed: see the spoke-* headers"))
}

fn forged() -> Failure {
    Failure::new(ProblemCode::BadProof, "the signature is not of the node it names")
}

impl App {
    /// Checks signature, time and nonce, in this order: only the node itself learns the server's time.
    fn check_proof(&self, parts: &Parts, body: &[u8], proof: &RequestProof, key: &VerifyKey) -> Result<(), Failure> {
        let uri = parts.extensions.get::<axum::extract::OriginalUri>().map_or(&parts.uri, |o| &o.0);
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let asked = RequestParts { method: parts.method.as_str(), path, body };
        if !proof.verify(&asked, key) {
            return Err(forged());
        }
        let now = u64::try_from(now_ms()).unwrap_or(0);
        if !Proofs::in_time(proof.timestamp_ms, now, SystemClock.now().since(self.proofs.began)) {
            let keys = self.keys.borrow();
            return Err(Failure::skew(keys.oldest().map(|k| TimeAnswer::sign(k, now, proof.nonce))));
        }
        if !self.proofs.fresh(proof, now)? {
            return Err(Failure::new(ProblemCode::Replay, "this request was here before"));
        }
        Ok(())
    }

    /// The key of a member; from memory while nothing in the fleet has changed since.
    async fn member(&self, node: &NodeId) -> Result<Member, Failure> {
        let epoch = self.store.epoch();
        let known = self.proofs.members.lock().unwrap_or_else(PoisonError::into_inner).get(node).copied();
        if let Some(member) = known.filter(|m| m.epoch == epoch) {
            return Ok(member);
        }
        let found = self.store.read().await?.node(node).await?;
        let Some(found) = found else { return Err(forged()) };
        let (Some(key), state) = (found.identity_key, found.state) else { return Err(forged()) };
        match state {
            NodeState::Active => {}
            NodeState::Pending => return Err(Failure::new(ProblemCode::Pending, "an operator has yet to approve")),
            NodeState::Removed | NodeState::Expected => {
                return Err(Failure::new(ProblemCode::Revoked, "the node was removed from the fleet"));
            }
        }
        let member = Member { key, role: found.role, epoch };
        let mut members = self.proofs.members.lock().unwrap_or_else(PoisonError::into_inner);
        if members.len() >= MAX_MEMBERS {
            members.clear();
        }
        members.insert(node.clone(), member);
        Ok(member)
    }

    async fn caller(&self, parts: &Parts, body: &[u8]) -> Result<Caller, Failure> {
        let proof = proof_of(&parts.headers)?;
        let member = self.member(&proof.node).await?;
        self.check_proof(parts, body, &proof, &member.key)?;
        self.limits.node(&proof.node)?;
        Ok(Caller { node: proof.node.clone(), role: member.role, proof })
    }

    /// Whether the bearer of this header is an operator. An address that has guessed too often is not looked at.
    fn is_operator(&self, parts: &Parts) -> Result<bool, Failure> {
        let Some(token) = bearer(&parts.headers) else { return Ok(false) };
        let address = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|c| c.0.ip());
        if let Some(address) = address {
            self.limits.may_guess(address, now_ms())?;
        }
        let right = self.operator_token.as_ref().is_some_and(|t| {
            // Of equal length whatever was sent, and compared without a short cut.
            let (a, b) = (sha256_hex(token.as_bytes()), sha256_hex(t.reveal().as_bytes()));
            #[expect(deprecated, reason = "the only constant-time comparison of slices in ring")]
            ring::constant_time::verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok()
        });
        if let (false, Some(address)) = (right, address) {
            self.limits.guessed(address, now_ms());
        }
        Ok(right)
    }
}

/// What follows `Authorization: Bearer`.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|e| Failure::new(ProblemCode::BadRequest, e))
}

impl FromRequest<Arc<App>> for Caller {
    type Rejection = Failure;
    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Failure> {
        let (parts, bytes) = whole(request).await?;
        app.caller(&parts, &bytes).await
    }
}

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Signed<T> {
    type Rejection = Failure;
    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Failure> {
        let (parts, bytes) = whole(request).await?;
        let caller = app.caller(&parts, &bytes).await?;
        Ok(Self { caller, body: parse(&bytes)? })
    }
}

/// A request for enrolment: signed by the key it brings, with the token it has.
#[derive(Debug)]
pub struct Enrolment {
    /// What it asks.
    pub request: spoke_enroll::wire::ProvisionRequest,
    /// What it was given.
    pub token: String,
}

impl FromRequest<Arc<App>> for Enrolment {
    type Rejection = Failure;
    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Failure> {
        let (parts, bytes) = whole(request).await?;
        let token = bearer(&parts.headers)
            .ok_or_else(|| {
                Failure::new(ProblemCode::BadToken, "an enrolment token is missing: Authorization: Bearer …")
            })?
            .to_owned();
        let request: spoke_enroll::wire::ProvisionRequest = parse(&bytes)?;
        let proof = proof_of(&parts.headers)?;
        if proof.node != request.node_id {
            return Err(forged());
        }
        app.check_proof(&parts, &bytes, &proof, &request.identity_public_key)?;
        Ok(Self { request, token })
    }
}

/// An operator, by the token.
#[derive(Clone, Copy, Debug)]
pub struct Operator;

impl FromRequestParts<Arc<App>> for Operator {
    type Rejection = Refused;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refused> {
        if app.is_operator(parts)? {
            return Ok(Self);
        }
        let said = match app.operator_token {
            Some(_) => "an operator's token is missing or wrong: Authorization: Bearer …",
            None => "no operator token is configured: set api.operator_token, or use the command line",
        };
        Err(Refused(StatusCode::UNAUTHORIZED, said.to_owned()))
    }
}

/// Whoever may see the peers of the fleet: an operator, or a hub for itself.
#[derive(Clone, Copy, Debug)]
pub struct PeerReader;

impl FromRequest<Arc<App>> for PeerReader {
    type Rejection = Failure;
    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Failure> {
        let (parts, bytes) = whole(request).await?;
        if app.is_operator(&parts)? {
            return Ok(Self);
        }
        match app.caller(&parts, &bytes).await?.role {
            Role::Hub => Ok(Self),
            Role::Node => Err(Failure::new(ProblemCode::BadProof, "only hubs and operators may see the peers")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    #[test]
    fn what_an_earlier_process_may_have_seen_is_refused() {
        let up = Duration::from_secs(10);
        assert!(Proofs::in_time(NOW, NOW, up));
        assert!(Proofs::in_time(NOW - 10_000, NOW, up));
        assert!(!Proofs::in_time(NOW - 10_001, NOW, up), "sent before this process began");
        let long = Duration::from_secs(86_400);
        assert!(Proofs::in_time(NOW - WINDOW_MS, NOW, long) && Proofs::in_time(NOW + WINDOW_MS, NOW, long));
        assert!(!Proofs::in_time(NOW - WINDOW_MS - 1, NOW, long) && !Proofs::in_time(NOW + WINDOW_MS + 1, NOW, long));
    }

    #[test]
    fn a_server_whose_clock_is_set_back_still_accepts_its_own_time() {
        let (hour, up) = (3_600_000, Duration::from_millis(50));
        assert!(Proofs::in_time(NOW - hour, NOW - hour, up));
        assert!(!Proofs::in_time(NOW, NOW - hour, up), "the time before it was set back is not its own");

        let proofs = Proofs::begin();
        let key = spoke_model::signature::SignKey::from_seed(&[7; 32]).unwrap();
        let node: NodeId = "edge-1".parse().unwrap();
        let asked = RequestParts { method: "GET", path: "/", body: b"" };
        let at = |ms, n| asked.prove(&key, &node, ms, spoke_enroll::request::Nonce([n; 16]));
        let fresh = |ms, n| proofs.fresh(&at(ms, n), ms).unwrap();
        assert!(fresh(NOW, 1) && !fresh(NOW, 1));
        assert!(fresh(NOW - hour, 2) && !fresh(NOW - hour, 2) && !fresh(NOW - hour, 1), "the last ones stay known");
        for n in 3..6 {
            assert!(fresh(NOW - hour + 3 * WINDOW_MS * u64::from(n), n));
        }
        let young = proofs.nonces.lock().unwrap().young.len();
        assert_eq!(young, 1, "they do not gather until the clock has caught up");
    }
}
