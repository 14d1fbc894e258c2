//! One request and its answer: the gates it passes, its body within bounds, what goes out.
use super::unproven::Turn;
use super::{Bodies, Gate, Handler, Limits};
use crate::clock::{Clock as _, SystemClock};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{HOST, HeaderValue};
use spoke_api::http::{Body, Request, Response};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// A body up to this, in bytes, needs no share of [`Limits::bodies_bytes`].
const SMALL: usize = 16 * 1024;

/// What a request has to pass.
#[derive(Clone)]
pub(super) struct Doors {
    pub(super) limits: Limits,
    pub(super) gate: Arc<Mutex<Gate>>,
    pub(super) bodies: Bodies,
}

/// Reads the request, has it answered, gives what is to be sent.
pub(super) async fn exchange(
    request: hyper::Request<Incoming>,
    source: SocketAddr,
    handler: &dyn Handler,
    doors: &Doors,
) -> hyper::Response<Full<Bytes>> {
    let response = respond(request, source, handler, doors).await;
    handler.responded(response.status().as_u16());
    response
}

async fn respond(
    request: hyper::Request<Incoming>,
    source: SocketAddr,
    handler: &dyn Handler,
    doors: &Doors,
) -> hyper::Response<Full<Bytes>> {
    if !source.ip().is_loopback() {
        let now = SystemClock.now();
        let mut g = doors.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(wait)) = g.rate.as_mut().map(|r| r.take(now, source.ip())) {
            return write(Response::error(429, "Too many requests").with("retry-after", seconds(wait)), Close::Yes);
        }
    }
    let (head, body) = request.into_parts();
    let mut request = plain(&head, source);
    let has_body = !body.is_end_stream();
    let longest = match handler.admit(&request) {
        Ok(longest) => longest.min(doors.limits.body_bytes),
        Err(refusal) => return write(refusal, if has_body { Close::Yes } else { Close::No }),
    };
    if has_body && longest == 0 {
        return write(Response::error(413, "This call has no body"), Close::Yes);
    }
    let proven = || source.ip().is_loopback() || handler.is_proven(source.ip());
    let (pool, turn) = if proven() {
        (&doors.bodies.proven, None)
    } else if size(&body, longest) <= SMALL {
        (&doors.bodies.others, None)
    } else {
        match Turn::take(&doors.bodies.unproven, source.ip()) {
            Ok(turn) => (&doors.bodies.others, Some(turn)),
            Err(wait) => {
                let text = "Only one long body at a time before a call with a valid signature, and none soon after one without";
                return write(Response::error(429, text).with("retry-after", seconds(wait)), Close::Yes);
            }
        }
    };
    // The share is kept until the answer is there: what is made of a body is no smaller than the body.
    let _share = match read(body, longest, &doors.limits, pool).await {
        Ok((bytes, share)) => {
            request.body = bytes;
            share
        }
        Err(refusal) => return write(refusal, Close::Yes),
    };
    let answer = handler.call(request).await;
    if let Some(turn) = turn.filter(|_| proven()) {
        turn.was_authentic();
    }
    write(answer, Close::No)
}

/// What a body may take, in bytes; one without a stated length may reach the limit.
fn size(body: &Incoming, max: usize) -> usize {
    body.size_hint().exact().and_then(|n| usize::try_from(n).ok()).unwrap_or(max).min(max)
}

fn seconds(wait: Duration) -> String {
    (wait.as_secs() + 1).to_string()
}

/// The request but for its body.
fn plain(head: &hyper::http::request::Parts, source: SocketAddr) -> Request {
    let host = head
        .uri
        .authority()
        .map(|a| a.as_str().to_owned())
        .or_else(|| head.headers.get(HOST).and_then(|h| h.to_str().ok()).map(str::to_owned));
    Request {
        method: head.method.as_str().to_owned(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().map(str::to_owned),
        host,
        headers: head.headers.iter().map(|(n, v)| (n.as_str().to_owned(), v.as_bytes().to_vec())).collect(),
        body: Vec::new(),
        source,
    }
}

/// Reads a body within its limits, together with its share of what all bodies may take.
async fn read(
    body: Incoming,
    max: usize,
    limits: &Limits,
    pool: &Arc<Semaphore>,
) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Response> {
    let too_long = || Response::error(413, &format!("The body is longer than {max} bytes"));
    if body.size_hint().lower() > max as u64 {
        return Err(too_long());
    }
    let whole = async {
        let longest = size(&body, max);
        let share = if longest <= SMALL {
            None
        } else {
            let wanted = u32::try_from(shares(longest).min(shares(limits.bodies_bytes / 2))).unwrap_or(u32::MAX);
            pool.clone().acquire_many_owned(wanted).await.ok()
        };
        collect(body, max).await.map(|bytes| (bytes, share))
    };
    match timeout(limits.body, whole).await {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(TooLong::Yes)) => Err(too_long()),
        Ok(Err(TooLong::Broken)) => Err(Response::error(400, "The body could not be read")),
        Err(_) => Err(Response::error(408, "The body took too long")),
    }
}

/// Bytes in the unit they are shared out in.
pub(super) const fn shares(bytes: usize) -> usize {
    bytes.div_ceil(1024)
}

enum TooLong {
    Yes,
    Broken,
}

/// The body, if it has at most `max` bytes.
async fn collect(mut body: Incoming, max: usize) -> Result<Vec<u8>, TooLong> {
    let announced = body.size_hint().lower();
    let mut out = Vec::with_capacity(usize::try_from(announced).unwrap_or(0).min(max));
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| TooLong::Broken)?.into_data() else { continue };
        if out.len() + data.len() > max {
            return Err(TooLong::Yes);
        }
        out.extend_from_slice(&data);
    }
    Ok(out)
}

enum Close {
    Yes,
    No,
}

fn write(response: Response, close: Close) -> hyper::Response<Full<Bytes>> {
    let body = match response.body {
        Body::Static(text) => Bytes::from_static(text.as_bytes()),
        Body::Owned(bytes) => Bytes::from(bytes),
        Body::Shared(bytes) => Bytes::from_owner(bytes),
    };
    let mut out = hyper::Response::new(Full::new(body));
    *out.status_mut() =
        hyper::StatusCode::from_u16(response.status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = out.headers_mut();
    let mut set = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.append(name, value);
        }
    };
    if !response.content_type.is_empty() {
        set("content-type", response.content_type);
    }
    set("cache-control", "no-store");
    set("x-content-type-options", "nosniff");
    if matches!(close, Close::Yes) {
        set("connection", "close");
    }
    for (name, value) in &response.headers {
        set(name, value);
    }
    out
}
