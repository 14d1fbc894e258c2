//! JSON-RPC over HTTPS: one request, one answer, read as a stream and never larger than allowed.
use crate::clock::{Clock as _, SystemClock};
use crate::keys;
use crate::keys::KeyError;
use crate::words;
use spoke_config::grants::{Endpoint, Grants, Url};
use spoke_grants::jsonrpc::{Answer, BadAnswer, Call, Refusal, decode, encode};
use spoke_grants::learnt::LearntLimit;
use std::future::Future;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

mod batch;

/// How long an endpoint that reports a rate limit without a time is not asked.
const RATE_PAUSE: Duration = Duration::from_secs(5);
/// Most bytes read of an answer that is none.
const REFUSAL_CAP: u64 = 16 * 1024;

/// Why an endpoint gave no answer. Never holds the URL: there may be a key in it.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// No connection, no name, no TLS, or cut off.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// Timeout.
    #[error("no answer in time")]
    Timeout,
    /// Another status than 200.
    #[error("HTTP status {status}")]
    Status {
        /// The status.
        status: u16,
        /// The delay it asked for.
        retry_after: Option<Duration>,
    },
    /// It redirects to another URL.
    #[error("it redirects to another URL: configure that one")]
    Redirect,
    /// More bytes than allowed, packed or unpacked.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(u64),
    /// Not an answer to what was asked.
    #[error(transparent)]
    Bad(#[from] BadAnswer),
    /// No endpoint of that number.
    #[error("there is no such endpoint")]
    NoSuch,
    /// The process is stopping.
    #[error("cancelled")]
    Cancelled,
}

impl RpcError {
    /// The delay that the endpoint asked for.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Unreachable(_)
            | Self::Timeout
            | Self::Redirect
            | Self::TooLarge(_)
            | Self::Bad(_)
            | Self::NoSuch
            | Self::Cancelled => None,
        }
    }
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    /// Answers in the order of the questions; `None`: not answered.
    pub answers: Vec<Option<Answer>>,
    /// From the first byte sent to the last byte read.
    pub took: Duration,
    /// Bytes of the bodies both ways, unpacked.
    pub bytes: u64,
}

/// Endpoints that answer JSON-RPC.
pub trait Rpc: Clone + Send + Sync + 'static {
    /// How many there are.
    fn endpoints(&self) -> usize;
    /// One's name for people: scheme and host.
    fn name(&self, endpoint: usize) -> &str;
    /// Asks one of them; reads at most `cap` bytes of its answer.
    fn ask(&self, endpoint: usize, asks: Vec<Call>, cap: u64) -> impl Future<Output = Result<Reply, RpcError>> + Send;
}

/// JSON-RPC over `ureq`: one connection pool, TLS against Mozilla's CA set, no redirects, no proxy from the environment.
#[derive(Clone, Debug)]
pub struct Http {
    agent: ureq::Agent,
    urls: Arc<[Url]>,
    timeout: Duration,
    /// By endpoint.
    limits: Arc<[Mutex<LearntLimit>]>,
}

