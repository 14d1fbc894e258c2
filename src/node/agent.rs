//! Serves the agent API: authenticates, refuses replays, responds from observed state, passes changes to the ledger.
//! Waits for connections and for the reconciler's status, whose addresses it listens on.
use crate::changes::requests::{Changes, FRESH};
use crate::reconciler::NetStatus;
use serde_json::{Value, json};
use spoke_api::agent::answer;
use spoke_api::agent::answer::HostLoad;
use spoke_api::agent::auth::{BadSecret, Denied, OPEN, Verifier, check_head};
use spoke_api::agent::body;
use spoke_api::agent::openapi;
use spoke_api::agent::routes::{Call, resolve};
use spoke_api::agent::wgconf::{WgConf, WgPeer};
use spoke_api::exposition::CONTENT_TYPE;
use spoke_api::health::summary::Link;
use spoke_api::http::limit::{Proven, Rate, network};
use spoke_api::http::{Body, Request, Response, decode_path, host_is_ours};
use spoke_api::responses::ResponseCounts;
use spoke_change::audit::Actor;
use spoke_change::edit::{Edit, OwnValues};
use spoke_change::request::{AppliedChange, ChangeRefused};
use spoke_config::Config;
use spoke_config::effective::Effective;
use spoke_model::address::HostPort;
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_model::time::Boot;
use spoke_net::api_state::ApiStatePeer;
use spoke_net::drift::Names;
use spoke_sys::clock::Clock;
use spoke_sys::disk::DiskError;
use spoke_sys::host::Host;
use spoke_sys::http_server::{Limits, Listeners, Plain, Server, Service, Wrap, stopped, with_own_addresses};
use spoke_sys::keys::{KeyError, shared_secret};
use spoke_sys::resolve::SystemResolver;
use spoke_sys::tls::{Tls, TlsError};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

mod names;
mod reads;
mod record;
use names::Unresolved;
pub use record::REPLAYS;
use record::{Accepted, Answered, ReplayRecord};

