//! The stream of events of the operators' API, over server-sent events: a client that was cut off goes on where it was.
use super::auth::Operator;
use super::error_code::ErrorCode;
use super::response::OperatorError;
use super::state::ApiState;
use super::view::rfc3339;
use crate::store::StoreError;
use crate::store::event::{Event, EventsAfter};
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use spoke_model::error_chain::ErrorChain;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

/// The longest stream, in seconds: a client connects again, and a key that was revoked meanwhile ends.
const MAX_WAIT_SECS: u64 = 600;

/// How often a stream without events has a comment, so that proxies keep it open.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// What a stream begins with: clients connect again after this many milliseconds.
const HEAD: &str = "retry: 2000\n\n";

/// Where a stream begins.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
pub struct EventsQuery {
    /// After the event with this id, for clients that cannot send `Last-Event-ID`; without both, with the next event.
    after: Option<i64>,
    /// Seconds the stream lasts at most, 0 to 600; 0: what there is.
    wait: Option<u64>,
}

/// A stream and its client's place in it.
struct Stream {
    state: Arc<ApiState>,
    signal: watch::Receiver<u64>,
    stopping: watch::Receiver<bool>,
    after: i64,
    until: Instant,
    _place: OwnedSemaphorePermit,
}

/// Events as they happen, as `text/event-stream`: `id`, `event` (`audit`, `node`, `drift`, or `reset`: events were lost, read
/// the lists again) and `data`, a line of JSON.
#[utoipa::path(get, path = "/api/events", params(EventsQuery), responses(
    (status = 200, content_type = "text/event-stream", body = String), (status = 400)))]
pub async fn events(
    State(state): State<Arc<ApiState>>,
    _by: Operator,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, OperatorError> {
    let busy = |_| OperatorError::new(ErrorCode::Unavailable, "too many streams of events are open");
    let place = Arc::clone(&state.handlers.streams).try_acquire_owned().map_err(busy)?;
    let last = match headers.get("last-event-id") {
        Some(id) => {
            let id = id.to_str().ok().and_then(|t| t.parse().ok());
            Some(id.ok_or_else(|| OperatorError::bad_field("Last-Event-ID", "must be the id of an event"))?)
        }
        None => query.after,
    };
    // Subscribed before the first read, so that no event is missed in between.
    let (signal, stopping) = (state.store.events(), state.stopping.clone());
    let after = match last {
        Some(last) => last,
        None => state.store.read().await?.last_event().await?,
    };
    let until = Instant::now() + Duration::from_secs(query.wait.unwrap_or(MAX_WAIT_SECS).min(MAX_WAIT_SECS));
    let stream = Stream { state, signal, stopping, after, until, _place: place };
    let head = futures_util::stream::once(async { Ok::<_, Infallible>(Bytes::from_static(HEAD.as_bytes())) });
    let rest = futures_util::stream::unfold(stream, Stream::next);
    let body = Body::from_stream(futures_util::StreamExt::chain(head, rest));
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, body).into_response())
}

impl Stream {
    /// The next part of the stream; `None`: it ends, and the client connects again.
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        let mut keepalive = Instant::now() + KEEPALIVE;
        loop {
            self.signal.borrow_and_update();
            match self.read().await {
                Ok(Some(text)) => return Some((Ok(text.into()), self)),
                Ok(None) => {}
                Err(e) => {
                    tracing::debug!(error = %ErrorChain(&e), "stream of events ended");
                    return None;
                }
            }
            if keepalive <= Instant::now() {
                return Some((Ok(Bytes::from_static(b":\n\n")), self));
            }
            let Self { signal, stopping, until, .. } = &mut self;
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(*until) => return None,
                _ = stopping.wait_for(|s| *s) => return None,
                changed = signal.changed() => changed.ok()?,
                () = tokio::time::sleep_until(keepalive) => keepalive = Instant::now(),
            }
        }
    }

    /// The events after the client's place, which moves behind them.
    async fn read(&mut self) -> Result<Option<String>, StoreError> {
        match self.state.store.read().await?.events_after(self.after).await? {
            EventsAfter::Next(events) => {
                self.after = events.last().map_or(self.after, |e| e.id);
                let text: String = events.iter().map(text).collect();
                Ok(Some(text).filter(|t| !t.is_empty()))
            }
            EventsAfter::Lost { last } => {
                self.after = last;
                Ok(Some(format!("id: {last}\nevent: reset\ndata: {{}}\n\n")))
            }
        }
    }
}

fn text(event: &Event) -> String {
    let Event { id, at_ms, kind, entity_type, entity_id, details } = event;
    let mut data = serde_json::json!({
        "timestamp": rfc3339(*at_ms), "entity_type": entity_type, "entity_id": entity_id,
    });
    if let (Some(data), Some(details)) = (data.as_object_mut(), details.as_object()) {
        data.extend(details.clone());
    }
    format!("id: {id}\nevent: {kind}\ndata: {data}\n\n")
}
