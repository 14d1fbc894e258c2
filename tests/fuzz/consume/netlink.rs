//! Datagrams of the kernel: dumps of links, addresses, routes, WireGuard devices and tables. Read or refused, never a panic.

use spoke_sys::kernel::datagram::read;

/// Whether anything in it was understood.
pub(crate) fn consume(datagram: &[u8]) -> bool {
    let found = read(datagram);
    assert!(found.messages <= datagram.len() / 16, "more messages than headers fit");
    assert!(found.allowed_ips <= datagram.len() / 4 && found.peers <= datagram.len() / 36);
    found.links + found.addresses + found.routes + found.peers > 0
}
