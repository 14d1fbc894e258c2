//! The recovery ladder: what to change after a failed attempt. A round has three stages:
//!
//! | stage | tries | waits between attempts |
//! |---|---|---|
//! | sweep | each hub at its first address, then at one of the other family | none |
//! | rest | the other addresses of each hub | backoff |
//! | port | a new local port, then each hub as in the sweep | backoff |
//!
//! Rungs, lowest first:
//!
//! | rung | change | remedy for |
//! |---|---|---|
//! | [`Rung::Address`] | another address of the name, same family | one address of several is dead |
//! | [`Rung::Family`] | an address of the other family | IPv6 (or IPv4) is broken on this network |
//! | [`Rung::Port`] | new random local UDP port | a stuck NAT binding |
//! | [`Rung::Hub`] | another hub | the hub is down |
//! | [`Rung::Rebuild`] | the interface, if we created it | a broken interface |
//! | [`Rung::Again`] | nothing: restart at the best hub | an outage elsewhere |
//!
//! No further rung: a lost WAN never reboots the machine.
use serde::Serialize;
use std::net::SocketAddr;

/// Most addresses of one family that are tried of one name.
pub const MAX_ADDRESSES_PER_FAMILY: usize = 4;

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
    /// Another hub.
    Hub,
    /// Recreated interface.
    Rebuild,
    /// Restart at the best hub.
    Again,
}

impl Rung {
    /// Every rung, lowest first.
    pub const ALL: [Self; 6] = [Self::Address, Self::Family, Self::Port, Self::Hub, Self::Rebuild, Self::Again];

    /// As in JSON and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Family => "family",
            Self::Port => "port",
            Self::Hub => "hub",
            Self::Rebuild => "rebuild",
            Self::Again => "again",
        }
    }

    /// The reason, for logs.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Address => "no reply: trying another address of the hub's name",
            Self::Family => "no reply at an address of this family: trying the other family",
            Self::Port => "no reply at any address: trying a new local port, in case a NAT binding is stuck",
            Self::Hub => "no reply from this hub: trying another one",
            Self::Rebuild => "no reply for hours, or the interface sends nothing: recreating the interface",
            Self::Again => "no reply from any hub: restarting at the best one",
        }
    }
}

/// What to try next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try this address of the current hub; reached by this rung, if any.
    Try(SocketAddr, Option<Rung>),
    /// Nothing is left at this hub in this stage: call [`Ladder::seek`].
    Exhausted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Sweep,
    Rest,
    Port,
}

/// What a round has tried of a hub.
#[derive(Clone, Debug, Default)]
struct Tried {
    /// The sweep is over for this hub.
    swept: bool,
    /// The stage is over for this hub.
    done: bool,
    /// The addresses of the last look-up.
    order: Vec<SocketAddr>,
    addresses: Vec<SocketAddr>,
}

/// Position on the ladder.
#[derive(Clone, Debug)]
pub struct Ladder {
    fixed_port: bool,
    stage: Stage,
    hub: usize,
    hubs: Vec<Tried>,
    /// The port stage has begun and nothing was tried with the new port.
    port_due: bool,
}

impl Ladder {
    /// At the bottom, at the best of `hubs` hubs.
    pub fn new(hubs: usize, fixed_port: bool) -> Self {
        let hubs = vec![Tried::default(); hubs.max(1)];
        Self { fixed_port, stage: Stage::Sweep, hub: 0, hubs, port_due: false }
    }

    /// The current hub.
    pub const fn hub(&self) -> usize {
        self.hub
    }

    /// A hub was not tried in this round: there is no reason to wait.
    pub fn sweeping(&self) -> bool {
        self.stage == Stage::Sweep && self.hubs.iter().any(|h| !h.swept)
    }

    /// Begins a round at `hub`: a session was stable, or the last round has ended.
    pub fn restart(&mut self, hub: usize) {
        self.stage = Stage::Sweep;
        self.hub = hub;
        self.port_due = false;
        self.hubs.iter_mut().for_each(|h| *h = Tried::default());
    }

