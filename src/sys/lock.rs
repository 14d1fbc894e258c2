//! One supervisor for a runtime directory and for a network namespace: two would adopt and delete each other's interfaces.
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;

/// File name in the runtime directory; holds the process id.
pub const FILE: &str = "supervisor.lock";
/// Abstract socket: its name is unique in a network namespace and is free when the process ends.
const NAME: &[u8] = b"spoke-supervisor";

/// Another supervisor runs.
#[derive(Debug, thiserror::Error)]
#[error(
    "another supervisor is running ({holder}): stop it first (systemctl stop spoke), since two would undo each other's changes"
)]
pub struct AnotherSupervisor {
    /// The process.
    holder: String,
}

/// Held for as long as the process lives.
#[derive(Debug)]
pub struct SupervisorLock {
    _file: Option<File>,
    _name: Option<UnixListener>,
}

/// Takes the lock. A directory that cannot be written is no reason to have no tunnel: the lock is then of the namespace alone.
///
/// # Errors
/// Another supervisor has it.
pub fn take(runtime_dir: &Path, socket: &Path) -> Result<SupervisorLock, AnotherSupervisor> {
    // One of a version without the lock.
    if let Ok(other) = UnixStream::connect(socket) {
        return Err(AnotherSupervisor { holder: peer(&other) });
    }
    let file = match lock_file(runtime_dir) {
        Ok(file) => Some(file?),
        Err(error) => {
            tracing::warn!(path = %runtime_dir.display(), %error, "runtime directory not locked");
            None
        }
    };
    Ok(SupervisorLock { _file: file, _name: lock_name()? })
}

fn lock_file(dir: &Path) -> io::Result<Result<File, AnotherSupervisor>> {
    std::fs::create_dir_all(dir)?;
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    let mut file = options.open(dir.join(FILE))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())?;
            Ok(Ok(file))
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            Ok(Err(AnotherSupervisor { holder: process(text.trim()) }))
        }
        Err(error) => Err(error.into()),
    }
}

fn lock_name() -> Result<Option<UnixListener>, AnotherSupervisor> {
    let held = SocketAddr::from_abstract_name(NAME).and_then(|address| match UnixListener::bind_addr(&address) {
        Ok(listener) => Ok(Ok(listener)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => UnixStream::connect_addr(&address).map(Err),
        Err(error) => Err(error),
    });
    match held {
        Ok(Ok(listener)) => Ok(Some(listener)),
        // Any user can take the name: only one who could be a supervisor is believed.
        Ok(Err(other)) if may_supervise(&other) => Err(AnotherSupervisor { holder: peer(&other) }),
        Ok(Err(other)) => {
            tracing::warn!(holder = peer(&other), "name of the supervisor's lock taken by another user");
            Ok(None)
        }
        Err(error) => {
            tracing::warn!(%error, "network namespace not locked");
            Ok(None)
        }
    }
}

fn may_supervise(other: &UnixStream) -> bool {
    let own = rustix::process::getuid();
    rustix::net::sockopt::socket_peercred(other).is_ok_and(|cred| cred.uid.is_root() || cred.uid == own)
}

fn peer(other: &UnixStream) -> String {
    match rustix::net::sockopt::socket_peercred(other) {
        Ok(cred) => process(&cred.pid.as_raw_nonzero().to_string()),
        Err(_) => "process unknown".to_owned(),
    }
}

fn process(id: &str) -> String {
    match std::fs::read_to_string(format!("/proc/{id}/comm")) {
        Ok(name) => format!("process {id}, {}", name.trim()),
        Err(_) => format!("process {id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_lock_of_a_directory_names_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock_file(dir.path()).unwrap().unwrap();
        let refused = lock_file(dir.path()).unwrap().unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(held);
        assert!(lock_file(dir.path()).unwrap().is_ok(), "free when its holder ends");
    }
}
