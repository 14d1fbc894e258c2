//! The control socket's two ends: a listener with peer credentials, and a blocking caller for the command line.
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use spoke_api::socket::{MAX_REQUEST, SocketRequest, SocketResponse};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

/// Timeout of a read, of a write and of a reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the command line got no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No process listens.
    #[error("no supervisor answers at {path}: is it running? (systemctl status spoke)")]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The user may not connect.
    #[error("not allowed to open {path}: run as root or as a member of its group")]
    NotAllowed {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke.
    #[error("the supervisor did not answer")]
    Broken(#[source] std::io::Error),
    /// The answer is not JSON of the expected form.
    #[error("the supervisor's answer cannot be read; is it of another version?")]
    Garbled(#[source] serde_json::Error),
    /// The supervisor refused.
    #[error("{0}")]
    Refused(String),
}

/// Sends a request to the supervisor and waits for its response; blocks.
pub fn call<T: DeserializeOwned>(path: &Path, request: &SocketRequest) -> Result<T, CallError> {
    call_within(path, request, REPLY_TIMEOUT)
}

/// The same with a timeout of its own for the response.
pub fn call_within<T: DeserializeOwned>(
    path: &Path,
    request: &SocketRequest,
    timeout: Duration,
) -> Result<T, CallError> {
    let result = exchange(path, request, timeout)?;
    serde_json::from_slice(result.get().as_bytes()).map_err(CallError::Garbled)
}

/// The part that is compiled once for all types of results.
fn exchange(path: &Path, request: &SocketRequest, timeout: Duration) -> Result<Box<RawValue>, CallError> {
    let stream = std::os::unix::net::UnixStream::connect(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::PermissionDenied => CallError::NotAllowed { path: path.to_owned() },
        _ => CallError::NotRunning { path: path.to_owned(), source },
    })?;
    let ask = || -> Result<Vec<u8>, std::io::Error> {
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        (&stream).write_all(&line)?;
        let mut answer = Vec::new();
        BufReader::new(&stream).take(256 << 20).read_until(b'\n', &mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(CallError::Broken)?;
    match serde_json::from_slice(&answer).map_err(CallError::Garbled)? {
        SocketResponse::Ok(value) => Ok(value),
        SocketResponse::Error(reason) => Err(CallError::Refused(reason)),
    }
}

/// The process at the other end, from the kernel (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Process id, where known.
    pub pid: Option<i32>,
}

impl Caller {
    /// Root, or the user the supervisor itself runs as.
    pub fn is_trusted(&self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }
}

/// The listening end.
#[derive(Debug)]
pub struct Listener(UnixListener);

impl Listener {
    /// Listens at `path` with mode 0660; replaces a stale socket.
    pub fn bind(path: &Path) -> Result<Self, std::io::Error> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(std::io::Error::other(format!("another supervisor listens at {}", path.display()))),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(_) => {}
        }
        // Bound under another name and moved, so that it never exists with wider rights.
        let fresh = path.with_extension("new");
        let _ = std::fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o660))?;
        std::fs::rename(&fresh, path)?;
        Ok(Self(listener))
    }

    /// The next connection.
    pub async fn accept(&self) -> Result<Connection, std::io::Error> {
        loop {
            let (stream, _) = self.0.accept().await?;
            match stream.peer_cred() {
                Ok(cred) => {
                    let caller = Caller { uid: cred.uid(), pid: cred.pid() };
                    return Ok(Connection { stream: tokio::io::BufReader::new(stream), caller });
                }
                Err(e) => tracing::warn!(error = %e, "control connection without peer credentials refused"),
            }
        }
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: tokio::io::BufReader<UnixStream>,
    caller: Caller,
}

impl Connection {
    /// Who asks.
    pub const fn caller(&self) -> Caller {
        self.caller
    }

    /// The next line without its end; `None` when the caller is done. A line that is too long or too slow is an error.
    pub async fn line(&mut self) -> Result<Option<Vec<u8>>, std::io::Error> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(MAX_REQUEST as u64 + 1);
        tokio::time::timeout(REPLY_TIMEOUT, limited.read_until(b'\n', &mut line))
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        if line.is_empty() {
            return Ok(None);
        }
        if line.pop_if(|b| *b == b'\n').is_none() {
            return Err(std::io::Error::other("the request is too long or cut off"));
        }
        Ok(Some(line))
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), std::io::Error> {
        tokio::time::timeout(REPLY_TIMEOUT, self.stream.get_mut().write_all(bytes))
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
    }
}
