//! The control socket's two ends: a listener with peer credentials, and a blocking caller for the command line.
use rustix::fs::{AtFlags, CWD, Mode, OFlags, chmodat, renameat, unlinkat};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use spoke_api::socket::{MAX_REQUEST, SocketRequest, SocketResponse};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
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
        // Bound in a directory that no other user enters, and moved: it never exists with wider rights, and nothing that was prepared
        // under its name is given any.
        let mut name = [0; 8];
        getrandom::fill(&mut name).map_err(std::io::Error::other)?;
        let fresh = path.with_file_name(format!(".{:016x}", u64::from_ne_bytes(name)));
        rustix::fs::mkdir(&fresh, Mode::RWXU)?;
        let bound = bind_in(&fresh, path);
        let _ = std::fs::remove_dir(&fresh);
        bound
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

/// Listens in the directory `fresh`, which the caller has made, and moves the socket to `path`.
fn bind_in(fresh: &Path, path: &Path) -> Result<Listener, std::io::Error> {
    let directory = rustix::fs::open(
        fresh,
        OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // By its descriptor: the way to it belongs to who owns the parents.
    if rustix::fs::fstat(&directory)?.st_uid != rustix::process::geteuid().as_raw() {
        return Err(std::io::Error::other(format!("{} was replaced by another user", fresh.display())));
    }
    let name = "s";
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))?;
    let placed = chmodat(&directory, name, Mode::from_raw_mode(0o660), AtFlags::empty())
        .and_then(|()| renameat(&directory, name, CWD, path));
    if let Err(e) = placed {
        let _ = unlinkat(&directory, name, AtFlags::empty());
        return Err(e.into());
    }
    Ok(Listener(listener))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};

    #[tokio::test]
    async fn prepared_name_gets_no_mode_and_stops_no_socket() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("spoke.sock"), dir.path().join("victim"));
        std::fs::write(&victim, "x").unwrap();
        let mode = std::fs::metadata(&victim).unwrap().mode();
        // The temporary name of earlier releases, as a directory and as a link.
        let prepared = dir.path().join("spoke.new");
        std::fs::create_dir(&prepared).unwrap();
        std::fs::write(prepared.join("file"), "").unwrap();
        drop(Listener::bind(&path).unwrap());
        std::fs::remove_dir_all(&prepared).unwrap();
        symlink(&victim, &prepared).unwrap();
        let _listener = Listener::bind(&path).unwrap();
        let made = std::fs::symlink_metadata(&path).unwrap();
        assert!(made.file_type().is_socket() && made.mode() & 0o7777 == 0o660, "{made:?}");
        assert_eq!(std::fs::metadata(&victim).unwrap().mode(), mode);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "nothing else is left");
        std::os::unix::net::UnixStream::connect(&path).unwrap();
    }
}
