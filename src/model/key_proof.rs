//! Proof that the sender of a message holds the private half of a WireGuard key that it names: a MAC under the X25519
//! secret of that key and a key of the verifier.
//!
//! The message has to be unique, such as a signature over a nonce: a proof of one message proves nothing about another.
use crate::key::{PublicKey, SecretKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::fmt;
use std::str::FromStr;

const DOMAIN: &[u8] = b"spoke-key-proof-v1\n";

/// A proof; 44 characters of base64 in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyProof([u8; 32]);

/// Not a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a proof of a WireGuard key: expected 44 characters of base64 (32 bytes)")]
pub struct BadKeyProof;

/// HMAC-SHA-256, keyed by the shared secret and both public keys.
fn mac_key(shared: &[u8; 32], claimed: PublicKey, verifier: PublicKey) -> ring::hmac::Key {
    let outer = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, shared);
    let bound = ring::hmac::sign(&outer, &[DOMAIN, &claimed.0, &verifier.0].concat());
    ring::hmac::Key::new(ring::hmac::HMAC_SHA256, bound.as_ref())
}

impl KeyProof {
    /// Proves the possession of `own` to the holder of `verifier`. `None`: `verifier` is no valid key.
    pub fn new(own: &SecretKey, verifier: PublicKey, message: &[u8]) -> Option<Self> {
        let tag = ring::hmac::sign(&mac_key(&*own.agree(verifier)?, own.public(), verifier), message);
        Some(Self(tag.as_ref().try_into().ok()?))
    }

    /// Whether the holder of `claimed` made it for this message and this verifier. Takes constant time.
    pub fn verify(&self, verifier: &SecretKey, claimed: PublicKey, message: &[u8]) -> bool {
        let Some(shared) = verifier.agree(claimed) else { return false };
        ring::hmac::verify(&mac_key(&shared, claimed, verifier.public()), message, &self.0).is_ok()
    }
}

impl fmt::Display for KeyProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl FromStr for KeyProof {
    type Err = BadKeyProof;
    fn from_str(text: &str) -> Result<Self, BadKeyProof> {
        let bytes = STANDARD.decode(text).map_err(|_| BadKeyProof)?;
        bytes.try_into().map(Self).map_err(|_| BadKeyProof)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(n: u8) -> SecretKey {
        SecretKey::clamped([n; 32])
    }

    #[test]
    fn proof_is_of_one_key_one_verifier_and_one_message() {
        let (own, verifier) = (key(1), key(2));
        let proof = KeyProof::new(&own, verifier.public(), b"message").unwrap();
        assert!(proof.verify(&verifier, own.public(), b"message"));
        assert_eq!(proof.to_string().parse(), Ok(proof));
        assert!(!proof.verify(&verifier, own.public(), b"another message"));
        assert!(!proof.verify(&verifier, key(3).public(), b"message"), "another key");
        assert!(!proof.verify(&key(3), own.public(), b"message"), "another verifier");
        // Without the private half there is none: not of another key, and not of a point with a known secret.
        let forged = KeyProof::new(&key(3), verifier.public(), b"message").unwrap();
        assert!(!forged.verify(&verifier, own.public(), b"message"));
        let zero = PublicKey([0; 32]);
        assert!(KeyProof::new(&own, zero, b"message").is_none());
        let known = ring::hmac::sign(&mac_key(&[0; 32], zero, verifier.public()), b"message");
        assert!(!KeyProof(known.as_ref().try_into().unwrap()).verify(&verifier, zero, b"message"));
    }

    proptest! {
        #[test]
        fn other_text_is_no_proof(text in "\\PC{0,60}") {
            let ok = text.parse::<KeyProof>().is_ok_and(|p| p.to_string() == text);
            prop_assert_eq!(text.parse::<KeyProof>().is_ok(), ok);
        }
    }
}
