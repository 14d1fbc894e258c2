//! The API for devices.
use super::auth::{Caller, EnrolmentRequest, Signed};
use super::response::ApiError;
use super::state::ApiState;
use crate::clock::now_ms;
use crate::connections::Connection;
use crate::registry::enrol::{Enrolled, EnrollingDevice, bad_token, enrol, requirements};
use crate::registry::{RegistryError, key_rotation};
use crate::signing::SigningKeys;
use crate::store::document::DocumentLookup;
use crate::store::network::Access;
use crate::store::node::NodeState;
use crate::store::report::ReceivedReport;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use spoke_config::control::MAX_WAIT_SECS;
use spoke_config::node::Role;
use spoke_enroll::wire::{
    KeyAnswer, KeyRequest, KeyStep, NodeReport, Problem, ProblemCode, ProvisionAnswer, ProvisionRequest,
    ProvisionStatus, RegisterAnswer, RegisterRequest, ReportAnswer, ReportOrder,
};
use spoke_grants::policy::VERIFICATION_ERROR;
use spoke_model::error_chain::ErrorChain;
use spoke_model::node_id::NodeId;
use spoke_sys::random::seed;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What a device can do, beside what it asks for. Other parameters are ignored, so that a later device may send more.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::IntoParams)]
pub struct AbilityQuery {
    /// 1: it takes preshared keys from its state documents.
    preshared: Option<u8>,
}

impl AbilityQuery {
    fn takes_preshared(self) -> bool {
        self.preshared == Some(1)
    }
}

/// Enrols a device.
#[utoipa::path(post, path = "/api/v1/wireguard/provision", params(AbilityQuery), request_body = ProvisionRequest, responses(
    (status = 200, body = ProvisionAnswer, description = "the device is a node, or already was"),
    (status = 202, body = ProvisionAnswer, description = "an operator must approve first"),
    (status = 401, body = Problem, description = "the token or the proof is not valid, or the clock is wrong"),
    (status = 409, body = Problem, description = "the node id or a key belongs to another device"),
    (status = 422, body = Problem), (status = 429, body = Problem),
    (status = 503, body = Problem, description = "no address is free, or the database is unavailable")))]
pub async fn provision(
    State(state): State<Arc<ApiState>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Extension(place): Extension<Arc<Connection>>,
    Query(ability): Query<AbilityQuery>,
    EnrolmentRequest { request, token, key_proof }: EnrolmentRequest,
) -> Result<Response, ApiError> {
    request.check().map_err(RegistryError::from)?;
    let needed = requirements(&state.store, &request, &token, now_ms()).await?;
    if let Some(token) = &needed.token {
        state.limits.check_enrolment(token)?;
    }
    if needed.key_proof {
        key_proof.check(request.wireguard_public_key, &state.master)?;
    }
    let admission = match &state.grants {
        Some(grants) if needed.admission => {
            grants.admission(&(request.node_id.clone(), request.wireguard_public_key)).await
        }
        Some(_) | None => None,
    };
    let device = EnrollingDevice { request: &request, takes_preshared: ability.takes_preshared() };
    let enrolled = enrol(&state.store, device, &token, admission.as_ref(), now_ms()).await;
    let enrolled = match enrolled {
        Ok(enrolled) => enrolled,
        Err(e) => {
            let reason = match &e {
                // The device learns only that the token is not valid.
                RegistryError::BadToken => bad_token(&state.store, &request.node_id, &token, now_ms()).await?,
                other => other.to_string(),
            };
            tracing::info!(node = %request.node_id, address = %peer.ip(), error = reason, "enrolment refused");
            if matches!(e, RegistryError::BadToken) {
                state.limits.count_invalid_token(peer.ip(), now_ms())?;
            }
            return Err(e.into());
        }
    };
    place.prove();
    Ok(match enrolled {
        Enrolled::Active(config) => Json(ProvisionAnswer {
            status: ProvisionStatus::Success,
            message: format!("{} is a node of the fleet", config.node_id),
            config: Some(*config),
        })
        .into_response(),
        Enrolled::Pending => {
            let message = "an operator must approve this node: ask again later".to_owned();
            let answer = ProvisionAnswer { status: ProvisionStatus::Pending, config: None, message };
            (StatusCode::ACCEPTED, Json(answer)).into_response()
        }
    })
}

