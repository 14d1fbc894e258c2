//! Resolution, order and timing of the attempts of one connection.
use super::*;
use proptest::prelude::*;
use std::net::TcpListener;

fn all(text: &str) -> Vec<SocketAddr> {
    text.split_whitespace().map(|a| a.parse().unwrap()).collect()
}

/// What is started when, if no attempt ends.
fn schedule(mut race: Race) -> Vec<(u64, String)> {
    let (mut at, mut out) = (Duration::ZERO, Vec::new());
    loop {
        while let Some(address) = race.start(at) {
            out.push((u64::try_from(at.as_millis()).unwrap(), address.to_string()));
        }
        match race.deadline() {
            Some(next) => at = next,
            None => return out,
        }
    }
}

#[test]
fn families_take_turns_a_quarter_of_a_second_apart() {
    let addresses = all("[2001:db8::1]:1 [2001:db8::2]:1 192.0.2.1:1 192.0.2.2:1 192.0.2.3:1");
    let expected = [
        (0, "[2001:db8::1]:1"),
        (250, "192.0.2.1:1"),
        (500, "[2001:db8::2]:1"),
        (750, "192.0.2.2:1"),
        (1000, "192.0.2.3:1"),
    ];
    assert_eq!(schedule(Race::new(&addresses, None)), expected.map(|(at, a)| (at, a.to_owned())));
    assert_eq!(schedule(Race::new(&addresses, Some(Family::V4)))[0].1, "192.0.2.1:1");
    let only = all("192.0.2.1:1");
    assert_eq!(schedule(Race::new(&only, Some(Family::V6))), [(0, "192.0.2.1:1".to_owned())]);
}

#[test]
fn failed_attempt_is_followed_at_once() {
    let mut race = Race::new(&all("[2001:db8::1]:1 192.0.2.1:1"), None);
    assert!(race.start(Duration::ZERO).is_some() && race.start(Duration::ZERO).is_none());
    race.failed();
    assert!(!race.is_lost() && race.start(Duration::from_millis(1)).is_some());
    race.failed();
    assert!(race.is_lost() && race.deadline().is_none());
    assert!(Race::new(&[], None).is_lost());
}

proptest! {
    #[test]
    fn every_address_gets_its_turn(families in proptest::collection::vec(any::<bool>(), 0..40), v4: Option<bool>) {
        let addresses: Vec<SocketAddr> = families
            .iter()
            .zip(1u16..)
            .map(|(v4, port)| if *v4 { ([192, 0, 2, 1], port).into() } else { ([0u16; 8], port).into() })
            .collect();
        let first = v4.map(|v4| if v4 { Family::V4 } else { Family::V6 });
        let started = schedule(Race::new(&addresses, first));
        // One more where the families share the last turn.
        prop_assert!(started.len() >= addresses.len().min(MAX_ADDRESSES) && started.len() <= MAX_ADDRESSES + 1);
        let distinct: std::collections::BTreeSet<_> = started.iter().map(|(_, a)| a).collect();
        prop_assert_eq!(distinct.len(), started.len());
        if families.contains(&true) && families.contains(&false) {
            let second = |n: usize| started[n].1.starts_with('[');
            prop_assert_ne!(second(0), second(1), "the other family is second");
        }
    }
}

#[test]
fn family_is_remembered_for_ten_minutes() {
    let (families, at) = (Families::default(), |secs: u64| Boot::from_secs(1000 + secs));
    assert_eq!(families.first_at("h", at(0)), None);
    families.remember("h", Family::V4, at(0), false);
    families.remember("h", Family::V4, at(599), false);
    assert_eq!((families.first_at("h", at(599)), families.first_at("other", at(0))), (Some(Family::V4), None));
    assert_eq!(families.first_at("h", at(600)), None, "the resolver's order again, however often it was used");
    families.remember("h", Family::V4, at(700), false);
    families.remember("h", Family::V6, at(701), true);
    assert_eq!(families.first_at("h", at(702)), Some(Family::V6), "a connection over IPv4 carried nothing");
    for n in 0..1000 {
        families.remember(&n.to_string(), Family::V4, at(702), false);
    }
    assert!(families.0.lock().unwrap().len() <= MAX_HOSTS);
}

/// An address on which the kernel drops every SYN: its queue of connections is full.
struct BlackHole {
    address: SocketAddr,
    _listener: socket2::Socket,
    _full: Vec<socket2::Socket>,
}

impl BlackHole {
    fn new(ip: &str) -> Self {
        let any = SocketAddr::new(ip.parse().unwrap(), 0);
        let socket = || {
            let kind = socket2::Type::STREAM;
            socket2::Socket::new(socket2::Domain::for_address(any), kind, Some(socket2::Protocol::TCP)).unwrap()
        };
        let listener = socket();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let fill = |_| {
            let client = socket();
            client.set_nonblocking(true).unwrap();
            let _ = client.connect(&address.into());
            client
        };
        let full = (0..8).map(fill).collect();
        Self { address, _listener: listener, _full: full }
    }
}

#[tokio::test]
async fn black_hole_delays_the_next_address_only() {
    let hole = BlackHole::new("::1");
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [hole.address, server.local_addr().unwrap()];
    let began = tokio::time::Instant::now();
    let stream = connect(&addresses, None).await.unwrap();
    assert_eq!(stream.peer_addr().unwrap(), addresses[1]);
    assert!(began.elapsed() >= ATTEMPT_DELAY, "the first address is a black hole, or this test proves nothing");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let began = tokio::time::Instant::now();
    connect(&addresses, Some(Family::V4)).await.unwrap();
    assert!(began.elapsed() < ATTEMPT_DELAY, "{:?}", began.elapsed());

    let began = tokio::time::Instant::now();
    let stream = tokio::task::spawn_blocking(move || blocking::connect(&addresses, None, None)).await.unwrap().unwrap();
    assert_eq!(stream.peer_addr().unwrap(), addresses[1]);
    assert!(began.elapsed() >= ATTEMPT_DELAY && began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (addresses, within) = ([hole.address, closed], Some(Duration::from_millis(400)));
    let e =
        tokio::task::spawn_blocking(move || blocking::connect(&addresses, None, within)).await.unwrap().unwrap_err();
    assert!(e.kind() == io::ErrorKind::TimedOut && was_refused(&e), "{e}");
    assert!(e.to_string().contains("timed out") && e.to_string().contains("refused"), "{e}");
}

#[tokio::test]
async fn every_failed_address_is_named() {
    let closed = |ip: &str| TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap();
    let addresses = [closed("::1"), closed("127.0.0.1")];
    let began = tokio::time::Instant::now();
    let e = connect(&addresses, None).await.unwrap_err();
    for address in addresses {
        assert!(e.to_string().contains(&format!("{address}: Connection refused")), "{e}");
    }
    let e = blocking::connect(&addresses, None, None).unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::ConnectionRefused);
    assert!(began.elapsed() < ATTEMPT_DELAY, "a refusal is not waited for");
    assert_eq!(connect(&[], None).await.unwrap_err().to_string(), "the host has no address");
}
