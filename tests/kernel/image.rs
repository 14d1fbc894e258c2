//! The image's firewall on a real kernel: its rules, and what `apply-network` of the image changes in them.

use crate::netns::{Namespace, PlainWireGuard, wire};
use std::net::{SocketAddr, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

/// The board's address in the tunnel and the hub's, in both families.
const PAIRS: [(&str, &str); 2] = [("10.9.0.2", "10.9.0.1"), ("fd09::2", "fd09::1")];
const LIMIT: Duration = Duration::from_secs(60);

fn file(name: &str) -> String {
    format!("{}/../../image/files/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A neighbour on the board's link, the board with the image's firewall, and a hub behind it, with a tunnel between the last two.
struct Stage {
    neighbour: Namespace,
    board: Namespace,
    hub: Namespace,
}

impl Stage {
    fn new() -> Self {
        let stage =
            Self { neighbour: Namespace::new("neighbour"), board: Namespace::new("board"), hub: Namespace::new("hub") };
        let Self { neighbour, board, hub } = &stage;
        wire((board, "lan", "192.168.7.1/24"), (neighbour, "lan", "192.168.7.2/24"));
        board.ip("addr add fd07::1/64 dev lan nodad");
        neighbour.ip("addr add fd07::2/64 dev lan nodad");
        wire((board, "wan", "192.0.2.2/24"), (hub, "wan", "192.0.2.1/24"));
        let near = PlainWireGuard::new(board, "wg0", 51820, "10.9.0.2/24");
        let far = PlainWireGuard::new(hub, "wg0", 51820, "10.9.0.1/24");
        board.ip("addr add fd09::2/64 dev wg0 nodad");
        hub.ip("addr add fd09::1/64 dev wg0 nodad");
        near.peer(&far.public_key, "allowed-ips 10.9.0.0/24,fd09::/64 endpoint 192.0.2.1:51820");
        far.peer(&near.public_key, "allowed-ips 10.9.0.2/32,fd09::2/128");
        // The worst case: a board that forwards.
        board.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        board.run(&format!("nft -f {}", file("etc/nftables.conf")));
        stage
    }

    /// Applies a note of the supervisor.
    fn note(&self, directory: &std::path::Path, text: &str) {
        let note = directory.join("network");
        std::fs::write(&note, text).expect("a note");
        let script = file("usr/lib/spoke/apply-network");
        self.board.run(&format!("sh {script} {} {}", note.display(), directory.display()));
    }

    fn sysctl(&self, name: &str) -> String {
        self.board.run(&format!("sysctl -n {name}")).trim().to_owned()
    }
}

fn socket(namespace: &Namespace, address: &str, port: u16) -> UdpSocket {
    let address = SocketAddr::new(address.parse().expect("an address"), port);
    let socket = namespace.enter(|| UdpSocket::bind(address)).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    socket
}

fn to(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

/// What a socket receives until nothing comes for half a second.
fn received(socket: &UdpSocket) -> Vec<String> {
    let mut all = Vec::new();
    let mut bytes = [0; 64];
    while let Ok((length, _)) = socket.recv_from(&mut bytes) {
        all.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
    }
    all
}

/// Sends until the other end has received it; returns all that came.
fn deliver(from: &UdpSocket, address: &str, port: u16, end: &UdpSocket, text: &str) -> Vec<String> {
    let mut all = Vec::new();
    crate::netns::wait_until(LIMIT, text, || {
        let _ = from.send_to(text.as_bytes(), to(address, port));
        all.extend(received(end));
        all.iter().any(|t| t == text)
    });
    all
}

#[test]
fn neighbour_injects_no_packet_as_the_board() {
    let stage = Stage::new();
    for (board, hub) in PAIRS {
        let own = socket(&stage.board, board, 4000);
        let service = socket(&stage.hub, hub, 5000);
        // A connection that the board's firewall knows: packets of it pass as established ones.
        deliver(&own, hub, 5000, &service, "question");
        deliver(&service, board, 4000, &own, "answer");
        let length = if board.contains(':') { 128 } else { 32 };
        let gateway = if board.contains(':') { "fd07::1" } else { "192.168.7.1" };
        stage.neighbour.ip(&format!("addr add {board}/{length} dev lo"));
        stage.neighbour.ip(&format!("route add {hub}/{length} via {gateway}"));
        let forged = socket(&stage.neighbour, board, 4000);
        for _ in 0..5 {
            forged.send_to(b"forged", to(hub, 5000)).expect("sent");
        }
        let came = deliver(&own, hub, 5000, &service, "after");
        assert!(came.iter().all(|t| t == "after"), "{came:?}");
    }
}

#[test]
fn neighbour_gets_no_reply_sent_into_the_tunnel() {
    let stage = Stage::new();
    for (board, hub) in PAIRS {
        let six = board.contains(':');
        let length = if six { 128 } else { 32 };
        let gateway = if six { "fd07::1" } else { "192.168.7.1" };
        let own = socket(&stage.board, board, 4000);
        let service = socket(&stage.hub, hub, 5000);
        deliver(&own, hub, 5000, &service, "question");
        // As the hub, to the board's tunnel address: the echo replies would go to the hub.
        stage.neighbour.ip(&format!("addr add {hub}/{length} dev lo"));
        stage.neighbour.ip(&format!("route add {board}/{length} via {gateway}"));
        let sent = || -> u64 {
            let count = stage.board.run("cat /sys/class/net/wg0/statistics/tx_packets");
            count.trim().parse().expect("a number")
        };
        let before = sent();
        let mut ping = stage.neighbour.command(&format!("ping -c 20 -i 0.02 -W 1 -I {hub} {board}"));
        ping.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("ping");
        let entered = sent() - before;
        assert!(entered < 10, "{entered} packets entered the tunnel");
    }
}

#[test]
fn only_ports_and_forwarding_of_the_supervisors_note_are_open() {
    let stage = Stage::new();
    let directory = tempfile::tempdir().expect("a directory");
    stage.board.run("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
    let open = socket(&stage.board, "192.168.7.1", 51999);
    let closed = socket(&stage.board, "192.168.7.1", 51998);
    let out = socket(&stage.neighbour, "192.168.7.2", 4000);
    let knock = || {
        for port in [51998, 51999] {
            out.send_to(b"knock", to("192.168.7.1", port)).expect("sent");
        }
        (received(&closed).len(), received(&open).len())
    };
    assert_eq!(knock(), (0, 0), "before any note");
    stage.note(directory.path(), "port 51999\n");
    assert_eq!(knock(), (0, 1));
    assert_eq!(
        (stage.sysctl("net.ipv4.ip_forward"), stage.sysctl("net.ipv6.conf.all.forwarding")),
        ("0".into(), "0".into())
    );
    // Lines of another form count for nothing.
    stage.note(directory.path(), "port 51999; flush ruleset\nport 0\nport 99999\nport\nforwarding maybe\nport *\n");
    assert_eq!(knock(), (0, 0));
    stage.note(directory.path(), "port 51999\nport 51998\nforwarding yes\n");
    assert_eq!(knock(), (1, 1));
    assert_eq!(
        (stage.sysctl("net.ipv4.ip_forward"), stage.sysctl("net.ipv6.conf.all.forwarding")),
        ("1".into(), "1".into())
    );
    stage.note(directory.path(), "");
    assert_eq!(knock(), (0, 0));
    assert_eq!(
        (stage.sysctl("net.ipv4.ip_forward"), stage.sysctl("net.ipv6.conf.all.forwarding")),
        ("0".into(), "0".into())
    );
    // What another has switched on stays.
    stage.board.run("sysctl -qw net.ipv4.ip_forward=1");
    stage.note(directory.path(), "forwarding yes\n");
    stage.note(directory.path(), "");
    assert_eq!(stage.sysctl("net.ipv4.ip_forward"), "1");
    let link = directory.path().join("network");
    std::fs::remove_file(&link).expect("removed");
    std::os::unix::fs::symlink("/etc/passwd", &link).expect("a link");
    let script = file("usr/lib/spoke/apply-network");
    stage.board.run(&format!("sh {script} {} {}", link.display(), directory.path().display()));
}

#[test]
fn neighbours_neither_pass_nor_lose_what_is_for_the_board() {
    let stage = Stage::new();
    for (lan, board, tunnel) in [("192.168.7.2", "192.168.7.1", "10.9.0.1"), ("fd07::2", "fd07::1", "fd09::1")] {
        let from = socket(&stage.neighbour, lan, 4100);
        let own = socket(&stage.board, board, 4100);
        // Out and back: replies pass.
        let service = socket(&stage.neighbour, lan, 5100);
        deliver(&own, lan, 5100, &service, "question");
        deliver(&service, board, 4100, &own, "answer");
        stage.neighbour.run(&format!("ping -c 1 -W 5 {board}"));
        // Through the board: nothing passes.
        let length = if lan.contains(':') { 128 } else { 32 };
        stage.neighbour.ip(&format!("route add {tunnel}/{length} via {board}"));
        let end = socket(&stage.hub, tunnel, 5100);
        from.send_to(b"through", to(tunnel, 5100)).expect("sent");
        assert_eq!(received(&end), [""; 0]);
    }
}
