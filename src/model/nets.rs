//! Sets of networks, as allowed-ips: usually one, rarely changed, copied with every state.
//!
//! Sorted in one shared allocation: a copy is free, where a tree takes 200 bytes for one network. With ten thousand
//! peers in desired, observed and API state this is 24 MiB instead of 70.
use super::key::PublicKey;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// A set of networks.
#[derive(Clone, Default)]
pub struct Nets(Arc<[IpNet]>);

impl Nets {
    /// The networks in ascending order.
    pub fn iter(&self) -> std::slice::Iter<'_, IpNet> {
        self.0.iter()
    }

    /// Number of networks.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `net` itself is in the set; a subnet of a member is not.
    pub fn contains(&self, net: &IpNet) -> bool {
        self.0.binary_search(net).is_ok()
    }

    /// Whether every network is in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.iter().all(|n| other.contains(n))
    }

    /// The difference.
    pub fn without(&self, other: &Self) -> Self {
        self.filtered(|n| !other.contains(n))
    }

    /// The union.
    pub fn and(&self, other: &Self) -> Self {
        self.iter().chain(other.iter()).copied().collect()
    }

    /// The networks for which `keep` is true; shares the memory if that is all.
    pub fn filtered(&self, mut keep: impl FnMut(&IpNet) -> bool) -> Self {
        if self.iter().all(&mut keep) {
            return self.clone();
        }
        Self(self.iter().filter(|n| keep(n)).copied().collect())
    }
}

impl PartialEq for Nets {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Eq for Nets {}

impl fmt::Debug for Nets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl FromIterator<IpNet> for Nets {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let mut list: Vec<IpNet> = nets.into_iter().collect();
        list.sort_unstable();
        list.dedup();
        Self(list.into())
    }
}

impl<const N: usize> From<[IpNet; N]> for Nets {
    fn from(nets: [IpNet; N]) -> Self {
        nets.into_iter().collect()
    }
}

impl From<BTreeSet<IpNet>> for Nets {
    fn from(nets: BTreeSet<IpNet>) -> Self {
        Self(nets.into_iter().collect())
    }
}

impl<'a> IntoIterator for &'a Nets {
    type Item = &'a IpNet;
    type IntoIter = std::slice::Iter<'a, IpNet>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Serialize for Nets {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self)
    }
}

impl<'de> Deserialize<'de> for Nets {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        BTreeSet::deserialize(d).map(Self::from)
    }
}

/// The peer of each network.
#[derive(Clone, Debug, Default)]
pub struct Holders(Vec<(IpNet, PublicKey)>);

impl Holders {
    /// The networks of these peers.
    pub fn of<'a>(peers: impl IntoIterator<Item = (&'a PublicKey, &'a Nets)>) -> Self {
        let mut list: Vec<(IpNet, PublicKey)> =
            peers.into_iter().flat_map(|(key, nets)| nets.iter().map(move |n| (*n, *key))).collect();
        list.sort_unstable();
        Self(list)
    }

    /// A network that two peers have, and the two.
    pub fn conflict(&self) -> Option<(IpNet, PublicKey, PublicKey)> {
        self.0.windows(2).find_map(|pair| match pair {
            [(net, first), (again, second)] if net == again => Some((*net, *first, *second)),
            _ => None,
        })
    }

    /// A network inside one of another peer, and the two peers; unless `known` of both.
    pub fn nested(&self, known: impl Fn(&IpNet, &PublicKey) -> bool) -> Option<[(IpNet, PublicKey); 2]> {
        // In order of first address, `open` holds the networks that contain the current one.
        let mut open: Vec<(IpNet, PublicKey)> = Vec::new();
        for (net, key) in &self.0 {
            open.retain(|(o, _)| o.contains(net));
            let old = known(net, key);
            if let Some(outer) = open.iter().rev().find(|(o, k)| k != key && !(old && known(o, k))) {
                return Some([(*net, *key), *outer]);
            }
            open.push((*net, *key));
        }
        None
    }

    /// The peer that has exactly this network.
    pub fn get(&self, net: &IpNet) -> Option<PublicKey> {
        let at = self.0.partition_point(|(n, _)| n < net);
        self.0.get(at).filter(|(n, _)| n == net).map(|(_, key)| *key)
    }
}

