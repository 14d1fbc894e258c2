//! Addresses on both databases: preferences, leases, quarantine, changes of pools.
use crate::database::{Kind, open};
use crate::fixture::{NOW, document, hub, join, network, open_with_network, operator, request, token};
use spoke_control::ipam::Pool;
use spoke_control::registry::enrol::{Enrolled, enrol};
use spoke_control::registry::{RegistryError, networks, nodes};
use spoke_control::store::lease::LeaseError;
use spoke_control::store::network::{Access, Network};
use std::collections::BTreeSet;
use std::net::IpAddr;

crate::on_both_databases![
    concurrent_enrolments_get_different_addresses,
    exhausted_pool_and_quarantine_refuse_leases,
    leases_match_the_pool_model,
    pool_cannot_shrink_below_its_leases,
    addresses_survive_pool_changes,
    random_leases_and_releases_stay_disjoint,
];

async fn concurrent_enrolments_get_different_addresses(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/22", |n| n.pool6 = Some("fd00:8::/64".parse().unwrap())).await;
    let token = token(&store, 1000).await;
    let mut joining = tokio::task::JoinSet::new();
    for i in 0..120 {
        let (store, token) = (store.clone(), token.clone());
        joining.spawn(async move {
            loop {
                match join(&store, &format!("edge-{i}"), &token).await {
                    Ok(config) => break config,
                    // On a slow machine the queue for the write lock is longer than the timeout: a device repeats its request.
                    Err(RegistryError::Store(e)) if e.is_transient() => {}
                    Err(e) => panic!("{e}"),
                }
            }
        });
    }
    let all = joining.join_all().await;
    let four: BTreeSet<IpAddr> = all.iter().map(|c| c.assigned_ip).collect();
    let six: BTreeSet<IpAddr> = all.iter().filter_map(|c| c.assigned_ip6).collect();
    assert_eq!((four.len(), six.len()), (120, 120));
    assert_eq!(all[0].subnet_mask, "255.255.252.0");
    let mut tx = store.read().await.unwrap();
    let field = tx.network("field").await.unwrap().unwrap();
    let figures = tx.pool_stats(&field).await.unwrap();
    assert_eq!((figures.total_addresses, figures.allocated_addresses, figures.available_addresses), (1022, 120, 902));
}

async fn exhausted_pool_and_quarantine_refuse_leases(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/29", |n| {
        n.reserved = vec!["10.8.0.1".parse().unwrap()];
        n.quarantine_secs = 60;
    })
    .await;
    let token = token(&store, 100).await;
    for i in 0..5 {
        join(&store, &format!("edge-{i}"), &token).await.unwrap();
    }
    let error = join(&store, "late", &token).await.unwrap_err();
    assert!(matches!(&error, RegistryError::Lease(LeaseError::Exhausted { usable: 5, .. })), "{error}");
    assert!(error.to_string().contains("10.8.0.0/29"), "{error}");
    let id = "late".parse().unwrap();
    assert!(store.read().await.unwrap().node(&id).await.unwrap().is_none(), "no partial enrolment");

    let gone = join(&store, "edge-3", &token).await.unwrap().assigned_ip;
    nodes::remove(&store, &"edge-3".parse().unwrap(), &operator(), NOW).await.unwrap();
    assert!(join(&store, "late", &token).await.is_err(), "the address is in quarantine");
    let later = |id: &'static str, ms| {
        let (store, token) = (store.clone(), token.clone());
        async move { enrol(&store, &request(id), &token, None, NOW + ms).await }
    };
    assert!(later("late", 59_999).await.is_err());
    let Ok(Enrolled::Active(config)) = later("late", 60_000).await else { panic!("the quarantine is over") };
    assert_eq!(config.assigned_ip, gone);
}

async fn leases_match_the_pool_model(kind: Kind) {
    let (store, _db) = open(kind).await;
    let field = network(&store, "10.8.0.0/20", |n| n.reserved = vec!["10.8.0.1".parse().unwrap()]).await;
    let pool = Pool::new(field.pool4.unwrap(), &field.reserved).unwrap();
    let mut taken = BTreeSet::new();
    let mut tx = store.write().await.unwrap();
    let mut number: u64 = 7;
    for i in 0..3000 {
        // Runs of neighbours and scattered numbers, from a fixed sequence.
        number = if i % 4 == 0 { number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1) } else { number + 1 };
        let Ok(model) = pool.free(pool.preference(number), |from| {
            Ok::<_, std::convert::Infallible>((from..).find(|i| !taken.contains(i)).unwrap())
        });
        let model = model.unwrap();
        taken.insert(model);
        let got = tx.lease(&field, &format!("n{i}").parse().unwrap(), number, NOW).await.unwrap();
        assert_eq!(got[0].addr(), pool.address(model).unwrap(), "lease {i}");
    }
    tx.commit().await.unwrap();
}

async fn pool_cannot_shrink_below_its_leases(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/23", |n| n.access = Access::Nft).await;
    hub(&store, "hub-1", Some("10.8.1.9")).await;
    let shrink = |n: &mut Network| n.pool4 = Some("10.8.0.0/24".parse().unwrap());
    let error = networks::change(&store, "field", shrink, &operator(), NOW).await.unwrap_err().to_string();
    assert!(error.contains("hub-1"), "{error}");
    let grow = |n: &mut Network| n.pool4 = Some("10.8.0.0/22".parse().unwrap());
    networks::change(&store, "field", grow, &operator(), NOW).await.unwrap();
    assert_eq!(document(&store, "hub-1").await.interfaces[0].addresses[0].to_string(), "10.8.1.9/22");
}

