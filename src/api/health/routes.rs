//! Maps paths to responses. All of them are made from known facts; no request reads the kernel.
use super::fold::{Moment, fold, ready, strictly_ready};
use super::metrics::{CONTENT_TYPE, Scrape, metrics};
use super::page::facts::{Details, Facts, Query};
use super::page::page;
use super::stats::stats;
use super::summary::{Interfaces, Snapshot};
use crate::exposition::Process;
use crate::http::{Body, Request, Response, host_is_ours};
use crate::responses::ResponseCounts;
use serde_json::json;
use spoke_config::health::Health as Settings;
use spoke_config::node::Role;
use std::sync::Arc;

/// The facts a response is made of.
#[derive(Debug)]
pub struct View<'a> {
    /// The facts.
    pub snapshot: &'a Snapshot,
    /// Now.
    pub at: Moment,
    /// `[health]`.
    pub settings: &'a Settings,
    /// Interfaces for `/wireguard`.
    pub interfaces: &'a Interfaces,
    /// The body of `/config`.
    pub config: Arc<[u8]>,
    /// The configuration's part of `/stats`.
    pub config_stats: &'a serde_json::Value,
    /// `node.role`.
    pub role: Role,
    /// What the process takes, for `/metrics`.
    pub process: Option<Process>,
    /// Responses of the agent API, where it is served.
    pub agent: Option<&'a ResponseCounts>,
    /// The page's `Content-Security-Policy`.
    pub page_policy: &'a str,
    /// What only the page needs.
    pub details: &'a Details,
}

/// The response to a request.
pub fn route(view: &View<'_>, request: &Request) -> Response {
    // Only HTTP/1.0 clients send no host; browsers always do.
    if let Some(host) = &request.host
        && !host_is_ours(host, &view.settings.allowed_hosts)
    {
        return Response::error(421, "Unknown host name: add it to health.allowed_hosts");
    }
    let origin = request.header("origin").filter(|o| view.settings.allowed_origins.iter().any(|a| a == o));
    let response = match request.method.as_str() {
        "GET" | "HEAD" if !is_for(view.settings, request) => Response::error(
            403,
            "Only /health and /ready are served here: add the client's network to health.details_from",
        ),
        "GET" | "HEAD" => answer(view, &request.path, request.query.as_deref()),
        "OPTIONS" if origin.is_some() => preflight(request),
        _ => Response::error(405, "Only GET is served here").with("allow", "GET, HEAD"),
    };
    match origin {
        Some(origin) => response.with("access-control-allow-origin", origin).with("vary", "Origin"),
        None if view.settings.allowed_origins.is_empty() => response,
        None => response.with("vary", "Origin"),
    }
}

/// Whether the client may read the path. Interfaces, configuration and counters name every peer and its public endpoint.
fn is_for(settings: &Settings, request: &Request) -> bool {
    let source = request.source.ip().to_canonical();
    matches!(request.path.as_str(), "/health" | "/ready")
        || source.is_loopback()
        || settings.details_from.iter().any(|net| net.contains(&source))
}

fn preflight(request: &Request) -> Response {
    let response = Response::new(204, "", Body::Static(""))
        .with("access-control-allow-methods", "GET, HEAD")
        .with("access-control-max-age", "600");
    // Chromium's preflight for a private address.
    if request.header("access-control-request-private-network") == Some("true") {
        response.with("access-control-allow-private-network", "true")
    } else {
        response
    }
}

/// Whether the query of `/ready` asks for an answering hub.
fn strict(query: Option<&str>) -> bool {
    query.is_some_and(|q| q.split('&').any(|p| matches!(p, "strict" | "strict=" | "strict=1" | "strict=true")))
}

fn answer(view: &View<'_>, path: &str, query: Option<&str>) -> Response {
    let (s, at) = (view.snapshot, &view.at);
    match path {
        "/" => {
            let text = page(&Facts::new(s, at, view.details, Query::parse(query)));
            Response::new(200, "text/html; charset=utf-8", Body::Owned(text.into_bytes()))
                .with("content-security-policy", view.page_policy)
                .with("referrer-policy", "no-referrer")
                .with("cache-control", "no-store")
                .with("x-content-type-options", "nosniff")
        }
        "/health" => Response::json(200, &fold(s, at)),
        "/ready" => match if strict(query) { strictly_ready(s, at) } else { ready(s, at) } {
            Ok(()) => Response::json(200, &json!({ "status": "ready", "timestamp": at.stamp() })),
            Err(error) => Response::json(
                503,
                &json!({ "status": "not ready", "error": error.to_string(), "timestamp": at.stamp() }),
            ),
        },
        "/stats" => Response::json(200, &stats(s, at, view.config_stats)),
        "/wireguard" => Response::new(200, "application/json", Body::Shared(view.interfaces.body())),
        "/config" => Response::new(200, "application/json", Body::Shared(view.config.clone())),
        "/metrics" => {
            let peers = Some(view.interfaces).filter(|_| view.settings.peer_metrics);
            let View { at, role, process, agent, .. } = *view;
            let text = metrics(&Scrape { snapshot: s, at, role, process, agent, peers });
            Response::new(200, CONTENT_TYPE, Body::Owned(text.into_bytes()))
        }
        _ => Response::error(404, "Not found; see /health, /ready, /stats, /wireguard, /config, /metrics"),
    }
}

#[cfg(test)]
mod tests;
