//! Looks at the machine for `spoke doctor`: each probe gives one finding with its remedy and changes nothing.
use super::clock::{Clock as _, SystemClock};
use super::keys::{IfMissing, private};
use crate::config::Config;
use crate::config::types::HostPort;
use rustix::thread::CapabilitySet;
use serde::Serialize;
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

/// Whether the kernel has WireGuard: loaded, built in, or there to be loaded.
pub fn wireguard() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if Path::new("/sys/module/wireguard").exists() {
        return finding("WireGuard", Level::Ok, format!("in the kernel ({release})"), "");
    }
    let dir = format!("/lib/modules/{release}");
    let listed = |list: &str| {
        std::fs::read_to_string(format!("{dir}/{list}"))
            .is_ok_and(|t| t.lines().any(|l| l.split(':').next().unwrap_or("").contains("/wireguard.ko")))
    };
    if listed("modules.builtin") {
        finding("WireGuard", Level::Ok, format!("built into the kernel ({release})"), "")
    } else if listed("modules.dep") {
        finding("WireGuard", Level::Ok, format!("a module of the kernel ({release}); loaded when first used"), "")
    } else {
        finding(
            "WireGuard",
            Level::Fail,
            format!("kernel {release} does not seem to have it"),
            "modprobe wireguard, or install a kernel of 5.6 or later that has it",
        )
    }
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
    // 2024-01-01: older than any build of this program.
    if wall.secs() < 1_704_067_200 {
        finding(
            "clock",
            Level::Warn,
            format!("it is {wall} here, which is the past"),
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

/// Whether each interface's private key is there and well kept.
pub fn keys(config: &Config) -> Vec<Finding> {
    config
        .interfaces
        .iter()
        .map(|i| {
            let what = format!("key of {}", i.name);
            match private(&i.private_key, IfMissing::Fail) {
                Ok(key) => finding(what, Level::Ok, format!("public key {}", key.public()), ""),
                Err(super::keys::KeyError::Missing {
                    origin: origin @ crate::config::types::KeySource::File(_),
                    ..
                }) => finding(what, Level::Ok, format!("{origin} is not there yet; made at first run"), ""),
                Err(e) => finding(what, Level::Fail, e.to_string(), "see above"),
            }
        })
        .collect()
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
