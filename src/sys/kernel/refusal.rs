//! What an errno means: the process's own right, IPv6 that is disabled, a port or a route that is in use.
use super::KernelError;
use super::route::errno;
use ipnet::IpNet;
use rustix::io::Errno;
use rustix::thread::CapabilitySet;
use spoke_model::interface_name::IfName;
use std::io;
use std::path::Path;

/// Whether `CAP_NET_ADMIN` is in the effective set. If that cannot be read it is assumed.
pub(super) fn has_net_admin() -> bool {
    rustix::thread::capabilities(None).map_or(true, |c| c.effective.contains(CapabilitySet::NET_ADMIN))
}

/// The error of a failed observation.
pub(super) fn unreadable(privileged: bool, what: &str, source: io::Error) -> KernelError {
    match errno(&source) {
        Some(Errno::PERM | Errno::ACCESS) if !privileged => KernelError::NoPrivilege,
        Some(Errno::BADF | Errno::CONNREFUSED) => KernelError::Disconnected,
        _ => KernelError::Observe { what: what.to_owned(), source },
    }
}

/// Whether the kernel answers so for an IPv6 address or route where IPv6 is disabled: `EACCES` by sysctl
/// (net/ipv6/addrconf.c, net/ipv6/route.c), the others where the kernel runs without IPv6.
pub(super) const fn is_ipv6_refusal(net: IpNet, errno: Errno) -> bool {
    matches!(net, IpNet::V6(_)) && matches!(errno, Errno::ACCESS | Errno::OPNOTSUPP | Errno::AFNOSUPPORT)
}

/// Whether IPv6 is disabled on a link, by sysctl or in the whole kernel. False where that cannot be read.
pub(super) fn ipv6_is_disabled(link: &IfName) -> bool {
    let sysctl = Path::new("/proc/sys/net");
    match std::fs::read_to_string(sysctl.join(format!("ipv6/conf/{link}/disable_ipv6"))) {
        Ok(value) => value.trim() != "0",
        Err(_) => sysctl.join("ipv4").exists() && !sysctl.join("ipv6").exists(),
    }
}

/// The name of a routing protocol as `ip route` prints it (iproute2's rt_protos).
pub(super) fn protocol_name(protocol: u8) -> String {
    match protocol {
        2 => "kernel".to_owned(),
        3 => "boot".to_owned(),
        4 => "static".to_owned(),
        9 => "ra".to_owned(),
        16 => "dhcp".to_owned(),
        other => other.to_string(),
    }
}

/// The process or the user that has a UDP port. Without the right to look into a process its user is named.
pub(super) fn socket_holder(port: u16) -> String {
    for table in ["/proc/net/udp", "/proc/net/udp6"] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        if let Some((uid, inode)) = text.lines().find_map(|line| socket_of(line, port)) {
            return process_with(&format!("socket:[{inode}]"))
                .unwrap_or_else(|| format!("a program of the user with id {uid}"));
        }
    }
    "another program".to_owned()
}

/// Owner and inode of a line of `/proc/net/udp` with that local port.
fn socket_of(line: &str, port: u16) -> Option<(&str, &str)> {
    let mut fields = line.split_ascii_whitespace();
    let (_, hex) = fields.nth(1)?.rsplit_once(':')?;
    if u16::from_str_radix(hex, 16) != Ok(port) {
        return None;
    }
    // Remote address, state, queues, timer, retransmits, uid, timeout, inode.
    let uid = fields.nth(5)?;
    Some((uid, fields.nth(1)?))
}

fn process_with(socket: &str) -> Option<String> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes.filter(|p| p.file_name().to_string_lossy().parse::<u32>().is_ok()).find_map(|process| {
        let mut files = std::fs::read_dir(process.path().join("fd")).ok()?.flatten();
        files.find(|f| std::fs::read_link(f.path()).is_ok_and(|to| to.as_os_str() == socket))?;
        let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
        Some(format!("{} (process {})", name.trim(), process.file_name().to_string_lossy()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holder_of_a_udp_port_is_this_process() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let holder = socket_holder(socket.local_addr().unwrap().port());
        assert!(holder.ends_with(&format!("(process {})", std::process::id())), "{holder}");
        let line =
            "  42: 00000000:CA6C 00000000:0000 07 00000000:00000000 00:00000000 00000000   900        0 5555 2 0 0";
        assert_eq!(socket_of(line, 51_820), Some(("900", "5555")));
        assert_eq!(socket_of(line, 51_821), None);
    }

    #[test]
    fn errno_is_read_as_ipv6_only_for_ipv6() {
        assert!(is_ipv6_refusal("fd00::1/64".parse().unwrap(), Errno::ACCESS));
        assert!(!is_ipv6_refusal("10.0.0.1/24".parse().unwrap(), Errno::ACCESS));
        assert!(!is_ipv6_refusal("fd00::1/64".parse().unwrap(), Errno::EXIST));
    }
}
