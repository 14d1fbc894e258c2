//! Address allocation: the arithmetic of a pool, and the preferred host of a node. Pure.
//!
//! A node with token id t prefers the t-th usable host, wrapping at the end, so that a token always leads to the same
//! address; if it is taken, the next free host. Usable hosts are neither the network nor the broadcast address nor reserved
//! (hub, resolver). An *index* is an address's distance from the network address.
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The most hosts of a pool that are used: an IPv6 pool has more than an integer column holds.
const MAX_HOSTS: u64 = 1 << 48;

/// A network's addresses of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    net: IpNet,
    /// First and last index of a host.
    first: u64,
    last: u64,
    /// Indices never leased, all within `first..=last`.
    reserved: BTreeSet<u64>,
}

/// Why a network is not a valid pool.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPool {
    /// Host bits are set.
    #[error("{0} has host bits set")]
    HostBits(IpNet),
    /// A reserved address is not a host of it.
    #[error("{address} is not a host of {net}")]
    NotAHost {
        /// The address.
        address: IpAddr,
        /// The pool.
        net: IpNet,
    },
    /// Every host is reserved.
    #[error("{0} has no address left for a node")]
    Empty(IpNet),
}

impl Pool {
    /// The pool of `net` without the `reserved` addresses.
    pub fn new(net: IpNet, reserved: &[IpAddr]) -> Result<Self, BadPool> {
        if net.trunc() != net {
            return Err(BadPool::HostBits(net));
        }
        let bits = net.max_prefix_len() - net.prefix_len();
        let size = 1u64.checked_shl(bits.into()).unwrap_or(MAX_HOSTS).min(MAX_HOSTS);
        // A /31 (RFC 3021) and a /32 have hosts only; IPv6 has no broadcast, but its first address is the routers'.
        let (first, last) = match net {
            IpNet::V4(_) if bits >= 2 => (1, size - 2),
            IpNet::V6(_) if bits >= 2 => (1, size - 1),
            IpNet::V4(_) | IpNet::V6(_) => (0, size - 1),
        };
        let mut pool = Self { net, first, last, reserved: BTreeSet::new() };
        for address in reserved {
            let index = pool.index(*address).ok_or(BadPool::NotAHost { address: *address, net })?;
            pool.reserved.insert(index);
        }
        if pool.usable() == 0 { Err(BadPool::Empty(net)) } else { Ok(pool) }
    }

    /// Its network.
    pub const fn net(&self) -> IpNet {
        self.net
    }

    /// How many hosts can be leased.
    pub fn usable(&self) -> u64 {
        self.hosts() - self.reserved.len() as u64
    }

    /// How many hosts it has, reserved ones included.
    pub const fn hosts(&self) -> u64 {
        self.last - self.first + 1
    }

    /// The reserved indices.
    pub const fn reserved(&self) -> &BTreeSet<u64> {
        &self.reserved
    }

    /// The index of a host; `None`: not a host of this pool.
    pub fn index(&self, address: IpAddr) -> Option<u64> {
        if !self.net.contains(&address) {
            return None;
        }
        let index = match (self.net.network(), address) {
            (IpAddr::V4(n), IpAddr::V4(a)) => u64::from(u32::from(a) - u32::from(n)),
            (IpAddr::V6(n), IpAddr::V6(a)) => u64::try_from(u128::from(a) - u128::from(n)).ok()?,
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        };
        (self.first..=self.last).contains(&index).then_some(index)
    }

    /// The host with an index; `None`: no such host, or it is reserved.
    pub fn address(&self, index: u64) -> Option<IpAddr> {
        if self.reserved.contains(&index) { None } else { self.host(index) }
    }

    /// The host with an index, reserved or not; `None`: there is none.
    pub fn host(&self, index: u64) -> Option<IpAddr> {
        if !(self.first..=self.last).contains(&index) {
            return None;
        }
        Some(match self.net.network() {
            IpAddr::V4(n) => Ipv4Addr::from(u32::from(n) + u32::try_from(index).ok()?).into(),
            IpAddr::V6(n) => Ipv6Addr::from(u128::from(n) + u128::from(index)).into(),
        })
    }

