//! State documents. What is accepted is signed, for this node, and gives a state that the kernel can have.

use serde_json::value::RawValue;
use spoke_config::Config;
use spoke_config::effective::Effective;
use spoke_enroll::document::{Envelope, Refusal, StateDocument};
use spoke_enroll::settings::{check_compatible, settings};
use spoke_model::key::SecretKey;
use spoke_model::signature::SignKey;
use spoke_net::derive::{Facts, HubPeer, Keys, UplinkChoice, derive};
use spoke_net::state::Desired;
use std::sync::Arc;

const NODE: &str = "edge-1";
/// Before the signed bytes; a change of it makes the seeds unacceptable.
const DOMAIN: &str = "spoke state document\n";

fn signer() -> SignKey {
    SignKey::from_seed(&[1; 32]).unwrap_or_else(|_| unreachable!("a seed"))
}

/// The first byte selects who reads it, the rest is a document or an envelope. Whether it was accepted.
pub(crate) fn consume(data: &[u8]) -> bool {
    let Some((kind, rest)) = data.split_first() else { return false };
    let (Ok(node), Ok(other)) = (NODE.parse(), "edge-2".parse()) else { unreachable!("node ids") };
    let pinned = [signer().public()];
    if kind % 2 == 0 {
        // An envelope of anybody: without the key there is no way in.
        assert!(Envelope::open(rest, &node, &pinned).is_err(), "an unsigned document was accepted");
        return false;
    }
    let Ok(document) = serde_json::from_slice::<Box<RawValue>>(rest) else { return false };
    let signature = signer().sign(format!("{DOMAIN}{}", document.get()).as_bytes());
    // Text, because a value would not keep the bytes.
    let signatures = serde_json::json!([{"key": signer().public(), "signature": signature}]);
    let bytes = format!("{{\"signatures\":{signatures},\"document\":{}}}", document.get()).into_bytes();
    let (envelope, document) = match Envelope::open(&bytes, &node, &pinned) {
        Ok(opened) => opened,
        Err(refusal) => {
            let signed = !matches!(refusal, Refusal::BadSignature { .. });
            assert!(signed, "the signature is of the bytes as sent: {refusal}");
            return false;
        }
    };
    assert!(Envelope::open(&bytes, &other, &pinned).is_err(), "accepted by another node");
    assert!(envelope.verify(&node, &[]).is_err(), "accepted without a pinned key");
    let again: StateDocument = serde_json::from_str(&serde_json::json!(document).to_string())
        .unwrap_or_else(|e| panic!("what was read is written and read again: {e}"));
    assert_eq!(again, document);
    for interface in &document.interfaces {
        let keys = interface.hubs.iter().flat_map(|h| &h.preshared_keys).map(|p| &p.preshared_key);
        for key in keys.chain(interface.peers.iter().filter_map(|p| p.preshared_key.as_ref())) {
            let shown = format!("{document:?}");
            assert!(!shown.contains(key.0.reveal_base64().as_str()), "a preshared key is shown");
        }
    }
    if document.check_generation(7).is_ok() {
        let fine = document.generation > 7 || document.supersedes == Some(7);
        assert!(fine && document.generation != 0, "an older generation was accepted");
    }
    into_force(&document);
    true
}

/// Document to desired state, as the device does it.
fn into_force(document: &StateDocument) {
    for role in ["node", "hub"] {
        let text =
            format!("[node]\nid = \"{NODE}\"\nrole = \"{role}\"\n[control]\nurl = \"https://control.example.net\"\n");
        let Ok(own) = Config::from_text(Some(("spoke.toml", &text)), []) else { unreachable!("a configuration") };
        if check_compatible(&own, document, None).is_err() {
            continue;
        }
        let name = own.interfaces.first().map(|i| i.name.clone()).unwrap_or_else(|| unreachable!("an interface"));
        let set = settings(&own, document);
        let effective = Effective::of(Arc::new(own)).with_document(Some(set));
        let uplink = effective.uplink().and_then(|u| u.hubs.into_iter().next().map(|hub| (u.interface, hub)));
        let choice = uplink.map(|(interface, hub)| {
            let endpoint = None;
            let active = HubPeer { hub: Arc::new(hub), endpoint };
            Arc::new(UplinkChoice { interface, active, standby: None, port_epoch: 0, rebuild: 0 })
        });
        let keys = Keys { private: [(name, SecretKey::clamped([9; 32]))].into(), ..Keys::default() };
        let facts = Facts { keys: Arc::new(keys), uplink: choice, ..Facts::default() };
        let Ok(desired) = derive(&effective, &facts, &Desired::default()) else { continue };
        for link in desired.links.values() {
            let mut held = std::collections::BTreeSet::new();
            for (key, peer) in &link.peers {
                assert_ne!(*key, link.private_key.public(), "the interface is its own peer");
                for net in &peer.allowed_ips {
                    assert!(net.trunc() == *net && held.insert(*net), "{net} is held twice or not canonical");
                }
            }
        }
    }
}