/// Bodies longer than this, in bytes, are parsed on the blocking pool, so that other tasks do not wait.
const LARGE_BODY: usize = 64 * 1024;
/// Longest body, in bytes, of calls that need none.
const SMALL_BODY: usize = 4 * 1024;
/// Responses with more peers than this are serialised on the blocking pool.
const MANY_PEERS: usize = 500;
/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The shared secret cannot be read.
    #[error(transparent)]
    Secret(#[from] KeyError),
    /// The shared secret is weak.
    #[error(transparent)]
    Weak(#[from] BadSecret),
    /// No secret is configured.
    #[error("agent.secret is not configured")]
    NoSecret,
    /// The record of accepted requests cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The certificate or its key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Dependencies of the API.
#[derive(Clone, Debug)]
pub struct Deps<C> {
    /// Clocks.
    pub clock: C,
    /// When the process started.
    pub started: Boot,
    /// Configuration.
    pub config: Arc<Config>,
    /// Status of the reconciler.
    pub net: watch::Receiver<NetStatus>,
    /// The ledger of changes.
    pub changes: Changes,
    /// Responses, for the metrics.
    pub responses: Arc<ResponseCounts>,
    /// True when the process stops.
    pub stop: watch::Receiver<bool>,
}

struct Agent<C> {
    deps: Deps<C>,
    verifier: Verifier,
    replays: tokio::sync::Mutex<ReplayRecord>,
    host: Mutex<Host>,
    proven: Mutex<Proven>,
    resolver: SystemResolver,
    unresolved: Arc<Unresolved>,
}

type Peers = BTreeMap<PublicKey, Arc<ApiStatePeer>>;

/// Checks that the API can be served with this configuration: a strong secret, a usable certificate. Blocks.
pub fn check(config: &Config) -> Result<(), AgentError> {
    let settings = &config.agent;
    if let (true, Some(source)) = (settings.enabled, &settings.secret) {
        Verifier::new(&shared_secret(source)?)?;
        if let (Some(certificate), Some(key)) = (&settings.tls_certificate, &settings.tls_key) {
            Tls::open(certificate, key)?;
        }
    }
    Ok(())
}

/// Serves until the process stops. A missing or weak secret is an error.
pub async fn run<C: Clock>(deps: Deps<C>) -> Result<(), AgentError> {
    let settings = &deps.config.agent;
    let secret = shared_secret(settings.secret.as_ref().ok_or(AgentError::NoSecret)?)?;
    let agent = Agent {
        verifier: Verifier::new(&secret)?,
        replays: tokio::sync::Mutex::new(ReplayRecord::open(&deps.config.node.state_dir, &deps.clock)),
        host: Mutex::default(),
        proven: Mutex::default(),
        resolver: SystemResolver::default(),
        unresolved: Arc::default(),
        deps: deps.clone(),
    };
    match (&settings.tls_certificate, &settings.tls_key) {
        (Some(certificate), Some(key)) => {
            let tls = Tls::open(certificate, key)?;
            serve(deps, agent, tls).await
        }
        _ => serve(deps, agent, Plain).await,
    }
}

async fn serve<C: Clock, W: Wrap>(mut deps: Deps<C>, agent: Agent<C>, wrap: W) -> Result<(), AgentError> {
    let settings = deps.config.agent.clone();
    let limits = Limits {
        name: "agent API",
        connections: 128,
        per_source: 16,
        header: Duration::from_secs(10),
        body: Duration::from_secs(30),
        stall: Duration::from_secs(20),
        body_bytes: settings.max_body as usize,
        bodies_bytes: 2 * settings.max_body as usize,
        rate: Some(Rate { per_second: settings.rate, burst: settings.rate.saturating_mul(5) }),
    };
    let (unresolved, resolver) = (agent.unresolved.clone(), agent.resolver.clone());
    let mut listeners = Listeners::new(Server::new(agent, wrap, limits));
    let mut retry_at = deps.clock.now() + names::RETRY_EVERY;
    loop {
        let wanted = {
            let status = deps.net.borrow_and_update();
            let own = status.desired.links.values().flat_map(|l| &l.addresses).map(|net| net.addr());
            with_own_addresses(&settings.listen, own.filter(|_| settings.tunnel))
        };
        listeners.set(&wanted);
        tokio::select! {
            changed = deps.net.changed() => if changed.is_err() {
                // The reconciler has ended, and the process ends with it.
                std::future::pending::<()>().await;
            },
            () = deps.clock.sleep(retry_at.since(deps.clock.now())) => {
                if !unresolved.is_empty() {
                    unresolved.retry(&resolver, &deps.changes, &deps.net).await;
                }
                retry_at = deps.clock.now() + names::RETRY_EVERY;
            }
            () = stopped(&mut deps.stop) => {
                listeners.close().await;
                return Ok(());
            }
        }
    }
}

impl<C: Clock> Service for Agent<C> {
    fn admit(&self, head: &Request) -> Result<usize, Response> {
        let path = decode_path(&head.path).map_err(|e| Response::error(400, &e.to_string()))?;
        if OPEN.contains(&&*path) {
            return Ok(0);
        }
        check_head(head, self.deps.clock.wall()).map_err(denied)?;
        // A call that reads or that does not exist gets its answer after its signature was checked, and needs no room for it.
        let small = head.is_safe() || resolve(&head.method, &path).is_err();
        Ok(if small { SMALL_BODY } else { usize::MAX })
    }

    fn is_proven(&self, source: IpAddr) -> bool {
        self.proven.lock().unwrap_or_else(PoisonError::into_inner).contains(network(source), self.deps.clock.now())
    }

    fn responded(&self, status: u16) {
        self.deps.responses.count(status);
    }

    async fn call(&self, request: Request) -> Response {
        self.answer(request).await.unwrap_or_else(|refusal| refusal)
    }
}

impl<C: Clock> Agent<C> {
    async fn answer(&self, request: Request) -> Result<Response, Response> {
        let path = decode_path(&request.path).map_err(|e| Response::error(400, &e.to_string()))?.into_owned();
        let open = OPEN.contains(&path.as_str());
        let proof = match open {
            true => None,
            false => Some(self.verifier.check(&request, &path, self.deps.clock.wall()).map_err(denied)?),
        };
        if proof.is_some() {
            let mut proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
            proven.insert(network(request.source.ip()), self.deps.clock.now());
        }
        let call = resolve(&request.method, &path).map_err(answer::no_call)?;
        if let Some(proof) = proof.filter(|_| !request.is_safe()) {
            if request.query.is_some() {
                // The query is not signed: another party may have added it.
                return Err(Response::error(400, "A changing call must not have a query: it is not signed"));
            }
            let fresh = self.replays.lock().await.accept(proof, &self.deps.clock).await;
            return match fresh {
                Ok(Accepted::New(answered)) => {
                    let response = self.carry_out(call, request).await.unwrap_or_else(|refusal| refusal);
                    let state = self.deps.net.borrow().api_state.clone();
                    let at = self.deps.clock.now();
                    answered.send_replace(Some(Answered { at, state, response: response.clone() }));
                    Ok(response)
                }
                Ok(Accepted::Again(answer)) => {
                    let first = record::first_answer(answer, &self.deps.net, &self.deps.clock).await;
                    first.ok_or_else(|| denied(Denied::Replayed))
                }
                Ok(Accepted::Used) => Err(denied(Denied::Replayed)),
                Ok(Accepted::Forgotten) => Err(denied(Denied::Forgotten)),
                // A request that is not recorded could be replayed.
                Err(e) => Err(Response::error(503, &format!("The request cannot be recorded: {e}"))),
            };
        }
        self.carry_out(call, request).await
    }

    async fn carry_out(&self, call: Call, request: Request) -> Result<Response, Response> {
        let actor = Actor::Panel(request.source.ip());
        let (now, uptime) = (self.deps.clock.wall().secs(), self.uptime());
        let bare = |bytes: &[u8]| body::bare(bytes).map_err(|e| answer::bad_body(&e));
        match call {
            Call::Health => Ok(Response::json(200, &answer::health(now, uptime))),
            Call::OpenApi => Ok(Response::new(200, "application/json", Body::Static(openapi::DOCUMENT))),
            Call::Metrics => {
                let settings = &self.deps.config.agent;
                // Open, so that a page of another origin could read it by a name that it resolves to this address. TLS names the node.
                if settings.tls_key.is_none()
                    && let Some(host) = &request.host
                    && !host_is_ours(host, &settings.allowed_hosts)
                {
                    return Err(Response::error(421, "Unknown host name: add it to agent.allowed_hosts"));
                }
                let text = answer::metrics(&self.load(), &self.links(), &self.deps.responses);
                Ok(Response::new(200, CONTENT_TYPE, Body::Owned(text.into_bytes())))
            }
            Call::Status => {
                self.refresh().await;
                Ok(Response::json(200, &answer::status(now, uptime, &self.load(), &self.links())))
            }
            Call::Drift => self.drift().await,
            Call::Reconcile => {
                let what = body::reconcile(&request.body).map_err(|e| answer::bad_body(&e))?;
                self.refresh().await;
                let done = self.deps.changes.reconcile(what, actor).await;
                done.map(|d| Response::json(200, &d)).map_err(|e| answer::refused(&e))
            }
            Call::History => {
                let list = self.deps.changes.history().await.map_err(|e| answer::refused(&e))?;
                Ok(Response::json(200, &json!({ "generations": list })))
            }
            Call::Confirm => {
                let generation = body::generation(&request.body).map_err(|e| answer::bad_body(&e))?;
                let done = self.deps.changes.confirm(Some(generation), actor).await;
                done.map(|d| applied(&d, "Change confirmed", json!({}))).map_err(|e| answer::refused(&e))
            }
            Call::Rollback => {
                let to = body::rollback(&request.body).map_err(|e| answer::bad_body(&e))?;
                let done = self.deps.changes.rollback(to, actor).await.map_err(|e| answer::refused(&e))?;
                let text = format!("Rolled back; generation {} is in force", done.generation);
                Ok(applied(&done, &text, json!({ "generation": done.generation })))
            }
            Call::Dump(link) => self.dump(link).await,
            Call::GetConfig(link) => self.config(link).await,
            Call::AddPeer(link) => {
                let (peer, confirm) = body::new_peer(&request.body).map_err(|e| answer::bad_body(&e))?;
                let nets: Vec<String> = peer.values.allowed_ips.iter().flatten().map(ToString::to_string).collect();
                let key = peer.public_key;
                let done = self.edit(Edit::SetPeer { link, peer: key, values: peer.values }, actor, confirm).await?;
                let more = json!({ "peer": { "public_key": key, "allowed_ips": nets } });
                Ok(applied(&done, "Peer added successfully", with_warnings(more, &peer.warnings)))
            }
            Call::ChangePeer(link, peer) => {
                let ((values, warnings), confirm) =
                    body::peer_values(&request.body).map_err(|e| answer::bad_body(&e))?;
                let done = self.edit(Edit::ChangePeer { link, peer, values }, actor, confirm).await?;
                Ok(applied(&done, "Peer updated successfully", with_warnings(json!({}), &warnings)))
            }
            Call::RemovePeer(link, peer) => {
                let confirm = bare(&request.body)?;
                let done = self.edit(Edit::RemovePeer { link, peer }, actor, confirm).await?;
                Ok(applied(&done, "Peer removed successfully", json!({})))
            }
            Call::SyncConf(link) => self.syncconf(link, request.body, actor).await,
            Call::PutConfig(link) => {
                let (values, confirm) = body::device(&request.body).map_err(|e| answer::bad_body(&e))?;
                let done = self.edit(Edit::SetDevice { link, values }, actor, confirm).await?;
                let text = "Interface configuration updated successfully";
                Ok(applied(&done, text, json!({ "reloaded": done.changed })))
            }
            Call::Enable(link) => {
                let confirm = bare(&request.body)?;
                let text = format!("Interface {link} enabled successfully");
                let done = self.edit(Edit::SetDown { link, down: false }, actor, confirm).await?;
                Ok(applied(&done, &text, json!({ "was_down": !done.was_up })))
            }
            Call::Disable(link) => {
                let confirm = bare(&request.body)?;
                let text = format!("Interface {link} disabled successfully");
                let done = self.edit(Edit::SetDown { link, down: true }, actor, confirm).await?;
                Ok(applied(&done, &text, json!({ "was_up": done.was_up })))
            }
            Call::Delete(link) => {
                let confirm = bare(&request.body)?;
                let text = format!("Interface {link} deleted successfully");
                let done = self.edit(Edit::DeleteLink { link }, actor, confirm).await?;
                Ok(applied(&done, &text, json!({})))
            }
        }
    }

    async fn edit(&self, edit: Edit, actor: Actor, confirm: Option<Duration>) -> Result<AppliedChange, Response> {
        self.deps.changes.edit(edit, actor, confirm).await.map_err(|e| answer::refused(&e))
    }

    async fn syncconf(&self, link: IfName, bytes: Vec<u8>, actor: Actor) -> Result<Response, Response> {
        let read = run_sized(bytes.len() > LARGE_BODY, move || body::syncconf(bytes)).await?;
        let (conf, confirm) = read.map_err(|e| answer::bad_body(&e))?;
        let own =
            OwnValues { private_key: conf.private_key.clone(), listen_port: conf.listen_port, fwmark: conf.fwmark };
        let mut warnings = conf.warnings.clone();
        let (peers, unresolved) = self.peers(&link, conf).await?;
        let done = self.edit(Edit::SetPeers { link: link.clone(), peers, own }, actor, confirm).await?;
        warnings.extend(names::warnings(&unresolved));
        self.unresolved.set(&link, unresolved);
        Ok(applied(&done, "Configuration synchronized successfully", with_warnings(json!({}), &warnings)))
    }

    /// The peers of a file, and those of which the endpoint's name has no address.
    async fn peers(&self, link: &IfName, conf: WgConf) -> Result<(Peers, BTreeMap<PublicKey, HostPort>), Response> {
        let names = names::names(conf.peers.values());
        if names.len() > names::MAX_NAMES {
            return Err(Response::error(422, &format!("More than {} endpoints are host names", names::MAX_NAMES)));
        }
        let known = names::resolve(&self.resolver, names).await;
        let (set, link, many) = (self.deps.net.borrow().api_state.clone(), link.clone(), conf.peers.len() > MANY_PEERS);
        let make = move || {
            let set = set.links.get(&link).map(|l| &l.peers);
            let mut unresolved = BTreeMap::new();
            let mut peer = |(key, peer): (PublicKey, WgPeer)| {
                let WgPeer { preshared_key, allowed_ips, keepalive, endpoint } = peer;
                let address = endpoint.as_ref().and_then(|e| e.literal().or_else(|| known.get(e).copied()));
                if let (Some(name), None) = (endpoint, address) {
                    unresolved.insert(key, name);
                }
                let peer = ApiStatePeer { preshared_key, allowed_ips, keepalive, endpoint: address };
                // An unchanged peer keeps its allocation.
                let same = set.and_then(|s| s.get(&key)).filter(|s| ***s == peer).cloned();
                (key, same.unwrap_or_else(|| Arc::new(peer)))
            };
            let peers = conf.peers.into_iter().map(&mut peer).collect();
            (peers, unresolved)
        };
        run_sized(many, make).await
    }

    async fn refresh(&self) {
        self.deps.changes.refresh(&self.deps.net, &self.deps.clock, FRESH).await;
    }

    fn uptime(&self) -> u64 {
        self.deps.clock.now().since(self.deps.started).as_secs()
    }

    fn load(&self) -> HostLoad {
        self.host.lock().unwrap_or_else(PoisonError::into_inner).load()
    }

    fn links(&self) -> Vec<Link> {
        let status = self.deps.net.borrow();
        answer::links(&status.desired, &status.observed, &status.handshakes, self.deps.clock.now())
    }
}

/// Names of configured peers and hubs.
pub fn names(config: &Effective) -> Names {
    let peers = config.interfaces().flat_map(|i| i.peers()).filter_map(|p| Some((p.public_key, p.name.clone()?)));
    let hubs = config.hubs().iter().map(|h| (h.public_key, h.name.clone()));
    peers.chain(hubs).collect()
}

/// Does the work here, or on the blocking pool if it is large.
async fn run_sized<T: Send + 'static>(much: bool, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Response> {
    if !much {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|_| Response::error(503, &ChangeRefused::Busy.to_string()))
}

/// The response to a request that is not authentic.
fn denied(why: Denied) -> Response {
    Response::error(401, &why.to_string())
}

/// The largest number of warnings in one response.
const MAX_WARNINGS: usize = 100;

/// The fields of a response, with what was taken otherwise than it was written.
fn with_warnings(mut more: Value, warnings: &[String]) -> Value {
    if !warnings.is_empty() {
        more["warnings"] = warnings.iter().take(MAX_WARNINGS).map(String::as_str).collect();
    }
    more
}

/// The response to a change in force.
fn applied(done: &AppliedChange, message: &str, more: Value) -> Response {
    let mut body = json!({ "status": "success", "message": message });
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
        if let Some(seconds) = done.confirm_within {
            body.insert("generation".into(), done.generation.into());
            body.insert("confirm_within".into(), seconds.into());
        }
    }
    Response::json(200, &body)
}

#[cfg(test)]
mod tests;