impl Http {
    /// Opens the endpoints' URLs; those kept elsewhere are read now. An endpoint that is named twice has one vote.
    pub fn new(grants: &Grants) -> Result<Self, KeyError> {
        let mut urls: Vec<Url> = Vec::with_capacity(grants.endpoints.len());
        for endpoint in &grants.endpoints {
            let url = match endpoint {
                Endpoint::Url(url) => url.clone(),
                Endpoint::Kept(source) => keys::line(source)?.parse().map_err(|_| KeyError::NotAUrl(source.clone()))?,
            };
            if urls.iter().any(|known| known.is_same(&url)) {
                tracing::warn!(endpoint = url.shown(), "chain endpoint named twice; it has one vote");
            } else {
                urls.push(url);
            }
        }
        let limits = urls.iter().map(|_| Mutex::new(LearntLimit::of(grants.batch))).collect();
        let tls = ureq::tls::TlsConfig::builder()
            .provider(ureq::tls::TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(ureq::tls::RootCerts::WebPki)
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // Kept between polls of two minutes; an endpoint that closes earlier costs a resumed handshake.
            .max_idle_age(Duration::from_secs(600))
            .max_idle_connections_per_host(2)
            .max_response_header_size(16 * 1024)
            // Some providers refuse requests without these.
            .user_agent(concat!("spoke/", env!("CARGO_PKG_VERSION")))
            .accept("application/json")
            .build();
        let agent = crate::connect::blocking::agent(config);
        Ok(Self { agent, urls: urls.into(), timeout: grants.timeout, limits })
    }

    /// Asks in as many requests as the endpoint's limit makes necessary, all within the timeout.
    fn blocking(&self, endpoint: usize, asks: &[Call], cap: u64) -> Result<Reply, RpcError> {
        let url = self.urls.get(endpoint).ok_or(RpcError::NoSuch)?;
        let limits = self.limits.get(endpoint).ok_or(RpcError::NoSuch)?;
        let lock = || limits.lock().unwrap_or_else(PoisonError::into_inner);
        let started = SystemClock.now();
        let mut most = lock().size(started);
        let mut out = Reply { answers: Vec::with_capacity(asks.len()), took: Duration::ZERO, bytes: 0 };
        let mut rest = asks;
        let mut refused = false;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(most.min(rest.len()));
            let left = self.timeout.saturating_sub(SystemClock.now().since(started));
            if left.is_zero() {
                return Err(RpcError::Timeout);
            }
            match self.post(url, now, cap.saturating_sub(out.bytes), left) {
                Ok(reply) if batch::all_refused(&reply.answers) => {
                    out.bytes += reply.bytes;
                    refused = true;
                    most = now.len() / 2;
                }
                Ok(mut reply) => {
                    out.bytes += reply.bytes;
                    let answered = batch::answered(&reply.answers);
                    if answered < now.len() && answered > 0 {
                        // It answers the first ones only.
                        reply.answers.truncate(answered);
                        lock().lower(answered as u64, SystemClock.now());
                        most = answered;
                        rest = rest.get(answered..).unwrap_or_default();
                    } else {
                        rest = later;
                    }
                    if std::mem::take(&mut refused) {
                        lock().lower(now.len() as u64, SystemClock.now());
                    }
                    out.answers.append(&mut reply.answers);
                }
                Err(e) if now.len() > 1 && batch::refused(&e) => {
                    refused = true;
                    most = now.len() / 2;
                }
                Err(e) => return Err(e),
            }
        }
        out.took = SystemClock.now().since(started);
        Ok(out)
    }

    fn post(&self, url: &Url, asks: &[Call], cap: u64, timeout: Duration) -> Result<Reply, RpcError> {
        let body = encode(asks);
        let sent = body.len() as u64;
        let started = SystemClock.now();
        let response = self
            .agent
            .post(url.reveal().as_str())
            .config()
            .timeout_global(Some(timeout))
            .build()
            .header("content-type", "application/json")
            .send(body.as_slice())
            .map_err(|e| failure(&e))?;
        let status = response.status().as_u16();
        if (300..400).contains(&status) {
            return Err(RpcError::Redirect);
        }
        if status != 200 {
            let header = |name| response.headers().get(name).and_then(|v| v.to_str().ok());
            let retry_after = header("retry-after").and_then(|v| parse_retry_after(v, header("date")));
            // Some providers send the JSON-RPC error with status 400.
            if retry_after.is_none() && status != 429 {
                let answers = decode(response.into_body().into_reader().take(REFUSAL_CAP), asks);
                if let Some(refusal) = refusal(answers) {
                    return Err(RpcError::Bad(BadAnswer::Refused(refusal)));
                }
            }
            let retry_after = retry_after.or((status == 429).then_some(RATE_PAUSE));
            return Err(RpcError::Status { status, retry_after });
        }
        // Counted after unpacking: a small packed body may be a large one.
        let mut capped =
            Capped { inner: response.into_body().into_reader(), left: cap, over: false, seen: 0, failed: None };
        let answers = decode(&mut capped, asks);
        let (seen, over, failed) = (capped.seen, capped.over, capped.failed.take());
        match answers {
            Ok(answers) => {
                // Read to its end, the connection goes back to the pool.
                let _ = std::io::copy(&mut capped, &mut std::io::sink());
                Ok(Reply { answers, took: SystemClock.now().since(started), bytes: sent + seen })
            }
            Err(_) if over => Err(RpcError::TooLarge(cap)),
            Err(e) => Err(failed.unwrap_or(RpcError::Bad(e))),
        }
    }
}

impl Rpc for Http {
    fn endpoints(&self) -> usize {
        self.urls.len()
    }