    /// Begins a round at the best hub, unless one is left untried: a stream of network changes must not hold the ladder
    /// at a dead hub. Returns whether it did.
    pub fn restart_on_change(&mut self) -> bool {
        let restart = !self.sweeping();
        if restart {
            self.restart(0);
        }
        restart
    }

    /// Counts the current hub as tried at `address`.
    pub fn record_tried(&mut self, address: SocketAddr) {
        if let Some(h) = self.hubs.get_mut(self.hub) {
            h.swept = true;
            h.addresses.push(address);
        }
    }

    /// Counts `hub` as tried: its session was lost. Its address is tried again when every other hub was tried.
    pub fn record_lost(&mut self, hub: usize) {
        if let Some(h) = self.hubs.get_mut(hub) {
            h.swept = true;
        }
    }

    /// No address of the current hub is known.
    pub fn record_unresolved(&mut self) {
        if let Some(h) = self.hubs.get_mut(self.hub) {
            (h.swept, h.done) = (true, true);
        }
    }

    /// Moves to a hub at which something is left to try. At the end of a round begins the next one, and returns
    /// [`Rung::Rebuild`] if `rebuild`, else [`Rung::Again`].
    pub fn seek(&mut self, rebuild: bool) -> Option<Rung> {
        let from = self.hub;
        let mut top = None;
        while !self.has_candidate(self.hub) {
            if let Some(next) = (0..self.hubs.len()).find(|h| self.has_candidate(*h)) {
                self.hub = next;
                break;
            }
            match self.stage {
                Stage::Sweep => self.enter(Stage::Rest),
                Stage::Rest if !self.fixed_port => {
                    self.enter(Stage::Port);
                    self.port_due = true;
                    self.hubs.iter_mut().for_each(|h| h.addresses.clear());
                }
                Stage::Rest | Stage::Port => {
                    self.restart(0);
                    top = Some(if rebuild { Rung::Rebuild } else { Rung::Again });
                }
            }
        }
        top.or_else(|| (self.hub != from).then_some(Rung::Hub))
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.hubs.iter_mut().for_each(|h| h.done = false);
        // From the best hub again.
        self.hub = (0..self.hubs.len()).find(|h| self.has_candidate(*h)).unwrap_or(self.hub);
    }

    fn has_candidate(&self, hub: usize) -> bool {
        let Some(h) = self.hubs.get(hub) else { return false };
        match self.stage {
            Stage::Sweep => !h.swept,
            Stage::Rest => !h.done && (h.order.is_empty() || h.order.iter().any(|a| !h.addresses.contains(a))),
            Stage::Port => !h.done,
        }
    }

