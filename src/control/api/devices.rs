//! What devices ask.
use super::answer::Failure;
use super::proof::{Caller, Enrolment, Signed};
use super::{App, now_ms};
use crate::registry::enrol::{Enrolled, enrol, needs_verdict};
use crate::registry::{RegistryError, keys};
use crate::signing::SigningKeys;
use crate::store::fleet::Wanted;
use crate::store::network::Access;
use crate::store::node::NodeState;
use crate::store::report::Received;
use axum::Json;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use spoke_config::control::MAX_WAIT_SECS;
use spoke_config::node::Role;
use spoke_enroll::request::WINDOW_MS;
use spoke_enroll::wire::{
    KeyAnswer, KeyRequest, NodeReport, Problem, ProblemCode, ProvisionAnswer, ProvisionRequest, ProvisionStatus,
    RegisterAnswer, RegisterRequest,
};
use spoke_grants::policy::{Reason, VERIFICATION_ERROR};
use spoke_sys::random::seed;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Enrols a device.
#[utoipa::path(post, path = "/api/v1/wireguard/provision", request_body = ProvisionRequest, responses(
    (status = 200, body = ProvisionAnswer, description = "the device is a node, or already was"),
    (status = 202, body = ProvisionAnswer, description = "an operator has to approve first"),
    (status = 401, body = Problem, description = "the token or the proof is not valid, or the clock is off"),
    (status = 409, body = Problem, description = "the name or a key belongs to another device"),
    (status = 422, body = Problem), (status = 429, body = Problem),
    (status = 503, body = Problem, description = "no address is free, or the store is away")))]
pub async fn provision(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    asked: Enrolment,
) -> Result<Response, Failure> {
    app.limits.enrol(peer.ip(), now_ms())?;
    let verdict = match &app.chain {
        Some(chain) if needs_verdict(&app.store, &asked.request, &asked.token, now_ms()).await? => {
            chain.verdict(&(asked.request.node_id.clone(), asked.request.wireguard_public_key)).await
        }
        Some(_) | None => None,
    };
    let enrolled = enrol(&app.store, &asked.request, &asked.token, verdict.as_ref(), now_ms()).await;
    let enrolled = enrolled.inspect_err(|e| {
        if matches!(e, RegistryError::BadToken) {
            app.limits.guessed(peer.ip(), now_ms());
        }
        tracing::info!(node = %asked.request.node_id, address = %peer.ip(), error = %e, "enrolment refused");
    })?;
    Ok(match enrolled {
        Enrolled::Active(config) => Json(ProvisionAnswer {
            status: ProvisionStatus::Success,
            message: format!("{} is a node of the fleet", config.node_id),
            config: Some(*config),
        })
        .into_response(),
        Enrolled::Pending => {
            let message = "an operator has to approve this node: ask again later".to_owned();
            let answer = ProvisionAnswer { status: ProvisionStatus::Pending, config: None, message };
            (StatusCode::ACCEPTED, Json(answer)).into_response()
        }
    })
}

/// Takes note of a node that has connected.
#[utoipa::path(post, path = "/api/v1/nodes/register", request_body = RegisterRequest, responses(
    (status = 200, body = RegisterAnswer), (status = 401, body = Problem), (status = 403, body = Problem),
    (status = 422, body = Problem)))]
pub async fn register(
    State(app): State<Arc<App>>,
    asked: Signed<RegisterRequest>,
) -> Result<Json<RegisterAnswer>, Failure> {
    asked.body.check().map_err(|e| Failure::new(ProblemCode::BadRequest, e))?;
    let now = now_ms();
    let mut tx = app.store.write().await?;
    once(&mut tx, &asked.caller, now).await?;
    let node = asked.caller.node;
    let known = tx.node(&node).await?.filter(|n| n.state == NodeState::Active);
    let known = known.ok_or_else(|| Failure::new(ProblemCode::Revoked, "the node was removed"))?;
    let network = tx.network(&known.network).await?;
    if network.is_some_and(|n| n.access == Access::Nft) && known.role == Role::Node {
        let verdict = tx.verdict(&node, asked.body.wireguard_public_key).await?;
        let code = verdict.map_or(VERIFICATION_ERROR, |v| v.reason.code());
        if code != Reason::AccessGranted.code() {
            return Err(Failure::new(
                ProblemCode::NotGranted,
                format!("the contract does not admit this node: {code}"),
            ));
        }
    }
    let generation = known.generation;
    tx.put_registration(&node, &asked.body, now).await?;
    tx.commit().await?;
    Ok(Json(RegisterAnswer { node_id: node, generation }))
}

/// Remembers the proof of a request that changes something where every control plane sees it.
async fn once(tx: &mut crate::store::Tx, caller: &Caller, now_ms: i64) -> Result<(), Failure> {
    let until = now_ms.saturating_add(i64::try_from(2 * WINDOW_MS).unwrap_or(i64::MAX));
    match tx.use_nonce(&caller.node, &caller.proof.nonce.to_hex(), until).await? {
        true => Ok(()),
        false => Err(Failure::new(ProblemCode::Replay, "this request was here before")),
    }
}

/// What a long-poll asks.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub struct StateQuery {
    /// The generation the node has; 0: none.
    #[serde(default)]
    pub after: u64,
    /// Seconds to wait for a newer one, at most 900.
    #[serde(default)]
    pub wait: u64,
}