/// Iterates two maps in step, in the order of their keys: linear, unlike a look-up of each key.
pub fn side_by_side<'a, K: Ord, A, B>(
    a: &'a BTreeMap<K, A>,
    b: &'a BTreeMap<K, B>,
) -> impl Iterator<Item = (&'a K, Option<&'a A>, Option<&'a B>)> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (a.peek(), b.peek()) {
            (Some((x, _)), Some((y, _))) => x.cmp(y),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        let left = if order.is_le() { a.next() } else { None };
        let right = if order.is_ge() { b.next() } else { None };
        let key = left.map(|(k, _)| k).or(right.map(|(k, _)| k))?;
        Some((key, left.map(|(_, v)| v), right.map(|(_, v)| v)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set() -> impl Strategy<Value = BTreeSet<IpNet>> {
        let net = (0u8..6, 8u8..=32).prop_map(|(n, len)| IpNet::new([10, n, 0, 0].into(), len).unwrap());
        proptest::collection::btree_set(net, 0..6)
    }

    proptest! {
        #[test]
        fn nets_behave_like_a_set(a in set(), b in set()) {
            let (x, y) = (Nets::from(a.clone()), b.iter().rev().chain(&b).copied().collect::<Nets>());
            prop_assert!(x.iter().eq(&a) && y.iter().eq(&b));
            prop_assert_eq!(x == y, a == b);
            prop_assert_eq!(x.is_subset(&y), a.is_subset(&b));
            prop_assert!(x.without(&y).iter().eq(a.difference(&b)));
            prop_assert!(x.and(&y).iter().eq(a.union(&b)));
            prop_assert!(b.iter().all(|n| x.contains(n) == a.contains(n)));
            prop_assert_eq!((x.len(), x.is_empty()), (a.len(), a.is_empty()));
            let text = serde_json::to_string(&x).unwrap();
            prop_assert_eq!(&text, &serde_json::to_string(&a).unwrap());
            prop_assert_eq!(serde_json::from_str::<Nets>(&text).unwrap(), x);
        }

        #[test]
        fn holders_find_owner_and_conflict(sets in proptest::collection::btree_map(0u8..20, set(), 0..5)) {
            let peers: Vec<_> = sets.iter().map(|(k, nets)| (PublicKey([*k; 32]), Nets::from(nets.clone()))).collect();
            let holders = Holders::of(peers.iter().map(|(k, n)| (k, n)));
            let have = |net: &IpNet| peers.iter().filter(|(_, n)| n.contains(net)).map(|(k, _)| *k).collect::<Vec<_>>();
            let all: BTreeSet<IpNet> = sets.values().flatten().copied().collect();
            prop_assert!(all.iter().all(|net| holders.get(net) == have(net).first().copied()));
            prop_assert_eq!(holders.get(&"192.0.2.0/24".parse().unwrap()), None);
            let twice = all.iter().find(|net| have(net).len() > 1).map(|net| (*net, have(net)[0], have(net)[1]));
            prop_assert_eq!(holders.conflict(), twice);
        }

        #[test]
        fn side_by_side_equals_look_ups(
            a in proptest::collection::btree_map(0u8..30, 0u8..3, 0..12),
            b in proptest::collection::btree_map(0u8..30, 0u8..3, 0..12),
        ) {
            let keys: BTreeSet<&u8> = a.keys().chain(b.keys()).collect();
            let each: Vec<_> = keys.into_iter().map(|k| (k, a.get(k), b.get(k))).collect();
            prop_assert_eq!(side_by_side(&a, &b).collect::<Vec<_>>(), each);
        }
    }
}
