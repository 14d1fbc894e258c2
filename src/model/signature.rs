//! Ed25519 keys and signatures; SHA-256.
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use zeroize::Zeroizing;

/// The public half: 32 bytes, 44 characters of base64 in text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VerifyKey(pub [u8; 32]);

/// A signature: 64 bytes, 88 characters of base64 in text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

/// Text that is neither a key nor a signature, or a seed of the wrong length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an Ed25519 {0}")]
pub struct BadEd25519(pub &'static str);

fn decode<const N: usize>(text: &str, what: &'static str) -> Result<[u8; N], BadEd25519> {
    // The length first, so that decoding is bounded.
    if text.len() != N.div_ceil(3) * 4 {
        return Err(BadEd25519(what));
    }
    STANDARD.decode(text).ok().and_then(|b| b.try_into().ok()).ok_or(BadEd25519(what))
}

macro_rules! base64_text {
    ($name:ident, $len:literal, $what:literal) => {
        impl FromStr for $name {
            type Err = BadEd25519;
            fn from_str(text: &str) -> Result<Self, BadEd25519> {
                decode::<$len>(text, $what).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&STANDARD.encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text = STANDARD.encode(self.0);
                write!(f, "{}…", text.get(..8).unwrap_or(&text))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

base64_text!(VerifyKey, 32, "public key (44 characters of base64)");
base64_text!(Signature, 64, "signature (88 characters of base64)");

impl VerifyKey {
    /// The SHA-256 of the key, for people and configuration: `sha256:` and 64 hex digits.
    pub fn fingerprint(&self) -> String {
        format!("sha256:{}", sha256_hex(&self.0))
    }

    /// Whether `signature` over `message` is valid for this key.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, &signature.0).is_ok()
    }
}

/// The private half, derived from a 32-byte seed; never shown.
pub struct SignKey {
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
}

impl SignKey {
    /// The key of a seed of 32 random bytes.
    pub fn from_seed(seed: &[u8]) -> Result<Self, BadEd25519> {
        let bad = BadEd25519("seed (32 bytes)");
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| bad)?;
        Ok(Self { seed: Zeroizing::new(seed.try_into().map_err(|_| bad)?), pair })
    }

    /// The seed, for the place that stores it.
    pub fn reveal_seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// The public half.
    pub fn public(&self) -> VerifyKey {
        let mut key = [0; 32];
        key.copy_from_slice(self.pair.public_key().as_ref());
        VerifyKey(key)
    }

    /// Signs.
    pub fn sign(&self, message: &[u8]) -> Signature {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.pair.sign(message).as_ref());
        Signature(signature)
    }
}

impl fmt::Debug for SignKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignKey({:?})", self.public())
    }
}

/// SHA-256 in lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::with_capacity(64), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc_8032_test_1() {
        let hex = |s: &str| -> Vec<u8> {
            (0..s.len() / 2).map(|i| u8::from_str_radix(&s[2 * i..2 * i + 2], 16).unwrap()).collect()
        };
        let key = SignKey::from_seed(&hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")).unwrap();
        assert_eq!(key.public().0.as_slice(), hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"));
        assert!(key.sign(b"").0.starts_with(&hex("e5564300c360ac729086e2cc806e828a")));
    }

    #[test]
    fn private_key_is_not_shown() {
        let key = SignKey::from_seed(&[7; 32]).unwrap();
        assert!(!format!("{key:?}").contains(&STANDARD.encode([7; 32])[..8]));
    }

    proptest! {
        #[test]
        fn signature_verifies_only_for_its_key_and_message(seed: [u8; 32], other: [u8; 32], message: Vec<u8>, flip in 0usize..512) {
            let key = SignKey::from_seed(&seed).unwrap();
            let mut signature = key.sign(&message);
            prop_assert!(key.public().verify(&message, &signature));
            prop_assert_eq!(signature.to_string().parse::<Signature>(), Ok(signature));
            let mut more = message.clone();
            more.push(0);
            prop_assert!(!key.public().verify(&more, &signature));
            if other != seed {
                prop_assert!(!SignKey::from_seed(&other).unwrap().public().verify(&message, &signature));
            }
            signature.0[flip / 8] ^= 1 << (flip % 8);
            prop_assert!(!key.public().verify(&message, &signature));
        }

        #[test]
        fn any_text_is_parsed_or_rejected(text in "[A-Za-z0-9+/=]{0,100}") {
            if let Ok(key) = text.parse::<VerifyKey>() {
                prop_assert_eq!(key.to_string(), text);
            }
        }
    }
}
