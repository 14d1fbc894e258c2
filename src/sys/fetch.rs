//! Opens an update bundle, from a file or from the web, as a stream: it is larger than a board's memory; asks our own local
//! endpoints.
use crate::bundle::Bundle;
use crate::clock::{Clock as _, SystemClock};
use crate::words;
use spoke_model::time::Boot;
use spoke_model::url::HttpUrl;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Timeout of connecting and of the response header.
const ANSWER: Duration = Duration::from_secs(30);
/// The longest one request may take; after it the rest is asked for, so that a stalled connection costs no more than this.
const ONE: Duration = Duration::from_secs(900);
/// The longest a whole bundle may take: 30 MB at 11 kbit/s. A source that stalls must not block updates for ever.
const WHOLE: Duration = Duration::from_secs(6 * 3600);
/// First and longest wait before the rest of a broken download is asked for.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The longest step of such a wait.
const STEP: Duration = Duration::from_secs(2);
/// Requests in a row that bring nothing before a download fails.
const FRUITLESS: u32 = 10;

/// Opens `place`: a web address or a path. A download ends after `at_most`.
pub fn open(place: &str, at_most: Option<Duration>) -> io::Result<Box<dyn Bundle>> {
    if place.contains("://") {
        let url: HttpUrl = place.parse().map_err(io::Error::other)?;
        let whole = at_most.map_or(WHOLE, |d| d.min(WHOLE));
        return Ok(Box::new(Download::start(&url.reveal(), Limits { one: ONE, whole, retry: RETRY })?));
    }
    Ok(Box::new(File::open(Path::new(place))?))
}

#[derive(Clone, Copy)]
struct Limits {
    one: Duration,
    whole: Duration,
    retry: (Duration, Duration),
}

/// A file from the web. What arrived is not fetched again after a broken connection: the rest is asked for by its range.
struct Download {
    agent: ureq::Agent,
    address: String,
    body: Box<dyn Read + Send>,
    /// Bytes read, and of how many.
    read: u64,
    total: Option<u64>,
    /// Names this version of the file (RFC 9110 §8.8).
    tag: Option<String>,
    fruitless: u32,
    until: Boot,
    retry: (Duration, Duration),
}

impl Download {
    fn start(address: &str, limits: Limits) -> io::Result<Self> {
        let tls = ureq::tls::TlsConfig::builder()
            .root_certs(ureq::tls::RootCerts::WebPki)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(ANSWER))
            .timeout_recv_response(Some(ANSWER))
            .timeout_recv_body(Some(limits.one.min(limits.whole)))
            .tls_config(tls)
            .build();
        let agent = crate::connect::blocking::agent(config);
        let answer = agent.get(address).call().map_err(in_words)?;
        let (total, tag) = (answer.body().content_length(), tag(&answer));
        Ok(Self {
            agent,
            address: address.to_owned(),
            body: Box::new(answer.into_body().into_with_config().limit(u64::MAX).reader()),
            read: 0,
            total,
            tag,
            fruitless: 0,
            until: SystemClock.now() + limits.whole,
            retry: limits.retry,
        })
    }

    /// Asks for the rest.
    fn resume(&mut self) -> io::Result<()> {
        let mut request = self.agent.get(&self.address).header("Range", format!("bytes={}-", self.read));
        if let Some(tag) = &self.tag {
            request = request.header("If-Range", tag);
        }
        let answer = request.call().map_err(in_words)?;
        let partial = answer.status().as_u16() == 206;
        if tag(&answer) != self.tag || (!partial && answer.body().content_length() != self.total) {
            self.fruitless = FRUITLESS;
            return Err(io::Error::other("the file was replaced while it was fetched"));
        }
        self.body = Box::new(answer.into_body().into_with_config().limit(u64::MAX).reader());
        if !partial {
            // The server has no ranges.
            io::copy(&mut (&mut self.body).take(self.read), &mut io::sink())?;
        }
        Ok(())
    }

    /// Waits, then asks for the rest until that works or was tried too often.
    fn recover(&mut self, mut why: io::Error) -> io::Result<()> {
        loop {
            self.fruitless += 1;
            let wait = self.retry.0.saturating_mul(1 << self.fruitless.min(16)).min(self.retry.1);
            if self.fruitless > FRUITLESS || SystemClock.now() + wait >= self.until {
                return Err(why);
            }
            // In short steps: a resumed machine does not wait for what was left.
            let end = SystemClock.now() + wait;
            while SystemClock.now() < end {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "on a thread of its own, which reads and writes blocking files"
                )]
                std::thread::sleep(end.since(SystemClock.now()).min(STEP));
            }
            match self.resume() {
                Ok(()) => return Ok(()),
                Err(e) => why = e,
            }
        }
    }
}

fn in_words(e: ureq::Error) -> io::Error {
    match e {
        ureq::Error::Io(e) => io::Error::new(e.kind(), words::io_error(&e)),
        ureq::Error::Rustls(e) => io::Error::other(words::tls_error(&e)),
        other => io::Error::other(other),
    }
}

