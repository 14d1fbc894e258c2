//! Messages between devices and the control plane: enrolment, rotation, reports, and what a device reads of the answers.

use serde::Serialize;
use serde::de::DeserializeOwned;
use spoke_enroll::request::{Nonce, RequestParts, RequestProof};
use spoke_enroll::wire::{
    KeyAnswer, KeyRequest, NodeReport, Problem, ProvisionAnswer, ProvisionRequest, RegisterRequest,
};
use spoke_model::key::SecretKey;
use spoke_model::key_proof::KeyProof;
use spoke_model::signature::SignKey;
use std::fmt::Debug;

/// Reads a message; what is read is written and read again without a change.
fn read<T: DeserializeOwned + Serialize + PartialEq + Debug>(text: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(text).ok()?;
    let written = serde_json::to_vec(&value).unwrap_or_else(|e| panic!("{value:?} is not written: {e}"));
    let again: T = serde_json::from_slice(&written).unwrap_or_else(|e| panic!("{value:?} is not read again: {e}"));
    assert_eq!(again, value);
    Some(value)
}

/// The first byte selects the message, the rest is its text. Whether it was accepted.
pub(crate) fn consume(data: &[u8]) -> bool {
    let Some((kind, text)) = data.split_first() else { return false };
    match kind % 8 {
        0 => read::<ProvisionRequest>(text).is_some_and(|request| {
            let fine = request.check().is_ok();
            assert!(!fine || !request.wireguard_public_key.is_low_order(), "a point of low order enrols");
            assert!(!fine || request.metadata.len() <= 32);
            fine
        }),
        1 => read::<KeyRequest>(text).is_some_and(|request| request.check().is_ok()),
        2 => read::<NodeReport>(text).is_some_and(|report| {
            let fine = report.check().is_ok();
            let reason = report.reason.unwrap_or_default();
            assert!(!fine || !reason.chars().any(char::is_control), "a control character was accepted");
            fine
        }),
        3 => read::<RegisterRequest>(text).is_some_and(|request| request.check().is_ok()),
        4 => read::<ProvisionAnswer>(text).is_some(),
        5 => read::<KeyAnswer>(text).is_some(),
        6 => read::<Problem>(text).is_some_and(|problem| {
            let Ok(pinned) = SignKey::from_seed(&[1; 32]) else { unreachable!("a seed") };
            let time = problem.detail.time.and_then(|t| t.verify(Nonce([3; 16]), &[pinned.public()]));
            assert_eq!(time, None, "a time without the pinned key was believed");
            true
        }),
        _ => headers(text),
    }
}

/// The headers that authenticate a request, one a line: node, time, nonce, signature, proof of the key.
fn headers(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let mut lines = text.lines();
    let mut next = || lines.next();
    let fields = [next(), next(), next(), next()];
    let names = ["spoke-node", "spoke-timestamp", "spoke-nonce", "spoke-signature"];
    let header = |name: &str| names.iter().position(|n| *n == name).and_then(|i| fields[i]);
    let verifier = SecretKey::clamped([5; 32]);
    if let Some(Ok(proof)) = next().map(str::parse::<KeyProof>) {
        let claimed = SecretKey::clamped([6; 32]).public();
        assert!(!proof.verify(&verifier, claimed, text.as_bytes()), "a key was proved without its private half");
    }
    let Some(proof) = RequestProof::from_headers(header) else { return false };
    let Ok(key) = SignKey::from_seed(&[1; 32]) else { unreachable!("a seed") };
    let parts = RequestParts { method: "GET", path: "/api/v1/nodes/self/state", body: b"" };
    assert!(!proof.verify(&parts, &key.public()), "a request was accepted without the key");
    true
}
