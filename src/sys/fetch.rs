//! Opens an update bundle, from a file or from the web, as a stream: it is larger than a board's memory; asks our own local
//! endpoints.
use crate::words;
use spoke_model::url::HttpUrl;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Timeout of connecting and of the response header.
const ANSWER: Duration = Duration::from_secs(30);
/// The longest a whole bundle may take: 30 MB at 11 kbit/s. A connection that stalls must not block updates for ever.
const WHOLE: Duration = Duration::from_secs(6 * 3600);

/// Opens `place`: a web address or a path.
pub fn open(place: &str) -> io::Result<Box<dyn Read + Send>> {
    if place.contains("://") {
        let url: HttpUrl = place.parse().map_err(io::Error::other)?;
        return web(&url.reveal(), WHOLE);
    }
    Ok(Box::new(File::open(Path::new(place))?))
}

fn web(address: &str, whole: Duration) -> io::Result<Box<dyn Read + Send>> {
    let tls = ureq::tls::TlsConfig::builder()
        .root_certs(ureq::tls::RootCerts::WebPki)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = ureq::Agent::config_builder()
        .timeout_connect(Some(ANSWER))
        .timeout_recv_response(Some(ANSWER))
        .timeout_recv_body(Some(whole))
        .tls_config(tls)
        .build();
    let agent = crate::connect::blocking::agent(config);
    let answer = agent.get(address).call().map_err(|e| match e {
        ureq::Error::Io(e) => io::Error::new(e.kind(), words::io_error(&e)),
        ureq::Error::Rustls(e) => io::Error::other(words::tls_error(&e)),
        other => io::Error::other(other),
    })?;
    Ok(Box::new(answer.into_body().into_with_config().limit(u64::MAX).reader()))
}

/// Timeout of a local endpoint; it answers from memory.
const LOCAL: Duration = Duration::from_secs(5);
/// Longer answers of a local endpoint are cut off.
const LOCAL_MAX: u64 = 64 * 1024;

/// Asks a local endpoint: status code and body.
pub fn local(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(LOCAL)).http_status_as_error(false).build().into();
    let answer = agent.get(format!("http://{address}{path}")).call().map_err(io::Error::other)?;
    let status = answer.status().as_u16();
    let mut body = String::new();
    answer.into_body().into_with_config().limit(LOCAL_MAX).reader().read_to_string(&mut body)?;
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn stalled_download_fails() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/x.spoke", listener.local_addr().unwrap());
        let (done, over) = std::sync::mpsc::channel::<()>();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nSPOKEUP1").unwrap();
            // Open, and sends nothing more.
            let _ = over.recv();
        });
        let mut body = web(&address, Duration::from_millis(300)).unwrap();
        let mut read = Vec::new();
        assert!(body.read_to_end(&mut read).is_err(), "{} bytes were taken for the whole", read.len());
        drop(done);
        server.join().unwrap();
    }
}