    fn name(&self, endpoint: usize) -> &str {
        self.urls.get(endpoint).map_or("?", Url::shown)
    }

    async fn ask(&self, endpoint: usize, asks: Vec<Call>, cap: u64) -> Result<Reply, RpcError> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || this.blocking(endpoint, &asks, cap))
            .await
            .unwrap_or(Err(RpcError::Cancelled))
    }
}

/// The refusal in an answer that should hold nothing else.
fn refusal(answer: Result<Vec<Option<Answer>>, BadAnswer>) -> Option<Refusal> {
    match answer {
        Err(BadAnswer::Refused(refusal)) => Some(refusal),
        Ok(answers) => answers.into_iter().flatten().find_map(|a| match a {
            Answer::Refused(refusal) => Some(refusal),
            _ => None,
        }),
        Err(_) => None,
    }
}

/// The delay of a `Retry-After`: seconds, or a date relative to the endpoint's own `Date`, for our clock may be wrong.
fn parse_retry_after(text: &str, its_date: Option<&str>) -> Option<Duration> {
    let text = text.trim();
    if let Ok(secs) = text.parse() {
        return Some(Duration::from_secs(secs));
    }
    let date = |text| httpdate::parse_http_date(text).ok();
    let (until, now) = (date(text)?, date(its_date?.trim())?);
    Some(until.duration_since(now).unwrap_or_default())
}

/// Only the kind of failure: the library's texts may hold the URL.
fn failure(e: &ureq::Error) -> RpcError {
    match e {
        ureq::Error::Timeout(_) => RpcError::Timeout,
        ureq::Error::Io(io) => io_failure(io),
        ureq::Error::HostNotFound => {
            RpcError::Unreachable("its name is not known: check the spelling, and the resolver".into())
        }
        ureq::Error::ConnectionFailed => RpcError::Unreachable("connection failed".into()),
        ureq::Error::TooManyRedirects | ureq::Error::RedirectFailed => RpcError::Redirect,
        ureq::Error::Rustls(tls) => RpcError::Unreachable(words::tls_error(tls)),
        ureq::Error::Tls(why) => RpcError::Unreachable(format!("TLS: {why}")),
        ureq::Error::LargeResponseHeader(..) => RpcError::Unreachable("its header is too large".into()),
        ureq::Error::BadUri(_) => RpcError::Unreachable("its URL is not one".into()),
        _ => RpcError::Unreachable("not HTTP".into()),
    }
}

fn io_failure(e: &std::io::Error) -> RpcError {
    match e.kind() {
        std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => RpcError::Timeout,
        _ => RpcError::Unreachable(words::io_error(e)),
    }
}

/// Fails after `left` bytes, and keeps the reason.
struct Capped<R> {
    inner: R,
    left: u64,
    seen: u64,
    over: bool,
    failed: Option<RpcError>,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            // One more byte would be too many; none is the end.
            let more = self.inner.read(&mut [0])? > 0;
            self.over |= more;
            return if more { Err(std::io::Error::other("too large")) } else { Ok(0) };
        }
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let n = self.inner.read(buf.get_mut(..room).unwrap_or_default()).inspect_err(|e| {
            self.failed = Some(io_failure(e));
        })?;
        self.left -= n as u64;
        self.seen += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let date = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(parse_retry_after(" 120 ", None), Some(Duration::from_secs(120)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:50:07 GMT", date), Some(Duration::from_secs(30)));
        assert_eq!(
            parse_retry_after("Sun, 06 Nov 1994 08:00:00 GMT", date),
            Some(Duration::ZERO),
            "a date in the past"
        );
        for (text, date) in [("Sun, 06 Nov 1994 08:50:07 GMT", None), ("-1", date), ("soon", date), ("", date)] {
            assert_eq!(parse_retry_after(text, date), None, "{text}");
        }
    }

    #[test]
    fn capped_reader_accepts_its_limit_and_no_more() {
        let mut all = Vec::new();
        let mut c = Capped { inner: &b"12345"[..], left: 5, seen: 0, over: false, failed: None };
        assert_eq!(c.read_to_end(&mut all).unwrap(), 5);
        let mut c = Capped { inner: &b"123456"[..], left: 5, seen: 0, over: false, failed: None };
        assert!(c.read_to_end(&mut all).is_err() && c.over);
    }
}