/// The node's signed state document, as soon as it is newer than `after`.
#[utoipa::path(get, path = "/api/v1/nodes/self/state", params(StateQuery), responses(
    (status = 200, description = "the signed document", body = Object),
    (status = 204, description = "nothing newer within the time"),
    (status = 401, body = Problem), (status = 403, body = Problem)))]
pub async fn state(
    State(app): State<Arc<App>>,
    Query(query): Query<StateQuery>,
    caller: Caller,
) -> Result<Response, Failure> {
    let node = caller.node;
    // Subscribed before the first look: no change can fall in between.
    let mut waiter = app.store.waiter(&node);
    let mut stopping = app.stopping.clone();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(query.wait.min(MAX_WAIT_SECS));
    let mut looked = false;
    if app.store.is_called(&node) {
        app.store.is_back(&node).await?;
    }
    loop {
        let again = match look(&app, &node, query.after).await {
            Ok(Some(answer)) => return Ok(answer),
            // Somebody wants to know whether it comes back.
            Ok(None) if looked && app.store.is_called(&node) => return Ok(StatusCode::NO_CONTENT.into_response()),
            Ok(None) => None,
            // A database that restarts wakes everybody: who waits already goes on waiting instead of coming back with all
            // the others.
            Err(e) if looked && e.code() == ProblemCode::Unavailable => {
                Some(Duration::from_millis(1000 + seed() % 4000))
            }
            Err(e) => return Err(e),
        };
        looked = true;
        tokio::select! {
            () = waiter.changed(), if again.is_none() => {}
            () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
            () = tokio::time::sleep_until(deadline) => return Ok(StatusCode::NO_CONTENT.into_response()),
            // Not an empty answer: whoever gets that asks again at once, and here are all of them.
            _ = stopping.wait_for(|s| *s) => {
                return Err(Failure::new(ProblemCode::Unavailable, "the control plane is stopping: come back later"));
            }
        }
    }
}

/// The answer if there is something newer than `after`.
async fn look(app: &App, node: &spoke_model::node_id::NodeId, after: u64) -> Result<Option<Response>, Failure> {
    let (wanted, keys) = {
        let _turn = app.builders.acquire().await;
        let mut tx = app.store.read().await?;
        let wanted = tx.wanted(node, after).await?;
        let mut keys = app.keys.borrow().clone();
        // The keys at hand follow the store within a second; a document of this very change must not be late.
        if let Wanted::Document(document) = &wanted
            && document.signing_keys != keys.public()
        {
            keys = SigningKeys::read(&mut tx, &app.master).await.map_err(|e| {
                tracing::error!(error = %e, "signing keys not read");
                Failure::new(ProblemCode::Unavailable, "the signing keys cannot be read")
            })?;
        }
        (wanted, keys)
    };
    let document = match wanted {
        Wanted::Document(document) => document,
        Wanted::Unchanged(_) => return Ok(None),
        Wanted::NotActive(NodeState::Pending) => {
            return Err(Failure::new(ProblemCode::Pending, "an operator has yet to approve"));
        }
        Wanted::NotActive(_) | Wanted::Unknown => {
            return Err(Failure::new(ProblemCode::Revoked, "the node was removed from the fleet"));
        }
    };
    let broken = |e: serde_json::Error| {
        tracing::error!(%node, error = %e, "document cannot be written");
        Failure::new(ProblemCode::Unavailable, "the document cannot be written")
    };
    let envelope = document.sign(keys.0.iter()).map_err(broken)?;
    let body = serde_json::to_vec(&envelope).map_err(broken)?;
    Ok(Some(([(header::CONTENT_TYPE, "application/json")], body).into_response()))
}

/// A node's report on itself.
#[utoipa::path(post, path = "/api/v1/nodes/self/report", request_body = NodeReport, responses(
    (status = 204), (status = 401, body = Problem), (status = 403, body = Problem), (status = 422, body = Problem)))]
pub async fn report(State(app): State<Arc<App>>, asked: Signed<NodeReport>) -> Result<StatusCode, Failure> {
    asked.body.check().map_err(|e| Failure::new(ProblemCode::BadRequest, e))?;
    let received = Received {
        node: asked.caller.node,
        sent_ms: i64::try_from(asked.caller.proof.timestamp_ms).unwrap_or(0),
        received_ms: now_ms(),
        report: asked.body,
    };
    app.reports.put(received)?;
    Ok(StatusCode::NO_CONTENT)
}

/// One step of a change of the node's WireGuard key.
#[utoipa::path(post, path = "/api/v1/nodes/self/key", request_body = KeyRequest, responses(
    (status = 200, body = KeyAnswer), (status = 401, body = Problem), (status = 403, body = Problem),
    (status = 409, body = Problem), (status = 422, body = Problem)))]
pub async fn key(State(app): State<Arc<App>>, asked: Signed<KeyRequest>) -> Result<Json<KeyAnswer>, Failure> {
    let now = now_ms();
    let mut tx = app.store.write().await?;
    once(&mut tx, &asked.caller, now).await?;
    tx.commit().await?;
    Ok(Json(keys::change(&app.store, &asked.caller.node, &asked.body, now).await?))
}
