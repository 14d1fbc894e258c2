//! The recovery ladder: what to change after a failed attempt. Rungs, lowest first:
//!
//! | rung | change | remedy for |
//! |---|---|---|
//! | [`Rung::Address`] | another address of the name, same family | one address of several is dead |
//! | [`Rung::Family`] | an address of the other family | IPv6 (or IPv4) is broken on this network |
//! | [`Rung::Port`] | new random local UDP port, then each family once more | a stuck NAT binding |
//! | [`Rung::Hub`] | the best untried hub | the hub is down |
//! | [`Rung::Rebuild`] | the interface, if we created it | a broken interface |
//! | [`Rung::Again`] | nothing: restart at the best hub | an outage elsewhere |
//!
//! No further rung: a lost WAN never reboots the machine.
use serde::Serialize;
use spoke_model::time::Boot;
use std::net::SocketAddr;
use std::time::Duration;

/// Most addresses of one family that are tried of one name.
pub const MAX_ADDRESSES_PER_FAMILY: usize = 4;

/// Shortest interval of rebuilds. Recreating the interface disturbs what is bound to it and repairs only a rare fault.
pub const REBUILD_EVERY: Duration = Duration::from_secs(3600);

/// A step of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rung {
    /// Another address of the name.
    Address,
    /// The other address family.
    Family,
    /// A new random local port.
    Port,
    /// The next hub.
    Hub,
    /// Recreated interface.
    Rebuild,
    /// Restart at the best hub.
    Again,
}

impl Rung {
    /// Every rung, lowest first.
    pub const ALL: [Self; 6] = [Self::Address, Self::Family, Self::Port, Self::Hub, Self::Rebuild, Self::Again];

    /// The reason, for logs.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Address => "no reply: trying another address of the hub's name",
            Self::Family => "no reply at any address of this family: trying the other family",
            Self::Port => "no reply at any address: trying a new local port, in case a NAT binding is stuck",
            Self::Hub => "no reply from this hub: trying the next one",
            Self::Rebuild => "no reply from any hub: recreating the interface",
            Self::Again => "no reply from any hub: restarting at the best one",
        }
    }
}

/// What to try next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try this address of the current hub; reached by this rung, if any.
    Try(SocketAddr, Option<Rung>),
    /// No address left at this hub: call [`Ladder::advance`].
    Exhausted,
}

/// Position on the ladder.
#[derive(Clone, Debug)]
pub struct Ladder {
    hub: usize,
    fixed_port: bool,
    /// Hubs exhausted in this round.
    done: Vec<bool>,
    /// Addresses tried since hub or port changed, in order.
    tried: Vec<SocketAddr>,
    /// The port was renewed for this hub.
    ported: bool,
    /// An address was tried in this round; without one a rebuild is pointless.
    attempted: bool,
    rebuilt_at: Option<Boot>,
}

impl Ladder {
    /// At the bottom, at the best of `hubs` hubs.
    pub fn new(hubs: usize, fixed_port: bool) -> Self {
        Self {
            hub: 0,
            fixed_port,
            done: vec![false; hubs],
            tried: Vec::new(),
            ported: false,
            attempted: false,
            rebuilt_at: None,
        }
    }

    /// The current hub.
    pub const fn hub(&self) -> usize {
        self.hub
    }

    /// Returns to the bottom at `hub`: a session was stable, or the network has changed.
    pub fn restart(&mut self, hub: usize) {
        self.hub = hub;
        self.done.fill(false);
        self.attempted = false;
        self.start_hub();
    }

    fn start_hub(&mut self) {
        self.tried.clear();
        self.ported = false;
    }

    /// Counts `address` as tried.
    pub fn record_tried(&mut self, address: SocketAddr) {
        self.tried.push(address);
        self.attempted = true;
    }

    /// The next untried one of the name's current addresses; first `favourite`, the last that worked, if among them.
    pub fn next(&mut self, addresses: &[SocketAddr], favourite: Option<SocketAddr>) -> Next {
        let order = order_addresses(addresses, favourite);
        if let Some(address) = self.untried(&order) {
            let rung = self
                .tried
                .first()
                .map(|first| if first.is_ipv4() == address.is_ipv4() { Rung::Address } else { Rung::Family });
            self.record_tried(address);
            return Next::Try(address, rung);
        }
        let Some(first) = order.first().filter(|_| !self.ported && !self.fixed_port) else { return Next::Exhausted };
        self.ported = true;
        self.tried.clear();
        self.record_tried(*first);
        Next::Try(*first, Some(Rung::Port))
    }

    fn untried(&self, order: &[SocketAddr]) -> Option<SocketAddr> {
        // All addresses of the first family before the other family.
        let family = self.tried.first().or(order.first())?.is_ipv4();
        let same = order.iter().filter(|a| a.is_ipv4() == family);
        let other = order.iter().filter(|a| a.is_ipv4() != family);
        let fresh = |a: &&SocketAddr| !self.tried.contains(a);
        if self.ported {
            // With a new port, one address of each family.
            let tried_other = self.tried.iter().any(|t| t.is_ipv4() != family);
            return other.copied().find(|_| !tried_other);
        }
        same.clone().find(fresh).or_else(|| other.clone().find(fresh)).copied()
    }