    /// The index that token id `t` prefers: injective over any [`Pool::usable`] consecutive ids.
    pub fn preference(&self, t: u64) -> u64 {
        let usable = self.usable();
        // Token 1 prefers the first usable host, token 0 the last one.
        let mut index = self.first + (t % usable + usable - 1) % usable;
        for reserved in &self.reserved {
            if *reserved <= index {
                index += 1;
            }
        }
        index
    }

    /// The first index at or after `preference`, wrapping, that is neither reserved nor taken. `None`: exhausted.
    ///
    /// `taken_from(i)` returns the first index at or after `i` that is not taken, which a database answers from its index
    /// without reading the whole pool.
    pub fn free<E>(
        &self,
        preference: u64,
        mut taken_from: impl FnMut(u64) -> Result<u64, E>,
    ) -> Result<Option<u64>, E> {
        let mut search = self.search(preference);
        while let Search::Probe(at) = search.next {
            search.answer(self, taken_from(at)?);
        }
        Ok(match search.next {
            Search::Found(index) => Some(index),
            Search::Probe(_) | Search::Exhausted => None,
        })
    }

    /// Begins a search at `preference`, for callers that wait for each answer.
    pub fn search(&self, preference: u64) -> FreeSearch {
        let start = preference.clamp(self.first, self.last);
        let mut search = FreeSearch { start, wrapped: false, next: Search::Exhausted };
        search.go_to(self, start);
        search
    }
}

/// The next step of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// To be answered: the first index at or after this one that is not taken.
    Probe(u64),
    /// This index is free.
    Found(u64),
    /// No index is free.
    Exhausted,
}

/// A search for a free index; see [`Pool::free`].
#[derive(Clone, Debug)]
pub struct FreeSearch {
    start: u64,
    wrapped: bool,
    /// The next step.
    pub next: Search,
}

impl FreeSearch {
    /// Answers [`Search::Probe`].
    pub fn answer(&mut self, pool: &Pool, not_taken: u64) {
        let Search::Probe(asked) = self.next else { return };
        if not_taken <= asked {
            self.next = Search::Found(asked);
        } else {
            self.go_to(pool, not_taken);
        }
    }

    /// Continues at the first index at or after `index` that is not reserved, wrapping once.
    fn go_to(&mut self, pool: &Pool, mut index: u64) {
        loop {
            while pool.reserved.contains(&index) {
                index += 1;
            }
            if self.wrapped && index >= self.start {
                self.next = Search::Exhausted;
                return;
            }
            if index <= pool.last {
                self.next = Search::Probe(index);
                return;
            }
            self.wrapped = true;
            index = pool.first;
        }
    }
}

