//! Looks at the supervisor and at the world, for the one that judges a trial.
use spoke_update::machine::ProbeResult;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

/// The supervisor answers at once or is in trouble.
const LOCAL: Duration = Duration::from_secs(3);
/// A way across the world and back.
const OUTSIDE: Duration = Duration::from_secs(5);
/// `/health` is small; anything longer is not it.
const MAX_ANSWER: u64 = 256 * 1024;

/// The parts of `/health` that count here; their names are fixed by those who poll it.
#[derive(serde::Deserialize)]
struct Health {
    connected: bool,
    can_ping_hub: bool,
    #[serde(default)]
    reasons: Vec<Reason>,
}

#[derive(serde::Deserialize)]
struct Reason {
    code: String,
}

/// Looks once. `health` is where the local endpoints listen; `probes` are `HOST:PORT`s outside.
pub fn probe(health: SocketAddr, probes: &[String]) -> ProbeResult {
    let vital: Option<Health> = get(health, "/health").and_then(|(_, body)| serde_json::from_slice(&body).ok());
    let connected = vital.is_some_and(|h| {
        // A system that cannot speak with the control plane could never be told to be anything else.
        h.connected && h.can_ping_hub && !h.reasons.iter().any(|r| r.code.starts_with("control"))
    });
    let clean = get(health, "/ready").is_some_and(|(status, _)| status == 200);
    // Nobody outside is bothered while all is well.
    let outside = connected || probes.iter().any(|p| answers(p));
    ProbeResult { connected, clean, outside }
}

/// Whether anything listens there, or at least refuses us: both come from outside.
fn answers(probe: &str) -> bool {
    let Ok(addresses) = probe.to_socket_addrs() else { return false };
    addresses.take(2).any(|a| match TcpStream::connect_timeout(&a, OUTSIDE) {
        Ok(_) => true,
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionRefused,
    })
}

/// Status and body of a plain HTTP GET.
fn get(at: SocketAddr, path: &str) -> Option<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect_timeout(&at, LOCAL).ok()?;
    stream.set_read_timeout(Some(LOCAL)).ok()?;
    stream.set_write_timeout(Some(LOCAL)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).ok()?;
    let head = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let status = std::str::from_utf8(answer.get(..head)?).ok()?.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split_off(head + 4)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Serves `/health` with this body and `/ready` with this status.
    fn serve(health: &'static str, ready: u16) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                let mut stream = stream.unwrap();
                let mut asked = Vec::new();
                // However many pieces it comes in.
                while !asked.ends_with(b"\r\n\r\n") {
                    let mut piece = [0; 512];
                    let n = stream.read(&mut piece).unwrap();
                    assert!(n > 0, "cut off: {asked:?}");
                    asked.extend_from_slice(&piece[..n]);
                }
                let (status, body) = if asked.starts_with(b"GET /health") { (200, health) } else { (ready, "{}") };
                write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
            }
        });
        at
    }

    #[test]
    fn connected_needs_hub_and_control() {
        let at = serve(r#"{"connected":true,"can_ping_hub":true,"reasons":[{"code":"chain_away"}]}"#, 200);
        assert_eq!(probe(at, &[]), ProbeResult { connected: true, clean: true, outside: true });
        let at = serve(r#"{"connected":true,"can_ping_hub":true,"reasons":[{"code":"control_away"}]}"#, 200);
        assert!(!probe(at, &[]).connected);
        let at = serve(r#"{"connected":true,"can_ping_hub":false}"#, 503);
        assert_eq!(probe(at, &[]), ProbeResult::default());
    }

    #[test]
    fn nothing_there_is_nothing_seen() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(!probe(free, &[]).connected);
        assert!(probe(free, &[free.to_string()]).outside, "a refusal is an answer");
        assert!(!probe(free, &["no such host.invalid:1".into()]).outside);
    }
}