async fn addresses_survive_pool_changes(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.1.0/24", |n| n.reserved = vec!["10.8.1.1".parse().unwrap()]).await;
    hub(&store, "hub-1", Some("10.8.1.1")).await;
    let token = token(&store, 100).await;
    let mut before = Vec::new();
    for i in 0..20 {
        before.push(join(&store, &format!("edge-{i}"), &token).await.unwrap().assigned_ip);
    }
    nodes::remove(&store, &"edge-0".parse().unwrap(), &operator(), NOW).await.unwrap();
    let set = |change: &'static dyn Fn(&mut Network)| {
        let store = store.clone();
        async move { networks::change(&store, "field", change, &operator(), NOW).await.map_err(|e| e.to_string()) }
    };
    let stats = |n: Network| {
        let store = store.clone();
        async move { store.read().await.unwrap().pool_stats(&n).await.unwrap() }
    };
    let grown = set(&|n| n.pool4 = Some("10.8.0.0/16".parse().unwrap())).await.unwrap();
    assert_eq!(
        document(&store, "hub-1").await.interfaces[0].addresses[0].to_string(),
        "10.8.1.1/16",
        "a reserved address"
    );
    for (i, address) in before.iter().enumerate().skip(1) {
        let now = document(&store, &format!("edge-{i}")).await.interfaces[0].addresses[0].to_string();
        assert_eq!(now, format!("{address}/16"));
    }
    let figures = stats(grown).await;
    assert_eq!((figures.total_addresses, figures.reserved_addresses, figures.allocated_addresses), (65_534, 1, 20));
    assert_eq!(figures.available_addresses, 65_513, "a reserved address is not available to nodes");
    let back = set(&|n| n.pool4 = Some("10.8.1.0/24".parse().unwrap())).await.unwrap();
    assert_eq!(stats(back).await.allocated_addresses, 20, "the quarantined address moved with the pool");
    for (i, address) in before.iter().enumerate().skip(1) {
        let now = document(&store, &format!("edge-{i}")).await.interfaces[0].addresses[0].to_string();
        assert_eq!(now, format!("{address}/24"));
    }
    let taken = before[5];
    let error = networks::change(&store, "field", |n| n.reserved.push(taken), &operator(), NOW).await.unwrap_err();
    assert!(error.to_string().contains("edge-5"), "{error}");

    // Nodes that are enrolled get an address of a second pool.
    set(&|n| n.pool6 = Some("fd00:8::/64".parse().unwrap())).await.unwrap();
    let mut six = BTreeSet::new();
    for id in (1..20).map(|i| format!("edge-{i}")).chain(["hub-1".to_owned()]) {
        let addresses = document(&store, &id).await.interfaces[0].addresses.clone();
        assert_eq!(addresses.len(), 2, "{id}");
        assert!(six.insert(addresses[1]), "{addresses:?}");
    }
    let peers = document(&store, "hub-1").await.interfaces[0].peers.clone();
    assert!(peers.iter().all(|p| p.allowed_ips.iter().map(|n| n.prefix_len()).eq([32, 128])), "{peers:?}");
}

async fn random_leases_and_releases_stay_disjoint(kind: Kind) {
    let (store, _db) = open(kind).await;
    let field = network(&store, "10.8.0.0/25", |n| {
        n.reserved = vec!["10.8.0.1".parse().unwrap(), "10.8.0.64".parse().unwrap()];
        n.pool6 = Some("fd00:8::/120".parse().unwrap());
        n.quarantine_secs = 50;
    })
    .await;
    let mut held: std::collections::BTreeMap<usize, Vec<IpAddr>> = Default::default();
    let mut quarantined: std::collections::BTreeMap<usize, (Vec<IpAddr>, i64)> = Default::default();
    let mut rng: u64 = 0x5eed;
    let mut exhausted = 0;
    let mut tx = store.write().await.unwrap();
    for step in 0..2500i64 {
        rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (now, who) = (NOW + step * 1000, (rng >> 33) as usize % 180);
        quarantined.retain(|_, (_, until)| *until > now);
        let id = format!("n{who}").parse().unwrap();
        if held.contains_key(&who) && (rng >> 20).is_multiple_of(3) {
            tx.end_leases(&field, &id, now).await.unwrap();
            quarantined.insert(who, (held.remove(&who).unwrap(), now + 50_000));
            continue;
        }
        match tx.lease(&field, &id, rng >> 40, now).await {
            Ok(got) => {
                let got: Vec<IpAddr> = got.iter().map(ipnet::IpNet::addr).collect();
                assert_eq!(got.len(), 2);
                if let Some(before) = held.get(&who) {
                    assert_eq!(&got, before, "a lease is kept");
                } else if let Some((before, _)) = quarantined.remove(&who) {
                    assert_eq!(got, before, "reserved for it in quarantine");
                }
                for (other, theirs) in held.iter().chain(quarantined.iter().map(|(n, (a, _))| (n, a))) {
                    assert!(*other == who || got.iter().all(|a| !theirs.contains(a)), "{got:?} is {other}'s");
                }
                assert!(got.iter().all(|a| !field.reserved.contains(a)));
                held.insert(who, got);
            }
            Err(LeaseError::Exhausted { usable, .. }) => {
                exhausted += 1;
                assert_eq!(
                    (held.len() + quarantined.len()) as u64,
                    usable,
                    "only when every address is leased or quarantined"
                );
            }
            Err(e) => panic!("{e}"),
        }
    }
    tx.commit().await.unwrap();
    assert!(exhausted > 10, "the pool was exhausted {exhausted} times");
}