/// The number of a node without a token id, from its node id: a node prefers the same address at every enrolment.
pub fn number_of(node: &spoke_model::node_id::NodeId) -> u64 {
    let digest = ring::digest::digest(&ring::digest::SHA256, node.as_str().as_bytes());
    digest.as_ref().iter().take(6).fold(0, |n, b| n << 8 | u64::from(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn pool(net: &str, reserved: &[&str]) -> Pool {
        let reserved: Vec<IpAddr> = reserved.iter().map(|a| a.parse().unwrap()).collect();
        Pool::new(net.parse().unwrap(), &reserved).unwrap()
    }

    fn lease(pool: &Pool, taken: &mut BTreeSet<u64>, t: u64) -> Option<IpAddr> {
        let end = |from: u64| Ok::<_, Infallible>((from..).find(|i| !taken.contains(i)).unwrap());
        let Ok(found) = pool.free(pool.preference(t), end);
        let index = found?;
        assert!(taken.insert(index), "{index} leased twice");
        Some(pool.address(index).expect("a free index is a host"))
    }

    #[test]
    fn token_prefers_its_usable_host_past_254() {
        let p = pool("10.8.0.0/16", &["10.8.0.1", "10.8.0.53"]);
        let at = |t| p.address(p.preference(t)).unwrap().to_string();
        assert_eq!(at(1), "10.8.0.2", "the hub's address is skipped");
        assert_eq!(at(51), "10.8.0.52");
        assert_eq!(at(52), "10.8.0.54", "and the resolver's");
        assert_eq!(at(253), "10.8.0.255", "an ordinary host of a /16");
        assert_eq!(at(254), "10.8.1.0");
        assert_eq!(at(1000), "10.8.3.234");
        assert_eq!(at(65_532), "10.8.255.254");
        assert_eq!(at(65_533), at(1), "wraps past the end");
        assert_eq!(at(0), at(65_532));
    }

    #[test]
    fn small_and_large_pools_have_valid_hosts() {
        assert_eq!(pool("10.0.0.0/30", &[]).usable(), 2);
        assert_eq!(pool("10.0.0.0/31", &[]).usable(), 2);
        assert_eq!(pool("10.0.0.5/32", &[]).address(0), Some("10.0.0.5".parse().unwrap()));
        let v6 = pool("fd00:8::/64", &["fd00:8::1"]);
        assert_eq!(v6.address(v6.preference(1)), Some("fd00:8::2".parse().unwrap()));
        assert!(v6.preference(u64::MAX) < MAX_HOSTS);
        let net: IpNet = "10.0.0.0/31".parse().unwrap();
        let both = ["10.0.0.0".parse().unwrap(), "10.0.0.1".parse().unwrap()];
        assert_eq!(Pool::new(net, &both), Err(BadPool::Empty(net)));
        let outside: IpAddr = "10.9.0.1".parse().unwrap();
        assert_eq!(Pool::new(net, &[outside]), Err(BadPool::NotAHost { address: outside, net }));
        let bits: IpNet = "10.0.0.1/24".parse().unwrap();
        assert_eq!(Pool::new(bits, &[]), Err(BadPool::HostBits(bits)));
    }

    proptest! {
        #[test]
        fn consecutive_tokens_prefer_different_hosts(prefix in 20u8..30, reserved in prop::collection::btree_set(1u32..4, 0..3), from: u32) {
            let net: IpNet = format!("10.8.0.0/{prefix}").parse().unwrap();
            let reserved: Vec<IpAddr> =
                reserved.iter().map(|r| IpAddr::from(Ipv4Addr::from(0x0a08_0000 + r))).filter(|a| net.broadcast() != *a).collect();
            let Ok(p) = Pool::new(net, &reserved) else { return Ok(()) };
            let seen: BTreeSet<u64> = (0..p.usable()).map(|t| p.preference(u64::from(from) + t)).collect();
            prop_assert_eq!(seen.len() as u64, p.usable());
            for index in seen {
                let address = p.address(index).expect("only hosts are preferred");
                prop_assert!(!reserved.contains(&address));
                prop_assert_eq!(p.index(address), Some(index));
            }
        }

        /// For any tokens, no address is leased twice, and every address is leased before the pool is exhausted.
        #[test]
        fn every_host_is_leased_exactly_once(tokens in prop::collection::vec(any::<u64>(), 30), cidr in 27u8..=28, hub in any::<bool>()) {
            let p = pool(&format!("10.8.0.0/{cidr}"), if hub { &["10.8.0.1"] } else { &[] });
            let mut taken = BTreeSet::new();
            let mut given = BTreeSet::new();
            for t in tokens {
                match lease(&p, &mut taken, t) {
                    Some(address) => prop_assert!(given.insert(address)),
                    None => prop_assert_eq!(given.len() as u64, p.usable()),
                }
            }
        }

        #[test]
        fn thousands_of_leases_are_disjoint(seed: u64) {
            let p = pool("10.8.0.0/19", &["10.8.0.1"]);
            let mut taken = BTreeSet::new();
            let given: BTreeSet<_> = (0..3000u64).filter_map(|i| lease(&p, &mut taken, seed.wrapping_mul(i) ^ i)).collect();
            prop_assert_eq!(given.len(), 3000);
        }
    }
}