/// Registers a node that has connected to its hub.
#[utoipa::path(post, path = "/api/v1/nodes/register", request_body = RegisterRequest, responses(
    (status = 200, body = RegisterAnswer), (status = 401, body = Problem), (status = 403, body = Problem),
    (status = 422, body = Problem)))]
pub async fn register(
    State(state): State<Arc<ApiState>>,
    Signed { caller, body }: Signed<RegisterRequest>,
) -> Result<Json<RegisterAnswer>, ApiError> {
    body.check().map_err(|e| ApiError::new(ProblemCode::BadRequest, e))?;
    let now = now_ms();
    caller.require_recorded()?;
    let mut tx = state.store.write().await?;
    let node = caller.node;
    let known = tx.node(&node).await?.filter(|n| n.state == NodeState::Active);
    let known = known.ok_or_else(ApiError::removed)?;
    let network = tx.network(&known.network).await?;
    if network.is_some_and(|n| n.access == Access::Nft) && known.role == Role::Node {
        let admission = tx.admission(&node, body.wireguard_public_key).await?;
        if !admission.as_ref().is_some_and(|a| a.reason.grants()) {
            let code = admission.map_or(VERIFICATION_ERROR, |a| a.reason.code());
            let message = format!("the contract does not admit this node: {code}");
            return Err(ApiError::new(ProblemCode::NotGranted, message));
        }
    }
    let generation = known.generation;
    tx.put_registration(&node, &body, now).await?;
    tx.commit().await?;
    Ok(Json(RegisterAnswer { node_id: node, generation }))
}

/// The parameters of a long-poll.
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
    State(state): State<Arc<ApiState>>,
    Query(query): Query<StateQuery>,
    Caller { node, .. }: Caller,
) -> Result<Response, ApiError> {
    let _slot = state.handlers.polls.take(&node)?;
    // Subscribed before the first read, so that no change is missed in between.
    let mut waiter = state.store.waiter(&node);
    let mut stopping = state.stopping.clone();
    let deadline = Instant::now() + Duration::from_secs(query.wait.min(MAX_WAIT_SECS));
    let mut waited = false;
    if state.store.is_probed(&node) {
        state.store.report_return(&node).await?;
    }
    loop {
        let retry_in = match newer_document(&state, &node, query.after).await {
            Ok(Some(document)) => return Ok(document),
            // A probe waits for the next poll.
            Ok(None) if waited && state.store.is_probed(&node) => return Ok(StatusCode::NO_CONTENT.into_response()),
            Ok(None) => None,
            // A restart of the database wakes every node: those that wait keep waiting, or all would ask again at once.
            Err(e) if waited && e.code() == ProblemCode::Unavailable => {
                Some(Duration::from_millis(1000 + seed() % 4000))
            }
            Err(e) => return Err(e),
        };
        waited = true;
        tokio::select! {
            () = waiter.changed(), if retry_in.is_none() => {}
            () = tokio::time::sleep(retry_in.unwrap_or_default()), if retry_in.is_some() => {}
            () = tokio::time::sleep_until(deadline) => return Ok(StatusCode::NO_CONTENT.into_response()),
            // An error, because after an empty answer every node would ask again at once.
            _ = stopping.wait_for(|s| *s) => {
                let message = "the control plane is stopping: try again later";
                return Err(ApiError::new(ProblemCode::Unavailable, message));
            }
        }
    }
}

