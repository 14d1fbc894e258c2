//! Every route, and the OpenAPI document at `/api/openapi.json`.
use super::auth::OperatorAuth;
use super::description::complete;
use super::extract::MAX_BODY;
use super::state::ApiState;
use super::{devices, events, fleet, keys, networks, nodes, peers, releases, repeat, response, tokens};
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::header;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::{Extension, Router};
use response::{ApiError, Refusal};
use std::net::SocketAddr;
use std::sync::Arc;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "spoke-control", description = "Enrols devices, hands out signed state, runs the fleet"),
    components(schemas(Refusal))
)]
struct Description;

/// Whom a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Devices, and operators with `api.operator_token`.
    All,
    /// Devices only: the operators' tokens and keys are not looked at.
    Devices,
    /// Operators only.
    Operators,
}

/// The routes of devices, except the long-poll; of devices and operators; and of operators.
fn groups() -> [OpenApiRouter<Arc<ApiState>>; 3] {
    let devices = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(devices::provision))
        .routes(routes!(devices::register))
        .routes(routes!(devices::report))
        .routes(routes!(devices::key));
    let peers = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(peers::list))
        .routes(routes!(peers::one, peers::remove))
        .routes(routes!(peers::stats));
    let operators = nodes::router()
        .merge(tokens::router())
        .merge(keys::router())
        .merge(networks::router())
        .merge(fleet::router())
        .merge(releases::router());
    [devices, peers, operators]
}

/// The long-poll, which has a time limit of its own.
fn long_poll() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(devices::state))
}

/// The stream of events, which has one as well.
fn streams() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(events::events))
}

fn description_of(document: &utoipa::openapi::OpenApi) -> serde_json::Value {
    complete(serde_json::to_value(document).unwrap_or_default())
}

/// The OpenAPI document of every call.
pub fn description() -> serde_json::Value {
    let [devices, peers, operators] = groups();
    let all = devices.merge(peers).merge(operators).merge(long_poll()).merge(streams());
    description_of(all.get_openapi())
}

/// The router over `state` for a listener.
pub fn router(state: Arc<ApiState>, audience: Audience) -> Router {
    let auth = match audience {
        Audience::Devices => OperatorAuth::None,
        Audience::All => OperatorAuth::TokenOnly,
        Audience::Operators => OperatorAuth::TokenAndKeys,
    };
    let [devices, peers, operators] = groups();
    let operators = operators.layer(from_fn_with_state(state.clone(), repeat::once));
    let timed = match audience {
        Audience::All => devices.merge(peers).merge(operators),
        Audience::Devices => devices.merge(peers),
        Audience::Operators => peers.merge(operators),
    };
    let timed = timed.layer(from_fn(response::limit_time));
    let timed = if audience == Audience::Operators { timed } else { timed.merge(long_poll()) };
    let timed = if audience == Audience::Devices { timed } else { timed.merge(streams()) };
    let (routes, description) = timed.split_for_parts();
    let description = Bytes::from(description_of(&description).to_string());
    let openapi = axum::routing::get(move || {
        let body = description.clone();
        async move { ([(header::CONTENT_TYPE, "application/json")], body) }
    });
    routes
        .route("/api/openapi.json", openapi)
        .fallback(response::not_found)
        .method_not_allowed_fallback(response::not_found)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(tower_http::catch_panic::CatchPanicLayer::new())
        .layer(Extension(auth))
        .layer(from_fn_with_state(state.clone(), limit_address))
        .layer(from_fn(response::shape_errors))
        .with_state(state)
}

/// Refuses a request over the limit of its address, before anything else is done for it.
async fn limit_address(
    State(state): State<Arc<ApiState>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Err(refusal) = state.limits.check_address(peer.ip()) {
        state.handlers.responses.count(429);
        return Err(refusal.into());
    }
    let response = next.run(request).await;
    state.handlers.responses.count(response.status().as_u16());
    Ok(response)
}