/// The strong validator of an answer: its ETag, else when it was modified.
fn tag(answer: &ureq::http::Response<ureq::Body>) -> Option<String> {
    let header = |name: &str| Some(answer.headers().get(name)?.to_str().ok()?.to_owned());
    header("etag").filter(|t| !t.starts_with("W/")).or_else(|| header("last-modified"))
}

impl Bundle for Download {
    fn skip(&mut self, n: u64) -> io::Result<()> {
        self.read = self.read.saturating_add(n);
        if self.total.is_some_and(|total| self.read >= total) {
            return Ok(());
        }
        self.resume().or_else(|e| self.recover(e))
    }
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.total.is_some_and(|total| self.read >= total) {
            return Ok(0);
        }
        loop {
            if SystemClock.now() >= self.until {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the time for the download is over; what arrived is kept for the next attempt",
                ));
            }
            let broken = match self.body.read(buffer) {
                Ok(0) if self.total.is_none() => return Ok(0),
                Ok(0) => io::ErrorKind::UnexpectedEof.into(),
                Ok(n) => {
                    self.read += n as u64;
                    self.fruitless = 0;
                    return Ok(n);
                }
                Err(e) => e,
            };
            self.recover(broken)?;
        }
    }
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

    const LIMITS: Limits = Limits {
        one: Duration::from_secs(30),
        whole: Duration::from_secs(30),
        retry: (Duration::ZERO, Duration::ZERO),
    };

    fn content() -> Vec<u8> {
        (0..1000u32).flat_map(u32::to_le_bytes).collect()
    }

    /// A server of `content` that closes each connection after `cut` bytes; `ranges`: whether it knows them. Returns its address
    /// and the first byte that each request asked for.
    fn server(cut: usize, ranges: bool, etag: fn(usize) -> String) -> (String, std::sync::mpsc::Receiver<usize>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/x.spoke", listener.local_addr().unwrap());
        let (asked, requests) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for n in 0.. {
                let Ok((mut stream, _)) = listener.accept() else { return };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read(&mut byte).unwrap_or(0) == 0 {
                        break;
                    }
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).to_lowercase();
                let from = head.split_once("range: bytes=").and_then(|(_, r)| r.split_once('-')?.0.parse().ok());
                if asked.send(from.unwrap_or(0)).is_err() {
                    return;
                }
                let all = content();
                let from = from.filter(|_| ranges).unwrap_or(0);
                let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
                let rest = &all[from..];
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: {}\r\nConnection: close\r\n\r\n",
                    rest.len(),
                    etag(n)
                );
                let _ = stream.write_all(head.as_bytes());
                // A server without ranges gets further with each request.
                let end = rest.len().min(if ranges { cut } else { cut * (n + 1) });
                let _ = stream.write_all(&rest[..end]);
            }
        });
        (address, requests)
    }

    fn same(_: usize) -> String {
        "\"1\"".into()
    }

    #[test]
    fn broken_download_goes_on_where_it_broke() {
        for ranges in [true, false] {
            let (address, requests) = server(900, ranges, same);
            let mut read = Vec::new();
            Download::start(&address, LIMITS).unwrap().read_to_end(&mut read).unwrap();
            assert_eq!(read, content(), "ranges: {ranges}");
            let asked: Vec<_> = requests.try_iter().collect();
            assert_eq!(asked, [0, 900, 1800, 2700, 3600], "ranges: {ranges}");
        }
    }

    #[test]
    fn skipped_part_is_not_asked_for() {
        for ranges in [true, false] {
            let (address, requests) = server(4000, ranges, same);
            let mut download = Download::start(&address, LIMITS).unwrap();
            let mut head = [0; 100];
            download.read_exact(&mut head).unwrap();
            download.skip(2900).unwrap();
            let mut rest = Vec::new();
            download.read_to_end(&mut rest).unwrap();
            assert!(rest == content()[3000..], "ranges: {ranges}");
            assert_eq!(requests.try_iter().collect::<Vec<_>>(), [0, 3000], "ranges: {ranges}");
            download.skip(10).unwrap();
            assert_eq!(download.read(&mut head).unwrap(), 0);
        }
    }

    #[test]
    fn replaced_file_ends_the_download() {
        let (address, _requests) = server(900, true, |n| format!("\"{n}\""));
        let error = Download::start(&address, LIMITS).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("replaced"), "{error}");
    }

    #[test]
    fn download_that_brings_nothing_ends() {
        let (address, requests) = server(0, true, same);
        Download::start(&address, LIMITS).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(requests.try_iter().count(), FRUITLESS as usize + 1);
    }

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
        let limits = Limits { one: Duration::from_millis(300), whole: Duration::from_millis(300), retry: RETRY };
        let mut body = Download::start(&address, limits).unwrap();
        let mut read = Vec::new();
        assert!(body.read_to_end(&mut read).is_err(), "{} bytes were taken for the whole", read.len());
        drop(done);
        server.join().unwrap();
    }
}