/// The signed document, if it is newer than `after`.
async fn newer_document(state: &ApiState, node: &NodeId, after: u64) -> Result<Option<Response>, ApiError> {
    let (found, keys) = {
        let _permit = state.handlers.builders.acquire().await;
        let mut tx = state.store.read().await?;
        let mut found = tx.document(node, after).await?;
        if let DocumentLookup::Document(document) = &mut found {
            tx.add_preshared(document, &state.master).await?;
        }
        let mut keys = state.keys.borrow().clone();
        // The cached keys lag behind the store by up to a second; a document that changes the keys needs the new ones.
        if let DocumentLookup::Document(document) = &found
            && document.signing_keys != keys.public()
        {
            keys = SigningKeys::read(&mut tx, &state.master).await.map_err(|e| {
                tracing::error!(error = %ErrorChain(&e), "signing keys not read");
                ApiError::internal()
            })?;
        }
        (found, keys)
    };
    let document = match found {
        DocumentLookup::Document(document) => document,
        DocumentLookup::Unchanged(generation) => {
            if generation < after {
                tracing::warn!(%node, held = after, wanted = generation, "node holds a later generation than the control plane gave it");
            }
            return Ok(None);
        }
        DocumentLookup::NotActive(NodeState::Pending) => return Err(ApiError::pending()),
        DocumentLookup::NotActive(_) | DocumentLookup::Unknown => return Err(ApiError::removed()),
    };
    let unwritable = |e: serde_json::Error| {
        tracing::error!(%node, error = %e, "state document not serialised");
        ApiError::internal()
    };
    let envelope = document.sign(keys.0.iter()).map_err(unwritable)?;
    let body = serde_json::to_vec(&envelope).map_err(unwritable)?;
    Ok(Some(([(header::CONTENT_TYPE, "application/json")], body).into_response()))
}

/// A report's place among those of its node. A device that does not number its reports sends neither.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::IntoParams)]
pub struct ReportQuery {
    /// The run of the device's program, a random number.
    run: Option<u64>,
    /// Counted up within the run.
    number: Option<u64>,
    /// 1: the device takes preshared keys from its state documents.
    preshared: Option<u8>,
}

/// Takes a node's report on itself.
#[utoipa::path(post, path = "/api/v1/nodes/self/report", params(ReportQuery), request_body = NodeReport, responses(
    (status = 200, description = "taken; the node is disabled", body = ReportAnswer), (status = 204, description = "taken"),
    (status = 401, body = Problem), (status = 403, body = Problem), (status = 422, body = Problem)))]
pub async fn report(
    State(state): State<Arc<ApiState>>,
    Query(query): Query<ReportQuery>,
    Signed { caller, body }: Signed<NodeReport>,
) -> Result<Response, ApiError> {
    body.check().map_err(|e| ApiError::new(ProblemCode::BadRequest, e))?;
    let enabled = caller.enabled;
    let received = ReceivedReport {
        node: caller.node,
        order: query.run.zip(query.number).map(|(run, number)| ReportOrder { run, number }),
        sent_ms: i64::try_from(caller.proof.timestamp_ms).unwrap_or(0),
        received_ms: now_ms(),
        takes_preshared: query.preshared == Some(1),
        report: body,
    };
    state.reports.put(received)?;
    Ok(if enabled { StatusCode::NO_CONTENT.into_response() } else { Json(ReportAnswer { enabled }).into_response() })
}

/// Takes one step of the rotation of the node's WireGuard key.
#[utoipa::path(post, path = "/api/v1/nodes/self/key", request_body = KeyRequest, responses(
    (status = 200, body = KeyAnswer), (status = 401, body = Problem), (status = 403, body = Problem),
    (status = 409, body = Problem), (status = 422, body = Problem)))]
pub async fn key(
    State(state): State<Arc<ApiState>>,
    Signed { caller, body }: Signed<KeyRequest>,
) -> Result<Json<KeyAnswer>, ApiError> {
    body.check().map_err(|e| ApiError::new(ProblemCode::BadRequest, e))?;
    caller.require_recorded()?;
    let now = now_ms();
    let proves = state.store.read().await?.proves_keys(&caller.node).await?;
    if proves && body.step == KeyStep::Announce {
        caller.key_proof.check(body.wireguard_public_key, &state.master)?;
    }
    Ok(Json(key_rotation::rotate(&state.store, &caller.node, &body, now).await?))
}
