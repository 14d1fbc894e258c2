//! Looks at the machine for `spoke doctor`: each probe gives one finding with its remedy and changes nothing.
use rustix::thread::CapabilitySet;
use serde::Serialize;
use spoke_config::Config;
use spoke_model::address::HostPort;
use spoke_model::clock::BUILD;
use spoke_model::key_source::KeySource;
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::disk::DiskError;
use spoke_sys::kernel;
use spoke_sys::keys::{IfMissing, KeyError, preshared, private};
use std::collections::BTreeSet;
use std::net::{SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::path::Path;
use std::time::Duration;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but not for ever or not well.
    Warn,
    /// Keeps the tunnel from coming up.
    Fail,
}

impl Level {
    /// For the table.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub what: String,
    /// How bad it is.
    pub level: Level,
    /// What was seen.
    pub detail: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// Makes a finding; `remedy` may be empty.
pub fn finding(what: impl Into<String>, level: Level, detail: impl Into<String>, remedy: &str) -> Finding {
    let remedy = (!remedy.is_empty()).then(|| remedy.to_owned());
    Finding { what: what.into(), level, detail: detail.into(), remedy }
}

/// Whether the kernel has WireGuard. It is asked the way the supervisor asks, which loads the module if there is one.
pub async fn wireguard() -> Finding {
    let what = "WireGuard";
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    match kernel::has_wireguard().await {
        Ok(true) => finding(what, Level::Ok, format!("in the kernel ({release})"), ""),
        Ok(false) if has_module(&release) => finding(
            what,
            Level::Fail,
            format!("kernel {release} has a module that is not loaded by itself"),
            "modprobe wireguard; it says why, or read dmesg (a module may be on a deny list in /etc/modprobe.d)",
        ),
        Ok(false) => finding(
            what,
            Level::Fail,
            format!("kernel {release} does not have it"),
            "install a kernel of 5.6 or later that has it (in OpenWrt: kmod-wireguard)",
        ),
        Err(e) => finding(what, Level::Warn, format!("cannot be asked for: {e}"), "run it outside of any sandbox"),
    }
}

fn has_module(release: &str) -> bool {
    std::fs::read_to_string(format!("/lib/modules/{release}/modules.dep"))
        .is_ok_and(|t| t.lines().any(|l| l.split(':').next().unwrap_or("").contains("/wireguard.ko")))
}

/// Whether this process may change the network and send echoes.
pub fn privileges() -> Finding {
    let remedy = "run as root, or with AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW (systemd/spoke.service has them)";
    match rustix::thread::capabilities(None) {
        Ok(caps) => {
            let lacking: Vec<&str> =
                [(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"), (CapabilitySet::NET_RAW, "CAP_NET_RAW")]
                    .iter()
                    .filter(|(c, _)| !caps.effective.contains(*c))
                    .map(|(_, name)| *name)
                    .collect();
            if lacking.is_empty() {
                finding("privileges", Level::Ok, "CAP_NET_ADMIN and CAP_NET_RAW", "")
            } else {
                finding("privileges", Level::Fail, format!("this user lacks {}", lacking.join(" and ")), remedy)
            }
        }
        Err(e) => finding("privileges", Level::Warn, format!("cannot be read: {e}"), remedy),
    }
}

/// Whether the wall clock can be right.
pub fn clock() -> Finding {
    let wall = SystemClock.wall();
    if wall < BUILD {
        finding(
            "clock",
            Level::Warn,
            format!("it is {wall} here, which is before this program was built"),
            "harmless to the tunnel; TLS needs it right: enable systemd-timesyncd, and spoke-clock.service to restore it at boot",
        )
    } else {
        finding("clock", Level::Ok, wall.to_string(), "")
    }
}

/// Whether state can be kept.
pub fn state_dir(dir: &Path) -> Finding {
    let what = "state directory";
    match rustix::fs::statvfs(dir) {
        Err(e) if e == rustix::io::Errno::NOENT => finding(
            what,
            Level::Warn,
            format!("{} is not there yet", dir.display()),
            "spoke run makes it; under systemd StateDirectory=spoke does",
        ),
        Err(e) => finding(what, Level::Fail, format!("{}: {e}", dir.display()), "check its file system"),
        Ok(fs) => {
            let free = fs.f_bavail.saturating_mul(fs.f_frsize);
            if rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_err() {
                finding(
                    what,
                    Level::Fail,
                    format!("{} cannot be written by this user", dir.display()),
                    "run as the user of the service, or give it the directory",
                )
            } else if free < 1 << 20 {
                finding(
                    what,
                    Level::Fail,
                    format!("{}: {} KiB free", dir.display(), free / 1024),
                    "free some space: at least 1 MiB",
                )
            } else {
                finding(what, Level::Ok, format!("{}: {} MiB free", dir.display(), free >> 20), "")
            }
        }
    }
}

/// Whether each interface's private key and every preshared key is there and well kept.
pub fn keys(config: &Config) -> Vec<Finding> {
    let own = config.interfaces.iter().map(|i| {
        let what = format!("key of {}", i.name);
        match private(&i.private_key, IfMissing::Fail) {
            Ok(key) => foreign_owner(&what, &i.private_key, &config.node.state_dir)
                .unwrap_or_else(|| finding(what, Level::Ok, format!("public key {}", key.public()), "")),
            Err(KeyError::Missing { origin: origin @ KeySource::File(_), .. }) => {
                finding(what, Level::Ok, format!("{origin} is not there yet; made at first run"), "")
            }
            Err(e) => bad_key(what, &e),
        }
    });
    let peers = config.interfaces.iter().flat_map(|i| &i.peers).filter_map(|p| p.preshared_key.as_ref());
    let hubs = config.uplink.iter().flat_map(|u| &u.hubs).filter_map(|h| h.preshared_key.as_ref());
    let shared: BTreeSet<&KeySource> = peers.chain(hubs).collect();
    let shared = shared.into_iter().map(|source| {
        let what = "preshared key".to_owned();
        match preshared(source) {
            Ok(_) => finding(what, Level::Ok, source.to_string(), ""),
            Err(e) => bad_key(what, &e),
        }
    });
    own.chain(shared).collect()
}

/// A key file of root's is readable to root who asks here and not to the service's user, whose the state directory is.
fn foreign_owner(what: &str, source: &KeySource, state_dir: &Path) -> Option<Finding> {
    let KeySource::File(path) = source else { return None };
    let owner = |p: &Path| rustix::fs::stat(p).map(|s| s.st_uid).ok();
    let (key, state) = (owner(path)?, owner(state_dir)?);
    (key != state).then(|| {
        let detail = format!("{} belongs to user {key}, the state directory to user {state}", path.display());
        finding(what, Level::Warn, detail, &format!("chown --reference={} {}", state_dir.display(), path.display()))
    })
}

fn bad_key(what: String, e: &KeyError) -> Finding {
    if let KeyError::Missing { origin: origin @ KeySource::Credential(_), .. } = e
        && std::env::var_os("CREDENTIALS_DIRECTORY").is_none()
    {
        return finding(what, Level::Ok, format!("{origin} is passed to the service alone and not seen from here"), "");
    }
    let remedy = match e {
        KeyError::Disk(DiskError::TooOpen { path, .. }) => format!("chmod 600 {}", path.display()),
        KeyError::Disk(_) => "let the user that runs spoke read it".to_owned(),
        KeyError::NotAKey(_) => "put a key there (spoke key generate), or move it away to have one made".to_owned(),
        KeyError::NotAUrl(_) => "write one line with the URL".to_owned(),
        KeyError::Missing { remedy, .. } => (*remedy).to_owned(),
        KeyError::NotOurs(_) => "change it where it comes from, or use a file".to_owned(),
        KeyError::Random(_) => "wait until the kernel has gathered randomness".to_owned(),
    };
    let cause = std::error::Error::source(e).map(|s| format!(": {s}")).unwrap_or_default();
    finding(what, Level::Fail, format!("{e}{cause}"), &remedy)
}

/// Whether the hub's name has addresses.
pub fn dns(endpoint: &HostPort) -> (Finding, Vec<SocketAddr>) {
    let what = format!("DNS {}", endpoint.host);
    let started = SystemClock.now();
    match (endpoint.host.as_str(), endpoint.port).to_socket_addrs() {
        Ok(found) => {
            let mut all: Vec<SocketAddr> = found.collect();
            all.sort_unstable();
            all.dedup();
            let shown: Vec<String> = all.iter().map(|a| a.ip().to_string()).collect();
            let detail = format!("{} ({} ms)", shown.join(" "), SystemClock.now().since(started).as_millis());
            (finding(what, Level::Ok, detail, ""), all)
        }
        Err(e) => (
            finding(
                what,
                Level::Fail,
                e.to_string(),
                "check /etc/resolv.conf and the name, or write the hub's address",
            ),
            Vec::new(),
        ),
    }
}

/// Whether packets to the hub leave the machine, are not refused on the way, and are large enough.
///
/// A WireGuard port never answers a stranger, so silence is the best there is to see.
pub fn udp_path(hub: SocketAddr, tunnel_mtu: u32) -> Vec<Finding> {
    let what = format!("UDP {hub}");
    let any: SocketAddr =
        if hub.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    let attempt = || -> Result<UdpSocket, std::io::Error> {
        let socket = UdpSocket::bind(any)?;
        socket.connect(hub)?;
        socket.set_read_timeout(Some(Duration::from_millis(700)))?;
        socket.send(&[0; 4])?;
        match socket.recv(&mut [0; 64]) {
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Err(e),
            Ok(_) | Err(_) => Ok(socket),
        }
    };
    match attempt() {
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
            vec![finding(
                what,
                Level::Fail,
                "the hub's host refuses the port",
                "start the hub, or correct the port of its endpoint",
            )]
        }
        Err(e) => vec![finding(
            what,
            Level::Fail,
            format!("no way there: {e}"),
            "check the link, the address and the default route (ip route get)",
        )],
        Ok(socket) => {
            let mut out = vec![finding(what, Level::Ok, "sent, and not refused", "")];
            out.extend(mtu(&socket, hub, tunnel_mtu));
            out
        }
    }
}

/// Whether a full tunnel packet fits the path as the kernel knows it.
fn mtu(socket: &UdpSocket, hub: SocketAddr, tunnel_mtu: u32) -> Option<Finding> {
    // WireGuard's 32 bytes and UDP's 8, on top of IPv4's 20 or IPv6's 40 (wireguard.com, "Protocol").
    let overhead = if hub.is_ipv4() { 60 } else { 80 };
    let path =
        if hub.is_ipv4() { rustix::net::sockopt::ip_mtu(socket) } else { rustix::net::sockopt::ipv6_mtu(socket) }
            .ok()?;
    let what = format!("MTU to {}", hub.ip());
    let need = tunnel_mtu + overhead;
    Some(if path >= need {
        finding(what, Level::Ok, format!("{path} bytes; the tunnel needs {need}"), "")
    } else {
        let remedy = format!("set mtu = {} on the interface, or leave it out", path.saturating_sub(overhead).max(1280));
        finding(what, Level::Warn, format!("{path} bytes; the tunnel's {tunnel_mtu} need {need}"), &remedy)
    })
}
