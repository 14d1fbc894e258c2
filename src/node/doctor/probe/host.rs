//! Probes of the host. Those that are not `async` block.
use crate::clock::{floor, has_jumped};
use rustix::thread::CapabilitySet;
use spoke_config::Config;
use spoke_model::address::HostPort;
use spoke_model::interface_name::IfName;
use spoke_model::key_source::KeySource;
use spoke_model::time::Wall;
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::kernel::{self, PathSocket, ReadPath as _};
use spoke_sys::keys::{IfMissing, KeyError, preshared, private};
use spoke_sys::resolve;
use spoke_uplink::path::Path as Way;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long to wait for ICMP port unreachable.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(700);

/// WireGuard support of the kernel.
#[derive(Debug)]
pub struct WireguardProbe {
    /// Kernel release.
    pub release: String,
    /// Whether the kernel has WireGuard; asking loads the module if there is one.
    pub supported: io::Result<bool>,
    /// A module for this release is installed.
    pub module_installed: bool,
}

/// Queries the kernel in the same way as the supervisor.
pub async fn wireguard() -> WireguardProbe {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let supported = kernel::has_wireguard().await;
    let module_installed = std::fs::read_to_string(format!("/lib/modules/{release}/modules.dep"))
        .is_ok_and(|t| t.lines().any(|l| l.split(':').next().unwrap_or("").contains("/wireguard.ko")));
    WireguardProbe { release, supported, module_installed }
}

/// The capabilities that this process needs and lacks.
pub fn privileges() -> io::Result<Vec<&'static str>> {
    let capabilities = rustix::thread::capabilities(None)?;
    let needed = [(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"), (CapabilitySet::NET_RAW, "CAP_NET_RAW")];
    Ok(needed.into_iter().filter(|(c, _)| !capabilities.effective.contains(*c)).map(|(_, name)| name).collect())
}

/// The state directory.
#[derive(Clone, Copy, Debug)]
pub struct StateDirProbe {
    /// It is a directory.
    pub directory: bool,
    /// This user may write.
    pub writable: bool,
    /// Free bytes.
    pub free: u64,
}

/// Reads permissions and free space of `dir`.
pub fn state_dir(dir: &Path) -> io::Result<StateDirProbe> {
    let fs = rustix::fs::statvfs(dir)?;
    let writable = rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok();
    Ok(StateDirProbe { directory: dir.is_dir(), writable, free: fs.f_bavail.saturating_mul(fs.f_frsize) })
}

/// A private or preshared key.
#[derive(Debug)]
pub struct KeyProbe {
    /// Name of the key in the finding.
    pub what: String,
    /// Its public part or its source, or why it cannot be read.
    pub result: Result<String, KeyError>,
    /// `spoke run` generates it if it is missing.
    pub generated: bool,
    /// This process has systemd credentials.
    pub has_credentials: bool,
    /// The key file and the state directory have different owners.
    pub owner_mismatch: Option<OwnerMismatch>,
}

/// Root reads a key file that the service's user cannot read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerMismatch {
    /// The key file.
    pub file: PathBuf,
    /// Its owner.
    pub file_uid: u32,
    /// The state directory.
    pub dir: PathBuf,
    /// Its owner.
    pub dir_uid: u32,
}

/// Reads every private and preshared key that the configuration names.
pub fn keys(config: &Config) -> Vec<KeyProbe> {
    let has_credentials = std::env::var_os("CREDENTIALS_DIRECTORY").is_some();
    let own = config.interfaces.iter().map(|i| KeyProbe {
        what: format!("key of {}", i.name),
        result: private(&i.private_key, IfMissing::Fail).map(|key| format!("public key {}", key.public())),
        generated: true,
        has_credentials,
        owner_mismatch: owner_mismatch(&i.private_key, &config.node.state_dir),
    });
    let peers = config.interfaces.iter().flat_map(|i| &i.peers).filter_map(|p| p.preshared_key.as_ref());
    let hubs = config.uplink.iter().flat_map(|u| &u.hubs).filter_map(|h| h.preshared_key.as_ref());
    let shared: BTreeSet<&KeySource> = peers.chain(hubs).collect();
    let shared = shared.into_iter().map(|source| KeyProbe {
        what: "preshared key".to_owned(),
        result: preshared(source).map(|_| source.to_string()),
        generated: false,
        has_credentials,
        owner_mismatch: None,
    });
    own.chain(shared).collect()
}

