//! Decisions by proofs: those of the contract, whatever fewer endpoints than the quorum answer.
use super::world::{Mode, Token, World, verify};
use super::*;
use crate::policy::Reason;
use alloy_primitives::U256;
use proptest::prelude::*;
use spoke_config::Config;
use spoke_config::grants::Grants;
use spoke_config::layout::{Layout, Slot};
use spoke_model::key::PublicKey;

fn config(more: &str) -> Arc<Grants> {
    let text = format!(
        "[grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 1\nendpoints = [\"http://0\", \"http://1\", \"http://2\"]\nquorum = 2\n{more}\n"
    );
    Arc::new(Config::from_text(Some(("t", &text)), []).unwrap().grants.unwrap())
}

fn proof() -> Arc<Grants> {
    config("verify = \"proof\"")
}

fn conversation(config: &Arc<Grants>) -> Conversation {
    Conversation::new(config.clone(), (0..3).map(|i| format!("http://{i}")).collect(), 7)
}

fn pair(n: u8) -> Pair {
    (format!("n{n}").parse().unwrap(), PublicKey([n + 1; 32]))
}

fn token(n: u8, active: bool) -> Token {
    let (node, key) = pair(n);
    let key = key.to_string();
    Token { node: node.to_string(), key: key.clone(), owner: n + 1, owner_key: key, active }
}

fn reasons(verified: &Verified) -> Vec<Option<Reason>> {
    verified.decisions[0].iter().map(|d| d.map(|d| d.reason)).collect()
}

/// Two granted, one revoked, one without a token; on the liar's chain all four are granted.
fn worlds(config: &Grants) -> (World, World, Vec<Pair>, Vec<Option<Reason>>) {
    let world = World::new(config, vec![token(0, true), token(1, true), token(2, false)]);
    let other = World::new(config, (0..4).map(|n| token(n, true)).collect());
    let granted = Some(Reason::AccessGranted);
    let wanted = vec![granted, granted, Some(Reason::NodeInactive), Some(Reason::NodeNotFound)];
    (world, other, (0..4).map(pair).collect(), wanted)
}

#[test]
fn liar_of_any_kind_changes_no_decision() {
    let config = proof();
    let (world, other, pairs, wanted) = worlds(&config);
    for lie in Mode::LIES {
        for liar in 0..3 {
            let mut modes = [Mode::Honest; 3];
            modes[liar] = lie;
            let mut conversation = conversation(&config);
            let verified = verify(&world, &other, &modes, &mut conversation, &pairs).unwrap();
            assert_eq!(reasons(&verified), wanted, "{lie:?} at {liar}");
            assert_eq!(verified.decisions[0], verified.decisions[1], "{lie:?} at {liar}");
            let rows = conversation.rows();
            let honest = rows.iter().enumerate().filter(|(i, _)| *i != liar);
            assert!(honest.into_iter().all(|(_, r)| r.refuted.is_none()), "{lie:?}: {rows:?}");
            if liar == 0 {
                // It is asked first. A refusal is no lie.
                assert_eq!(rows[0].refuted.is_some(), lie != Mode::Refuses, "{lie:?}: {rows:?}");
            }
        }
    }
}

#[test]
fn one_endpoint_with_proofs_is_enough() {
    let config = proof();
    let (world, other, pairs, wanted) = worlds(&config);
    for lie in Mode::LIES.into_iter().filter(|l| *l != Mode::FalsePin) {
        let modes = [lie, Mode::Refuses, Mode::Honest];
        let verified = verify(&world, &other, &modes, &mut conversation(&config), &pairs).unwrap();
        assert_eq!(reasons(&verified), wanted, "{lie:?}");
        let none = verify(&world, &other, &[lie, Mode::Refuses, Mode::Silent], &mut conversation(&config), &pairs);
        none.expect_err("a decision without a proof");
    }
}

#[test]
fn endpoint_whose_proofs_fail_is_asked_last() {
    let config = proof();
    let (world, other, pairs, wanted) = worlds(&config);
    let modes = [Mode::Changes(0), Mode::Honest, Mode::Honest];
    let mut conversation = conversation(&config);
    verify(&world, &other, &modes, &mut conversation, &pairs).unwrap();
    let before = conversation.rows()[0].errors;
    let again = verify(&world, &other, &modes, &mut conversation, &pairs).unwrap();
    assert_eq!((reasons(&again), conversation.rows()[0].errors), (wanted, before));
}

