//! Decisions on enrolments, from rows that were read before. Pure.
use crate::store::network::Network;
use crate::store::node::{Node, NodeState};
use crate::store::token::ValidToken;
use spoke_config::node::Role;
use spoke_enroll::wire::ProvisionRequest;

/// What becomes of an enrolment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnrolmentDecision {
    /// The same device under the same name: the same answer again, without a use of the token.
    Repeat,
    /// The token is not valid for this node.
    BadToken,
    /// Another device holds the node id.
    NodeIdTaken,
    /// The name was removed, and the token is not bound to it.
    Removed,
    /// The device joins with a use of the token.
    Join,
}

/// Decides on the enrolment of a device whose node id is held by `known`.
///
/// The token comes before the node id: without a valid token nothing is disclosed about the fleet.
pub fn decide_enrolment(
    known: Option<&Node>,
    request: &ProvisionRequest,
    token: Option<&ValidToken>,
) -> EnrolmentDecision {
    let enrolled = known.filter(|n| matches!(n.state, NodeState::Active | NodeState::Pending));
    let same_keys = |n: &Node| {
        n.identity_key == Some(request.identity_public_key) && n.wireguard_key == Some(request.wireguard_public_key)
    };
    if enrolled.is_some_and(same_keys) {
        return EnrolmentDecision::Repeat;
    }
    let Some(token) = token else { return EnrolmentDecision::BadToken };
    let Some(node) = known else { return EnrolmentDecision::Join };
    let own_network = node.network == token.network;
    match node.state {
        NodeState::Active | NodeState::Pending => EnrolmentDecision::NodeIdTaken,
        // An operator gave the name to the holder of the token bound to it, or of this key; the refusal does not disclose that.
        NodeState::Expected if own_network && (token.bound || is_expected_key(node, request)) => {
            EnrolmentDecision::Join
        }
        NodeState::Expected => EnrolmentDecision::BadToken,
        // A removed device keeps its unbound tokens and can make new keys: only a token for this name brings it back.
        NodeState::Removed if token.bound => EnrolmentDecision::Join,
        NodeState::Removed if own_network => EnrolmentDecision::Removed,
        NodeState::Removed => EnrolmentDecision::BadToken,
    }
}

fn is_expected_key(node: &Node, request: &ProvisionRequest) -> bool {
    node.fingerprint.as_ref().is_some_and(|f| *f == request.identity_public_key.fingerprint())
}