    /// Leaves the current hub for the best one not exhausted, else takes the top rung and restarts at the best one.
    pub fn advance(&mut self, now: Boot) -> Rung {
        if let Some(done) = self.done.get_mut(self.hub) {
            *done = true;
        }
        if let Some(next) = self.done.iter().position(|done| !done) {
            self.hub = next;
            self.start_hub();
            return Rung::Hub;
        }
        let due = self.rebuilt_at.is_none_or(|at| now.since(at) >= REBUILD_EVERY);
        let rebuild = due && self.attempted;
        self.restart(0);
        if rebuild {
            self.rebuilt_at = Some(now);
            return Rung::Rebuild;
        }
        Rung::Again
    }
}

/// The favourite first, then in the resolver's order; without duplicates, bounded per family.
fn order_addresses(
    addresses: &[SocketAddr],
    favourite: Option<SocketAddr>,
) -> heapless::Vec<SocketAddr, { 2 * MAX_ADDRESSES_PER_FAMILY }> {
    let mut order = heapless::Vec::<SocketAddr, { 2 * MAX_ADDRESSES_PER_FAMILY }>::new();
    let first = favourite.filter(|f| addresses.contains(f));
    for address in first.iter().chain(addresses) {
        let of_family = order.iter().filter(|a| a.is_ipv4() == address.is_ipv4()).count();
        if of_family < MAX_ADDRESSES_PER_FAMILY && !order.contains(address) && order.push(*address).is_err() {
            break;
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 51820))
    }

    fn v6(n: u16) -> SocketAddr {
        SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, n], 51820))
    }

    #[test]
    fn rungs_are_taken_in_order() {
        let mut l = Ladder::new(2, false);
        let names = [v6(1), v4(1), v6(2), v4(2)];
        let mut seen = Vec::new();
        for _ in 0..14 {
            match l.next(&names, None) {
                Next::Try(a, rung) => seen.push(format!("{} {a} {rung:?}", l.hub())),
                Next::Exhausted => seen.push(format!("{:?}", l.advance(Boot::from_secs(1)))),
            }
        }
        let expected = [
            "0 [2001:db8::1]:51820 None",
            "0 [2001:db8::2]:51820 Some(Address)",
            "0 192.0.2.1:51820 Some(Family)",
            "0 192.0.2.2:51820 Some(Family)",
            "0 [2001:db8::1]:51820 Some(Port)",
            "0 192.0.2.1:51820 Some(Family)",
            "Hub",
            "1 [2001:db8::1]:51820 None",
            "1 [2001:db8::2]:51820 Some(Address)",
            "1 192.0.2.1:51820 Some(Family)",
            "1 192.0.2.2:51820 Some(Family)",
            "1 [2001:db8::1]:51820 Some(Port)",
            "1 192.0.2.1:51820 Some(Family)",
            "Rebuild",
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn rebuild_needs_a_try_and_is_rate_limited() {
        let mut l = Ladder::new(1, true);
        let t = Boot::from_secs;
        assert_eq!(l.advance(t(0)), Rung::Again, "nothing was tried");
        assert_eq!(l.next(&[v4(1)], None), Next::Try(v4(1), None));
        assert_eq!(l.next(&[v4(1)], None), Next::Exhausted, "a fixed port is not renewed");
        assert_eq!(l.advance(t(60)), Rung::Rebuild);
        for s in [70, 600, 3600] {
            l.next(&[v4(1)], None);
            assert_eq!(l.advance(t(s)), Rung::Again, "at {s} s");
        }
        l.next(&[v4(1)], None);
        assert_eq!(l.advance(t(3660)), Rung::Rebuild);
    }

    #[test]
    fn address_that_worked_is_tried_first() {
        let mut l = Ladder::new(1, false);
        assert_eq!(l.next(&[v6(1), v4(1)], Some(v4(1))), Next::Try(v4(1), None));
        l.restart(0);
        assert_eq!(l.next(&[v6(1), v4(2)], Some(v4(1))), Next::Try(v6(1), None), "no longer an address of the name");
    }

    proptest! {
        /// Whatever the look-ups return, every hub is left after a bounded number of tries and visited equally often.
        #[test]
        fn hubs_are_visited_in_turn(hubs in 1usize..5, fixed: bool, answers in proptest::collection::vec((0u8..4, 0u16..4), 200)) {
            let mut l = Ladder::new(hubs, fixed);
            let mut visits = vec![0u32; hubs];
            let mut at_hub = 0;
            for (i, (a, b)) in answers.into_iter().enumerate() {
                let names: Vec<_> = (0..a).map(v4).chain((0..b).map(v6)).collect();
                match l.next(&names, None) {
                    Next::Try(address, _) => {
                        prop_assert!(names.contains(&address));
                        at_hub += 1;
                        prop_assert!(at_hub <= 4 * MAX_ADDRESSES_PER_FAMILY);
                    }
                    Next::Exhausted => {
                        at_hub = 0;
                        visits[l.hub()] += 1;
                        l.advance(Boot::from_secs(i as u64));
                    }
                }
            }
            let (least, most) = (visits.iter().min().unwrap(), visits.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{visits:?}");
        }
    }
}
