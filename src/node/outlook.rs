//! Probes for the trial of an update: the supervisor's readiness, and whether hosts answer outside the tunnel.
use spoke_api::socket::{Readiness, SocketRequest};
use spoke_sys::connect::blocking::connect;
use spoke_sys::connect::was_refused;
use spoke_sys::resolve;
use spoke_sys::socket::call_within;
use spoke_update::machine::ProbeResult;
use std::path::Path;
use std::time::Duration;

/// Timeout of the supervisor's response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of a TCP handshake with a host on the internet.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Probes once; blocks for some seconds at most. `socket` is the supervisor's control socket, `probes` are `HOST:PORT`.
pub fn probe(socket: &Path, probes: &[String]) -> ProbeResult {
    let readiness: Readiness =
        call_within(socket, &SocketRequest::Readiness, RESPONSE_TIMEOUT).unwrap_or_else(|error| {
            tracing::debug!(%error, "supervisor readiness unknown");
            Readiness::default()
        });
    // A connected tunnel proves the WAN already.
    let outside = readiness.connected || probes.iter().any(|p| accepts_or_refuses(p));
    ProbeResult { connected: readiness.connected, clean: readiness.ready, passes: readiness.passes, outside }
}

/// Whether the supervisor trusts the wall clock; not while it does not respond.
pub fn clock_trusted(socket: &Path) -> bool {
    call_within::<Readiness>(socket, &SocketRequest::Readiness, RESPONSE_TIMEOUT).is_ok_and(|r| r.clock_trusted)
}

/// A refused connection counts: the reset comes from the far end too.
fn accepts_or_refuses(probe: &str) -> bool {
    let Some((host, port)) = probe.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?))) else {
        return false;
    };
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let Ok(addresses) = resolve::blocking(host, port, Some(CONNECT_TIMEOUT)) else { return false };
    connect(&addresses, None, Some(CONNECT_TIMEOUT)).map_or_else(|e| was_refused(&e), |_| true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixListener;

    /// A supervisor that answers one request.
    fn probe_with(response: &'static str) -> ProbeResult {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("spoke.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let serving = std::thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let mut request = String::new();
            stream.read_line(&mut request).unwrap();
            writeln!(stream.get_mut(), "{response}").unwrap();
            request
        });
        let result = probe(&socket, &[]);
        assert_eq!(serving.join().unwrap(), "{\"op\":\"readiness\"}\n");
        result
    }

    #[test]
    fn probe_takes_the_supervisor_s_readiness() {
        let result = probe_with(r#"{"ok":{"connected":true,"ready":true,"passes":true}}"#);
        assert_eq!(result, ProbeResult { connected: true, clean: true, passes: true, outside: true });
        let result = probe_with(r#"{"ok":{"connected":false,"ready":false,"passes":true}}"#);
        assert_eq!(result, ProbeResult { connected: false, clean: false, passes: true, outside: false });
        assert_eq!(probe_with(r#"{"error":"unknown request"}"#), ProbeResult::default());
    }

    #[test]
    fn without_supervisor_only_the_way_out_is_probed() {
        let socket = Path::new("/nonexistent/spoke.sock");
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(probe(socket, &[]), ProbeResult::default());
        assert!(probe(socket, &[free.to_string()]).outside, "a refusal comes from the far end");
        assert!(!probe(socket, &["no such host.invalid:1".into()]).outside);
    }
}
