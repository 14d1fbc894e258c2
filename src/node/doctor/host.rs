//! Evaluates the host: WireGuard, privileges, clock, state directory, keys, and the path to the hub.
use super::finding::{Finding, Level};
use super::probe::host::{KeyProbe, Lookup, PathProbe, StateDirProbe, WireguardProbe};
use spoke_model::address::HostPort;
use spoke_model::error_chain::ErrorChain;
use spoke_model::interface_name::IfName;
use spoke_model::key_source::KeySource;
use spoke_model::time::Wall;
use spoke_sys::disk::DiskError;
use spoke_sys::keys::KeyError;
use spoke_uplink::path::Path;
use spoke_uplink::status::Code;
use std::io;
use std::net::{IpAddr, SocketAddr};

/// Free bytes below which state cannot be stored reliably.
const MIN_FREE: u64 = 1 << 20;

/// Whether the kernel has WireGuard.
pub fn wireguard(probe: &WireguardProbe) -> Finding {
    let (what, release) = ("WireGuard", &probe.release);
    match &probe.supported {
        Ok(true) => Finding::ok(what, format!("in the kernel ({release})")),
        Ok(false) if probe.module_installed => Finding::fail(
            what,
            format!("kernel {release} has a module that is not loaded automatically"),
            "modprobe wireguard; if that fails read dmesg (the module may be on a deny list in /etc/modprobe.d)",
        ),
        Ok(false) => Finding::fail(
            what,
            format!("kernel {release} does not have it"),
            "install a kernel of 5.6 or later that has it (in OpenWrt: kmod-wireguard)",
        ),
        Err(e) => Finding::warn(what, format!("cannot be queried: {e}"), "run it outside of any sandbox"),
    }
}

/// Whether this process may configure the network and send echoes; `missing` names the capabilities it lacks.
pub fn privileges(missing: &io::Result<Vec<&'static str>>) -> Finding {
    let what = "privileges";
    let remedy = "run as root, or with AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW (systemd/spoke.service has them)";
    match missing {
        Ok(missing) if missing.is_empty() => Finding::ok(what, "CAP_NET_ADMIN and CAP_NET_RAW"),
        Ok(missing) => Finding::fail(what, format!("this user lacks {}", missing.join(" and ")), remedy),
        Err(e) => Finding::warn(what, format!("cannot be read: {e}"), remedy),
    }
}

/// Whether the wall clock is plausible. `least`: the latest time known to be past; `jumped`: it differs by more than a day
/// from what it should be by the boot clock.
pub fn clock(wall: Wall, least: Wall, jumped: bool) -> Finding {
    let what = "clock";
    let remedy = "set it (`spoke clock restore`, then a time server such as systemd-timesyncd): a hub drops handshakes older than the last one it took, and TLS needs the right time";
    if wall < least {
        return Finding::fail(what, format!("it shows {wall}, and {least} is past already"), remedy);
    }
    if jumped {
        return Finding::fail(what, format!("it shows {wall}, more than a day from what it was known to be"), remedy);
    }
    Finding::ok(what, wall.to_string())
}

/// Whether state can be stored in `dir`.
pub fn state_dir(dir: &std::path::Path, probe: &io::Result<StateDirProbe>) -> Finding {
    let (what, dir) = ("state directory", dir.display());
    match probe {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Finding::warn(
            what,
            format!("{dir} does not exist yet"),
            "spoke run creates it; under systemd StateDirectory=spoke does",
        ),
        Err(e) => Finding::fail(what, format!("{dir}: {e}"), "check its file system, and the directories above it"),
        Ok(probe) if !probe.directory => {
            Finding::fail(what, format!("{dir} is not a directory"), "make it a directory, or correct node.state_dir")
        }
        Ok(probe) if !probe.writable => Finding::fail(
            what,
            format!("{dir} is not writable by this user, or its file system is read-only"),
            "make the user of the service the owner of the directory; see `mount` and dmesg for the file system",
        ),
        Ok(probe) if probe.free < MIN_FREE => {
            Finding::fail(what, format!("{dir}: {} KiB free", probe.free / 1024), "free some space: at least 1 MiB")
        }
        Ok(probe) => Finding::ok(what, format!("{dir}: {} MiB free", probe.free >> 20)),
    }
}

/// Whether a key is available and protected.
pub fn key(probe: &KeyProbe) -> Finding {
    let what = probe.what.as_str();
    match &probe.result {
        Ok(detail) => match &probe.owner_mismatch {
            None => Finding::ok(what, detail),
            Some(m) => Finding::warn(
                what,
                format!(
                    "{} belongs to user {}, the state directory to user {}",
                    m.file.display(),
                    m.file_uid,
                    m.dir_uid
                ),
                format!("chown --reference={} {}", m.dir.display(), m.file.display()),
            ),
        },
        Err(KeyError::Missing { origin: origin @ KeySource::File(_), .. }) if probe.generated => {
            Finding::ok(what, format!("{origin} does not exist yet; generated at the first run"))
        }
        Err(KeyError::Missing { origin: origin @ KeySource::Credential(_), .. }) if !probe.has_credentials => {
            Finding::ok(what, format!("{origin} is passed to the service only and cannot be read here"))
        }
        Err(e) => Finding::fail(what, ErrorChain(e).to_string(), key_remedy(e)),
    }
}