/// The node that a device becomes when it joins `network`.
pub fn joined_node(known: Option<Node>, network: &Network, request: &ProvisionRequest, now_ms: i64) -> Node {
    let announced = known.as_ref().is_some_and(|n| n.state == NodeState::Expected && n.network == network.name);
    let new = |id| Node::expected(id, &network.name, Role::Node, now_ms);
    let mut node = match known {
        Some(node) if announced => node,
        // The device may still know the generation of the id's last holder.
        Some(node) => Node { generation: node.generation, ..new(node.id) },
        None => new(request.node_id.clone()),
    };
    node.wireguard_key = Some(request.wireguard_public_key);
    node.identity_key = Some(request.identity_public_key);
    node.fingerprint = None;
    node.version = Some(request.version.clone());
    node.enrolled_ms = u64::try_from(now_ms).ok();
    // The announcement by an operator is the approval.
    node.state = if network.approval && !announced { NodeState::Pending } else { NodeState::Active };
    node
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_enroll::wire::Capabilities;
    use spoke_model::key::PublicKey;
    use spoke_model::signature::SignKey;

    fn request(identity: u8) -> ProvisionRequest {
        ProvisionRequest {
            node_id: "edge-1".parse().unwrap(),
            wireguard_public_key: PublicKey([identity; 32]),
            identity_public_key: SignKey::from_seed(&[identity; 32]).unwrap().public(),
            version: "0.1.0".into(),
            capabilities: Capabilities { cpu_cores: 1, memory_mb: 64, arch: None },
            metadata: Default::default(),
        }
    }

    fn network(approval: bool) -> Network {
        let pool = "10.8.0.0/24".parse().unwrap();
        Network { approval, ..Network::new("field", Some(pool), None, "wg0".parse().unwrap()) }
    }

    fn node(state: NodeState) -> Node {
        Node { state, ..joined_node(None, &network(false), &request(1), 0) }
    }

    fn token(bound: bool) -> ValidToken {
        ValidToken { id: "0".into(), network: "field".into(), bound, key_proof: true }
    }

    fn of_another_network(bound: bool) -> ValidToken {
        ValidToken { network: "other".into(), ..token(bound) }
    }

    #[test]
    fn enrolment_is_decided_by_state_keys_and_token() {
        use EnrolmentDecision::{BadToken, Join, NodeIdTaken, Removed, Repeat};
        for (state, own_without_token, own_unbound, own_bound, other_without_token, other_unbound) in [
            (NodeState::Active, Repeat, Repeat, Repeat, BadToken, NodeIdTaken),
            (NodeState::Pending, Repeat, Repeat, Repeat, BadToken, NodeIdTaken),
            (NodeState::Expected, BadToken, BadToken, Join, BadToken, BadToken),
            (NodeState::Removed, BadToken, Removed, Join, BadToken, Removed),
        ] {
            let (known, unbound, bound) = (node(state), token(false), token(true));
            let decide = |key, token| decide_enrolment(Some(&known), &request(key), token);
            assert_eq!(decide(1, None), own_without_token, "{state:?}");
            assert_eq!(decide(1, Some(&unbound)), own_unbound, "{state:?}");
            assert_eq!(decide(1, Some(&bound)), own_bound, "{state:?}");
            assert_eq!(decide(2, None), other_without_token, "{state:?}");
            assert_eq!(decide(2, Some(&unbound)), other_unbound, "{state:?}");
        }
        assert_eq!(decide_enrolment(None, &request(1), Some(&token(false))), Join);
        assert_eq!(decide_enrolment(None, &request(1), None), BadToken);
    }

    #[test]
    fn announced_fingerprint_takes_the_name_with_any_token_of_its_network() {
        use EnrolmentDecision::{BadToken, Join};
        let expected =
            Node { fingerprint: Some(request(1).identity_public_key.fingerprint()), ..node(NodeState::Expected) };
        let decide = |key, token: Option<&ValidToken>| decide_enrolment(Some(&expected), &request(key), token);
        assert_eq!(decide(1, Some(&token(false))), Join);
        assert_eq!(decide(2, Some(&token(false))), BadToken, "another key");
        assert_eq!(decide(2, Some(&token(true))), Join, "the bound token");
        assert_eq!(decide(1, Some(&of_another_network(false))), BadToken);
        assert_eq!(decide(1, None), BadToken);
        let joined = joined_node(Some(expected), &network(true), &request(1), 1000);
        assert_eq!((joined.state, joined.fingerprint), (NodeState::Active, None));
    }

    #[test]
    fn networks_do_not_share_names() {
        use EnrolmentDecision::{BadToken, Join, NodeIdTaken, Repeat};
        let decide =
            |state, key, bound| decide_enrolment(Some(&node(state)), &request(key), Some(&of_another_network(bound)));
        for bound in [false, true] {
            assert_eq!(decide(NodeState::Expected, 1, bound), BadToken);
            assert_eq!(decide(NodeState::Active, 2, bound), NodeIdTaken);
            assert_eq!(decide(NodeState::Active, 1, bound), Repeat, "the node itself");
        }
        assert_eq!(decide(NodeState::Removed, 2, false), BadToken, "a removal is not disclosed");
        assert_eq!(decide(NodeState::Removed, 1, true), Join, "an operator moves the name");
    }

    #[test]
    fn announced_node_needs_no_approval() {
        let joined = |known, approval| joined_node(known, &network(approval), &request(2), 1000);
        assert_eq!(joined(None, true).state, NodeState::Pending);
        assert_eq!(joined(None, false).state, NodeState::Active);
        let announced = Node { label: Some("roof".into()), role: Role::Hub, ..node(NodeState::Expected) };
        let hub = joined(Some(announced.clone()), true);
        assert_eq!((hub.state, hub.role, hub.label.as_deref()), (NodeState::Active, Role::Hub, Some("roof")));
        let elsewhere = joined(Some(Node { network: "other".into(), ..announced }), true);
        assert_eq!((elsewhere.state, elsewhere.role), (NodeState::Pending, Role::Node), "announced in another network");
    }

    #[test]
    fn removed_node_keeps_only_its_generation() {
        let removed = Node { generation: 7, label: Some("roof".into()), ..node(NodeState::Removed) };
        let joined = joined_node(Some(removed), &network(false), &request(2), 1000);
        assert_eq!((joined.generation, joined.label, joined.enrolled_ms), (7, None, Some(1000)));
    }
}