#[test]
fn block_without_a_quorum_is_not_decided_at() {
    let config = proof();
    let (world, other, pairs, _) = worlds(&config);
    // The liar's chain is proved in full by one endpoint.
    let modes = [Mode::Honest, Mode::Silent, Mode::Silent];
    verify(&other, &world, &modes, &mut conversation(&config), &pairs).expect_err("decided by one of a quorum of two");
}

#[test]
fn other_layout_decides_nothing() {
    let slot = |n: u64| Slot(U256::from(n));
    let config = proof();
    let tokens = || vec![token(0, true), token(1, false)];
    let pairs = [pair(0), pair(1), pair(2)];
    let base = Layout::default();
    for (what, layout) in [
        ("tokens", Layout { tokens: slot(20), ..base.clone() }),
        ("accesses", Layout { accesses: slot(20), ..base.clone() }),
        ("owners", Layout { owners: slot(20), ..base.clone() }),
        ("keys", Layout { keys: slot(20), ..base }),
    ] {
        let world = World::with_layout(&config, tokens(), &layout);
        let verified = verify(&world, &world, &[Mode::Honest; 3], &mut conversation(&config), &pairs).unwrap();
        assert_eq!(verified.unreadable, Some(Malformed::OtherLayout), "{what}");
        assert!(verified.decisions.iter().flatten().all(Option::is_none), "{what}: {verified:?}");
    }
}

#[test]
fn layout_is_compared_until_a_grant_shows_it_right() {
    let config = proof();
    let mut conversation = conversation(&config);
    let (world, other, pairs, _) = worlds(&config);
    let mut reads = |pairs: &[Pair]| {
        let before = conversation.traffic;
        verify(&world, &other, &[Mode::Honest; 3], &mut conversation, pairs).unwrap();
        (conversation.traffic.requests - before.requests, conversation.layout_of.is_some())
    };
    // Two for the pins, one or three for the proofs, two for the contract's answers.
    assert_eq!(reads(&pairs[3..]), (2 + 1 + 2, false));
    assert_eq!(reads(&pairs), (2 + 3 + 2, true));
    assert_eq!(reads(&pairs), (2 + 3, true));
}

#[test]
fn missing_contract_is_no_decision_by_proofs() {
    let config = proof();
    let (world, other, pairs, _) = worlds(&config);
    let world = world.without_contract();
    let verified = verify(&world, &other, &[Mode::Honest; 3], &mut conversation(&config), &pairs).unwrap();
    assert_eq!(verified.unreadable, Some(Malformed::NoContract));
    assert!(verified.decisions.iter().flatten().all(Option::is_none));
}

/// Tokens as they may be: of long and short nodes, burnt, with other keys, with none, with text that is no key.
fn tokens() -> impl Strategy<Value = Vec<Token>> {
    let key = prop_oneof![Just(None), Just(Some(String::new())), "[ -~]{1,140}".prop_map(Some)];
    let one = (0u8..4, any::<bool>(), key.clone(), key);
    proptest::collection::vec((one, 0usize..6), 0..6).prop_map(|all| {
        let numbered = all.into_iter().enumerate();
        numbered
            .map(|(n, ((owner, active, key, owner_key), node))| {
                let (name, own) = named(node);
                let own = own.to_string();
                // An owner has one key: each token has its own.
                let owner = if owner == 0 { 0 } else { owner + 4 * u8::try_from(n).unwrap() };
                let (key, owner_key) = (key.unwrap_or_else(|| own.clone()), owner_key.unwrap_or(own));
                Token { node: name.to_string(), key, owner, owner_key, active }
            })
            .collect()
    })
}

/// Nodes with names around the lengths at which Solidity stores them otherwise.
fn named(i: usize) -> Pair {
    let length = [1, 31, 32, 33, 64, 128][i];
    ("n".repeat(length).parse().unwrap(), PublicKey([u8::try_from(i).unwrap() + 1; 32]))
}

proptest! {
    // A case hashes some thousand nodes.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn proofs_decide_like_calls(tokens in tokens()) {
        let (calls, proof) = (config(""), proof());
        let pairs: Vec<Pair> = (0..6).map(named).collect();
        let world = World::new(&calls, tokens);
        let by = |config: &Arc<Grants>| {
            verify(&world, &world, &[Mode::Honest; 3], &mut conversation(config), &pairs).unwrap()
        };
        prop_assert_eq!(by(&calls), by(&proof));
    }
}
