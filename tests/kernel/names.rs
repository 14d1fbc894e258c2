//! Look-ups by the system's resolver against a DNS server that leaves one family without an answer.
use crate::netns::{Namespace, spoke};
use crate::supervisor::{Supervisor, wait_until};
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

const A: u16 = 1;
const AAAA: u16 = 28;

/// Answers `kind` with `address` in the namespace, and nothing else, until the test ends.
fn serve(namespace: &Namespace, kind: u16, address: IpAddr) {
    let socket = namespace.enter(|| UdpSocket::bind("127.0.0.1:53").expect("port 53"));
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut query) {
            if let Some(answer) = answer(&query[..length], kind, address) {
                let _ = socket.send_to(&answer, client);
            }
        }
    });
}

/// RFC 1035 §4: the question again, and one record that points to its name.
fn answer(query: &[u8], kind: u16, address: IpAddr) -> Option<Vec<u8>> {
    let end = 12 + query.get(12..)?.iter().position(|b| *b == 0)? + 5;
    let question = query.get(12..end)?;
    if question[question.len() - 4..question.len() - 2] != kind.to_be_bytes() {
        return None;
    }
    let data = match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    let mut out = query[..2].to_vec();
    // A response with recursion; one question, one answer.
    out.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    out.extend(question);
    out.extend([0xc0, 12]);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1, 0, 0, 0, 60, 0, u8::try_from(data.len()).expect("16 at most")]);
    out.extend(data);
    Some(out)
}

#[test]
fn family_without_an_answer_does_not_hide_the_other() {
    for (kind, address, endpoint) in [(A, "192.0.2.1", "192.0.2.1:51820"), (AAAA, "2001:db8::1", "[2001:db8::1]:51820")]
    {
        let device = Namespace::new("device");
        serve(&device, kind, address.parse().expect("an address"));
        let text = "[[interface]]\nname = \"wg0\"\naddresses = [\"10.9.0.1/24\"]\n[health]\nenabled = false\n[[interface.peer]]\n\
                    public_key = \"AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=\"\nendpoint = \"hub.example.net:51820\"\n\
                    allowed_ips = [\"10.9.0.3/32\"]\n";
        let resolver = tempfile::tempdir().expect("a directory");
        let file = resolver.path().join("resolv.conf");
        std::fs::write(&file, "nameserver 127.0.0.1\n").expect("written");
        let mut node = Supervisor::new(&device, text);
        // The system's resolver reads one file; a mount namespace gives the process its own.
        let script = format!(
            "mount --bind {} /etc/resolv.conf && exec {} --config {} run",
            file.display(),
            spoke(),
            node.path("spoke.toml").display()
        );
        let mut run = device.command("unshare --mount sh -c");
        run.arg(&script);
        node.start_with(run);
        // Twice a round of look-ups; the system's own limit for the missing family is ten seconds for each.
        wait_until(Duration::from_secs(20), "the address of the family that is answered", || {
            device.run("wg show wg0 endpoints").contains(endpoint)
        });
        node.stop();
    }
}
