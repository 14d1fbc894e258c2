//! Fuzz target: bodies of the agent API. Accepted values are within bounds, and accepted text is JSON to serde as well.
#![no_main]

use spoke_model::wireguard::MTU_RANGE;
use libfuzzer_sys::fuzz_target;
use spoke_api::agent::{body, json};
use spoke_change::edit::PeerValues;

fn within_bounds(values: &PeerValues) {
    for net in values.allowed_ips.iter().flatten() {
        assert_eq!(net.trunc(), *net, "host bits");
        let mapped = matches!(net.addr(), std::net::IpAddr::V6(a) if a.to_ipv4_mapped().is_some());
        assert!(!mapped, "IPv4 as IPv6");
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, text)) = data.split_first() else { return };
    let whole = json::parse(text);
    if let Ok(value) = &whole {
        let other: serde_json::Value = serde_json::from_slice(text).expect("JSON to serde as well");
        assert_eq!(*value, other);
    }
    let accepted = match kind % 8 {
        0 => body::new_peer(text).map(|(peer, _)| within_bounds(&peer.values)).is_ok(),
        1 => body::peer_values(text).map(|((values, _), _)| within_bounds(&values)).is_ok(),
        2 => body::syncconf(text).is_ok(),
        3 => body::device(text).map(|(d, _)| assert!(d.mtu.is_none_or(|m| m == 0 || MTU_RANGE.contains(&m)))).is_ok(),
        4 => body::bare(text).is_ok() && !text.is_empty(),
        5 => body::generation(text).is_ok(),
        6 => body::rollback(text).is_ok() && !text.is_empty(),
        _ => body::reconcile(text).is_ok() && !text.is_empty(),
    };
    assert!(!accepted || whole.is_ok_and(|v| v.is_object()), "accepted without an object");
});