fn key_remedy(e: &KeyError) -> String {
    match e {
        KeyError::Disk(DiskError::TooOpen { path, .. }) => format!("chmod 600 {}", path.display()),
        KeyError::Disk(_) => "make it readable by the user that runs spoke".to_owned(),
        KeyError::NotAKey(_) => {
            "put a key there (spoke key generate), or move it away to have one generated".to_owned()
        }
        KeyError::DamagedIdentity(_) => {
            "put its backup there; without one, enrol again under the same name (docs/fleet.md)".to_owned()
        }
        KeyError::NotAUrl(_) => "write one line with the URL".to_owned(),
        KeyError::Missing { remedy, .. } => (*remedy).to_owned(),
        KeyError::NotOurs(_) => "change it at its source, or use a file".to_owned(),
        KeyError::Random(_) => "wait until the kernel has gathered randomness".to_owned(),
    }
}

/// Whether the hub's name has addresses.
pub fn dns(endpoint: &HostPort, lookup: &Lookup) -> Finding {
    let what = format!("DNS {}", endpoint.host);
    match &lookup.addresses {
        Ok(addresses) => {
            let shown: Vec<String> = addresses.iter().map(|a| a.ip().to_string()).collect();
            Finding::ok(what, format!("{} ({} ms)", shown.join(" "), lookup.took.as_millis()))
        }
        Err(e) => Finding::fail(what, e.to_string(), "check /etc/resolv.conf and the name, or write the hub's address"),
    }
}

/// Whether the machine has a way to a hub's address; `None`: it has, or that cannot be read.
pub fn way_out(to: IpAddr, way: Option<Path>) -> Option<Finding> {
    let code = match way? {
        Path::Via { carrier: true, .. } => return None,
        Path::Via { carrier: false, .. } => {
            let detail = "the interface that the route leads to has no carrier";
            return Some(Finding::fail(format!("route to {to}"), detail, "check its cable, Wi-Fi or modem (ip link)"));
        }
        Path::NoRoute => Code::NoRoute,
        Path::NoAddress => Code::NoAddress,
        Path::NoCarrier => Code::NoCarrier,
    };
    let (detail, remedy) = code.detail().split_once(": ")?;
    Some(Finding::fail(format!("route to {to}"), detail, remedy))
}

/// Whether IPv6 works on an interface that is to have an IPv6 address.
pub fn ipv6(interface: &IfName, wanted: bool, disabled: bool) -> Option<Finding> {
    let code = spoke_model::condition::Code::Ipv6Disabled;
    (wanted && disabled).then(|| {
        Finding::fail(
            code.as_str(),
            format!("IPv6 is disabled, and {interface} is to have IPv6 addresses"),
            code.remedy(),
        )
    })
}

/// Whether packets to the hub's addresses leave the machine, are not refused, and are large enough.
///
/// A WireGuard port does not answer unknown peers, so the absence of a refusal is the best possible result. One usable
/// address suffices for the tunnel: then failures at others are warnings.
pub fn udp_paths(probes: &[(SocketAddr, PathProbe)], tunnel_mtu: u32) -> Vec<Finding> {
    let usable = probes.iter().any(|(_, p)| matches!(p, PathProbe::Sent { .. }));
    let mut out = Vec::new();
    for (hub, probe) in probes {
        let what = format!("UDP {hub}");
        let mut finding = match probe {
            PathProbe::Sent { .. } => Finding::ok(what, "sent, and not refused"),
            PathProbe::Refused => Finding::fail(
                what,
                "the hub's host refuses the port",
                "start the hub, or correct the port of its endpoint",
            ),
            PathProbe::Unsent(e) => Finding::fail(
                what,
                format!("cannot be reached: {e}"),
                "check the link, the address and the default route (ip route get)",
            ),
        };
        if usable && finding.level == Level::Fail {
            finding.level = Level::Warn;
        }
        out.push(finding);
        if let PathProbe::Sent { mtu: Some(path) } = probe {
            out.push(mtu(*hub, *path, tunnel_mtu));
        }
    }
    out
}

