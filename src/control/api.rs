//! The HTTP API: `devices` for nodes, `operators` for people and their scripts, one OpenAPI document made of both.
pub mod answer;
pub mod devices;
pub mod operators;
pub mod peers;
pub mod proof;
pub mod releases;
pub mod reports;

use super::chain::Asker;
use super::limits::Limits;
use super::signing::{MasterKey, SigningKeys};
use super::store::Store;
use axum::Router;
use spoke_model::secret::Secret;
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The largest body of a request, in bytes.
pub const MAX_BODY: usize = 64 << 10;

/// Documents built at the same time: a change for everybody must not starve enrolments of connections.
const BUILDERS: usize = 8;

/// What every request has at hand.
#[derive(Debug)]
pub struct App {
    /// The fleet.
    pub store: Store,
    /// The keys in service.
    pub keys: watch::Receiver<SigningKeys>,
    /// What seals them.
    pub master: MasterKey,
    /// Rate limits.
    pub limits: Limits,
    /// What operators have to show; without one their API answers nobody.
    pub operator_token: Option<Secret<String>>,
    /// Proofs of requests seen, and keys of nodes.
    pub proofs: proof::Proofs,
    /// Reports on their way into the store.
    pub reports: reports::Inbox,
    /// Turns true when the server is about to stop: long-polls end.
    pub stopping: watch::Receiver<bool>,
    /// Limits how many documents are built at once.
    pub builders: Semaphore,
    /// Asks the chain about devices that enrol; `None`: no contract is configured.
    pub chain: Option<Asker>,
    /// Where devices reach this control plane, for messages to operators.
    pub url: String,
}

impl App {
    /// The state of requests.
    #[expect(clippy::too_many_arguments, reason = "called once, with one thing of each kind")]
    pub fn new(
        store: Store,
        keys: watch::Receiver<SigningKeys>,
        master: MasterKey,
        limits: Limits,
        operator_token: Option<Secret<String>>,
        reports: reports::Inbox,
        stopping: watch::Receiver<bool>,
        chain: Option<Asker>,
        url: String,
    ) -> Self {
        Self {
            store,
            keys,
            master,
            limits,
            operator_token,
            proofs: proof::Proofs::begin(),
            reports,
            stopping,
            builders: Semaphore::new(BUILDERS),
            chain,
            url,
        }
    }
}

/// Milliseconds since 1970. A server's clock is kept right by NTP, unlike a board's.
#[expect(
    clippy::disallowed_methods,
    reason = "proofs are dated to the millisecond, which the clock seam does not give"
)]
pub fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[derive(utoipa::OpenApi)]
#[openapi(info(title = "spoke-control", description = "Enrols devices, hands out signed state, runs the fleet"))]
struct Description;

/// Every route, with the description of all of them at `/api/openapi.json`.
pub fn router(app: Arc<App>) -> Router {
    let quick = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(devices::provision))
        .routes(routes!(devices::register))
        .routes(routes!(devices::report))
        .routes(routes!(devices::key))
        .routes(routes!(peers::list))
        .routes(routes!(peers::one, peers::remove))
        .routes(routes!(peers::stats))
        .merge(operators::router())
        .merge(releases::router())
        .layer(axum::middleware::from_fn(answer::in_time));
    // A long-poll ends by its own time.
    let slow = OpenApiRouter::new().routes(routes!(devices::state));
    let (routes, description) = quick.merge(slow).split_for_parts();
    let description = axum::body::Bytes::from(description.to_json().unwrap_or_default());
    let openapi = axum::routing::get(move || {
        let body = description.clone();
        async move { ([(axum::http::header::CONTENT_TYPE, "application/json")], body) }
    });
    routes
        .route("/api/openapi.json", openapi)
        .fallback(answer::not_found)
        .method_not_allowed_fallback(answer::not_found)
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .layer(tower_http::catch_panic::CatchPanicLayer::new())
        .layer(axum::middleware::from_fn_with_state(app.clone(), super::limits::by_address))
        .layer(axum::middleware::from_fn(answer::in_shape))
        .with_state(app)
}