fn owner_mismatch(source: &KeySource, state_dir: &Path) -> Option<OwnerMismatch> {
    let KeySource::File(file) = source else { return None };
    let owner = |p: &Path| rustix::fs::stat(p).map(|s| s.st_uid).ok();
    let (file_uid, dir_uid) = (owner(file)?, owner(state_dir)?);
    let mismatch = OwnerMismatch { file: file.clone(), file_uid, dir: state_dir.to_owned(), dir_uid };
    (file_uid != dir_uid).then_some(mismatch)
}

/// The way to an address outside of the tunnel, as WireGuard's packets with `mark` would take it; `None` if it cannot be read.
pub async fn way_out(to: IpAddr, mark: u32) -> Option<Way> {
    PathSocket::open(mark).ok()?.path(to).await.ok()
}

/// Whether IPv6 is disabled on an interface, or on one that is yet to be created.
pub fn ipv6_is_disabled(interface: &IfName) -> bool {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"));
    read(interface.as_str()).or_else(|_| read("default")).is_ok_and(|v| v.trim() != "0")
}

/// Whether a UDP port is in use.
pub fn port_is_in_use(port: u16) -> bool {
    UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, port)).is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse)
}

/// The wall clock, the latest time known to be past, and whether the clock has jumped since it was last known.
pub fn clock(state_dir: &Path) -> (Wall, Wall, bool) {
    let (floor, _) = floor(state_dir);
    let wall = SystemClock.wall();
    (wall, floor.least(), has_jumped(state_dir, SystemClock.now(), wall, &floor))
}

/// A name look-up.
#[derive(Debug)]
pub struct Lookup {
    /// Sorted addresses without duplicates.
    pub addresses: io::Result<Vec<SocketAddr>>,
    /// Duration of the look-up.
    pub took: Duration,
}

/// Resolves a host name.
pub fn resolve(endpoint: &HostPort) -> Lookup {
    let started = SystemClock.now();
    let addresses = resolve::blocking(&endpoint.host, endpoint.port, None).map(|mut all| {
        all.sort_unstable();
        all.dedup();
        all
    });
    Lookup { addresses, took: SystemClock.now().since(started) }
}

/// The UDP path to an address.
#[derive(Debug)]
pub enum PathProbe {
    /// A packet left the machine and was not refused.
    Sent {
        /// MTU of the path as the kernel knows it, in bytes.
        mtu: Option<u32>,
    },
    /// The remote host refused the port.
    Refused,
    /// No packet could be sent.
    Unsent(io::Error),
}

/// Sends one packet and waits briefly for a refusal.
pub fn udp_path(hub: SocketAddr) -> PathProbe {
    let any: SocketAddr =
        if hub.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    let attempt = || -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind(any)?;
        socket.connect(hub)?;
        socket.set_read_timeout(Some(REFUSAL_TIMEOUT))?;
        socket.send(&[0; 4])?;
        match socket.recv(&mut [0; 64]) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Err(e),
            Ok(_) | Err(_) => Ok(socket),
        }
    };
    match attempt() {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => PathProbe::Refused,
        Err(e) => PathProbe::Unsent(e),
        Ok(socket) => {
            let mtu = if hub.is_ipv4() {
                rustix::net::sockopt::ip_mtu(&socket)
            } else {
                rustix::net::sockopt::ipv6_mtu(&socket)
            };
            PathProbe::Sent { mtu: mtu.ok() }
        }
    }
}