/// Whether a full packet of the tunnel fits the path's MTU, in bytes.
fn mtu(hub: SocketAddr, path: u32, tunnel_mtu: u32) -> Finding {
    // WireGuard's 32 bytes and UDP's 8, on top of IPv4's 20 or IPv6's 40.
    let overhead = if hub.is_ipv4() { 60 } else { 80 };
    let (what, need) = (format!("MTU to {}", hub.ip()), tunnel_mtu + overhead);
    if path >= need {
        return Finding::ok(what, format!("{path} bytes; the tunnel needs {need}"));
    }
    Finding::warn(
        what,
        format!("{path} bytes; the tunnel's {tunnel_mtu} need {need}"),
        format!("set mtu = {} on the interface, or leave it out", path.saturating_sub(overhead).max(1280)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn hub(last: u8) -> SocketAddr {
        ([192, 0, 2, last], 51820).into()
    }

    #[test]
    fn missing_wireguard_fails_with_a_remedy() {
        let probe = |supported, module_installed| WireguardProbe { release: "6.1".into(), supported, module_installed };
        assert_eq!(wireguard(&probe(Ok(true), false)).level, Level::Ok);
        let unloaded = wireguard(&probe(Ok(false), true));
        assert!(unloaded.level == Level::Fail && unloaded.remedy.unwrap().contains("modprobe"));
        let absent = wireguard(&probe(Ok(false), false));
        assert!(absent.level == Level::Fail && absent.remedy.unwrap().contains("5.6"));
    }

    #[test]
    fn each_missing_capability_is_named() {
        assert_eq!(privileges(&Ok(Vec::new())).level, Level::Ok);
        let lacking = privileges(&Ok(vec!["CAP_NET_ADMIN", "CAP_NET_RAW"]));
        assert!(lacking.level == Level::Fail && lacking.detail.contains("CAP_NET_ADMIN and CAP_NET_RAW"));
    }

    #[test]
    fn clock_that_is_wrong_by_a_day_fails() {
        assert_eq!(clock(Wall(4), Wall(5), false).level, Level::Fail);
        assert_eq!(clock(Wall(5), Wall(5), true).level, Level::Fail);
        assert_eq!(clock(Wall(5), Wall(5), false).level, Level::Ok);
    }

    #[test]
    fn state_directory_needs_space_and_write_access() {
        let level = |probe| state_dir(std::path::Path::new("/x"), &probe).level;
        let good = StateDirProbe { directory: true, writable: true, free: MIN_FREE };
        assert_eq!(level(Ok(good)), Level::Ok);
        assert_eq!(level(Ok(StateDirProbe { free: MIN_FREE - 1, ..good })), Level::Fail);
        assert_eq!(level(Ok(StateDirProbe { writable: false, ..good })), Level::Fail);
        assert_eq!(level(Ok(StateDirProbe { directory: false, ..good })), Level::Fail);
        assert_eq!(level(Err(io::ErrorKind::NotFound.into())), Level::Warn);
        assert_eq!(level(Err(io::ErrorKind::PermissionDenied.into())), Level::Fail);
    }

    #[test]
    fn missing_key_file_fails_unless_it_is_generated() {
        let missing = |generated| KeyProbe {
            what: "key of wg0".into(),
            result: Err(KeyError::Missing { origin: KeySource::File("/x".into()), remedy: "put it there" }),
            generated,
            has_credentials: false,
            owner_mismatch: None,
        };
        assert_eq!(key(&missing(true)).level, Level::Ok);
        assert_eq!(key(&missing(false)).remedy.as_deref(), Some("put it there"));
    }

    #[test]
    fn one_usable_address_turns_failures_into_warnings() {
        let refused = (hub(1), PathProbe::Refused);
        assert_eq!(udp_paths(std::slice::from_ref(&refused), 1280)[0].level, Level::Fail);
        let found = udp_paths(&[refused, (hub(2), PathProbe::Sent { mtu: None })], 1280);
        assert_eq!(found.iter().map(|f| f.level).collect::<Vec<_>>(), [Level::Warn, Level::Ok]);
    }

    #[test]
    fn missing_way_out_names_its_cause() {
        let via = |carrier| Path::Via { link: 2, carrier, carrier_changes: 0, source: None, gateway: None };
        let found = |way| way_out(hub(1).ip(), Some(way)).map(|f| (f.level, f.detail));
        assert!(found(via(true)).is_none() && way_out(hub(1).ip(), None).is_none());
        for (way, cause) in [
            (via(false), "has no carrier"),
            (Path::NoCarrier, "no network interface has a carrier"),
            (Path::NoAddress, "no network interface has an address"),
            (Path::NoRoute, "there is no route"),
        ] {
            let (level, detail) = found(way).unwrap();
            assert!(level == Level::Fail && detail.contains(cause), "{detail}");
        }
    }

    #[test]
    fn narrow_path_suggests_an_mtu() {
        assert_eq!(mtu(hub(1), 1340, 1280).level, Level::Ok);
        let narrow = mtu(hub(1), 1400, 1420);
        assert!(narrow.level == Level::Warn && narrow.remedy.unwrap().contains("mtu = 1340"));
    }

    #[test]
    fn failed_look_up_fails() {
        let endpoint: HostPort = "hub.invalid:51820".parse().unwrap();
        let lookup = Lookup { addresses: Err(io::Error::other("no such name")), took: Duration::ZERO };
        assert_eq!(dns(&endpoint, &lookup).level, Level::Fail);
        let lookup = Lookup { addresses: Ok(vec![hub(1)]), took: Duration::from_millis(3) };
        assert_eq!(dns(&endpoint, &lookup).detail, "192.0.2.1 (3 ms)");
    }
}