    /// The next untried one of the current hub's addresses; first `favourite`, the last that worked, if among them.
    pub fn next(&mut self, addresses: &[SocketAddr], favourite: Option<SocketAddr>) -> Next {
        let order = order_addresses(addresses, favourite);
        let stage = self.stage;
        let Some(h) = self.hubs.get_mut(self.hub) else { return Next::Exhausted };
        let untried = |tried: &[SocketAddr]| match stage {
            Stage::Rest => order.iter().find(|a| !tried.contains(a)).copied(),
            // One address of each family.
            Stage::Sweep | Stage::Port => {
                order.iter().find(|a| tried.iter().all(|t| t.is_ipv4() != a.is_ipv4())).copied()
            }
        };
        h.order = order.to_vec();
        let found = untried(&h.addresses);
        let first = h.addresses.first().copied();
        h.addresses.extend(found);
        let over = untried(&h.addresses).is_none();
        h.done |= over;
        h.swept |= over;
        let Some(address) = found else { return Next::Exhausted };
        let rung = match first {
            _ if std::mem::take(&mut self.port_due) => Some(Rung::Port),
            Some(first) if first.is_ipv4() == address.is_ipv4() => Some(Rung::Address),
            Some(_) => Some(Rung::Family),
            None => None,
        };
        Next::Try(address, rung)
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

    /// The next attempt as text.
    fn attempt(l: &mut Ladder, names: &[SocketAddr]) -> String {
        let mut rungs = String::new();
        loop {
            rungs += &l.seek(false).map(|r| format!("{r:?} ")).unwrap_or_default();
            match l.next(names, None) {
                Next::Try(a, rung) => {
                    rungs += &rung.map(|r| format!("{r:?} ")).unwrap_or_default();
                    return format!("{rungs}{} {a}", l.hub());
                }
                Next::Exhausted => {}
            }
        }
    }

    #[test]
    fn rungs_are_taken_in_order() {
        let mut l = Ladder::new(2, false);
        let names = [v6(1), v4(1), v6(2), v4(2)];
        let seen: Vec<_> = (0..13).map(|_| attempt(&mut l, &names)).collect();
        let expected = [
            "0 [2001:db8::1]:51820",
            "Family 0 192.0.2.1:51820",
            "Hub 1 [2001:db8::1]:51820",
            "Family 1 192.0.2.1:51820",
            "Hub Address 0 [2001:db8::2]:51820",
            "Family 0 192.0.2.2:51820",
            "Hub Address 1 [2001:db8::2]:51820",
            "Family 1 192.0.2.2:51820",
            "Hub Port 0 [2001:db8::1]:51820",
            "Family 0 192.0.2.1:51820",
            "Hub 1 [2001:db8::1]:51820",
            "Family 1 192.0.2.1:51820",
            "Again 0 [2001:db8::1]:51820",
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn fixed_port_is_not_renewed() {
        let mut l = Ladder::new(1, true);
        assert_eq!(attempt(&mut l, &[v4(1)]), "0 192.0.2.1:51820");
        assert_eq!(attempt(&mut l, &[v4(1)]), "Again 0 192.0.2.1:51820");
    }

    #[test]
    fn lost_hub_is_tried_after_all_others() {
        let mut l = Ladder::new(3, false);
        l.restart(1);
        l.record_lost(1);
        assert!(l.sweeping());
        let seen: Vec<_> = (0..3).map(|_| attempt(&mut l, &[v4(1)])).collect();
        assert_eq!(seen, ["Hub 0 192.0.2.1:51820", "Hub 2 192.0.2.1:51820", "Hub 1 192.0.2.1:51820"]);
    }

    #[test]
    fn address_that_worked_is_tried_first() {
        let mut l = Ladder::new(1, false);
        assert_eq!(l.next(&[v6(1), v4(1)], Some(v4(1))), Next::Try(v4(1), None));
        l.restart(0);
        assert_eq!(l.next(&[v6(1), v4(2)], Some(v4(1))), Next::Try(v6(1), None), "no longer an address of the name");
    }

    proptest! {
        /// Whatever the look-ups return and however often the network changes, no hub is tried twice before every hub
        /// was tried.
        #[test]
        fn every_hub_is_tried_in_turn(hubs in 1usize..5, fixed: bool, answers in proptest::collection::vec((0u8..4, 0u16..4, any::<bool>()), 200)) {
            let mut l = Ladder::new(hubs, fixed);
            let mut since = vec![0u32; hubs];
            for (a, b, changed) in answers {
                if changed {
                    l.restart_on_change();
                }
                let names: Vec<_> = (0..a).map(v4).chain((0..b).map(v6)).collect();
                l.seek(false);
                since[l.hub()] = 0;
                (0..hubs).filter(|h| *h != l.hub()).for_each(|h| since[h] += 1);
                match l.next(&names, None) {
                    Next::Try(address, _) => prop_assert!(names.contains(&address)),
                    Next::Exhausted => l.record_unresolved(),
                }
                let longest = u32::try_from(hubs * 4 * MAX_ADDRESSES_PER_FAMILY).unwrap();
                prop_assert!(since.iter().all(|n| *n <= longest), "{since:?}");
            }
        }
    }
}
