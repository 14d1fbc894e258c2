//! WireGuard keys: 32 bytes, 44 characters of base64 in text. Secret keys are never shown.
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use zeroize::Zeroizing;

/// A key that is not 44 characters of standard base64 for 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard key: expected 44 characters of base64 (32 bytes)")]
pub struct BadKey;

fn decode(text: &str) -> Result<Zeroizing<[u8; 32]>, BadKey> {
    if text.len() != 44 {
        return Err(BadKey);
    }
    let mut out = Zeroizing::new([0u8; 33]);
    match STANDARD.decode_slice(text, out.as_mut_slice()) {
        Ok(32) => {
            let mut key = Zeroizing::new([0u8; 32]);
            key.copy_from_slice(&out[..32]);
            Ok(key)
        }
        Ok(_) | Err(_) => Err(BadKey),
    }
}

/// The points of low order of Curve25519, with the unused top bit cleared: 0, 1, two of order 8, and p-1, p, p+1. With one of
/// them every secret key agrees on zero.
const LOW_ORDER: [[u8; 32]; 7] = [
    [
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    ],
    [
        0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    ],
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
        0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44,
        0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
    [
        0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
    ],
    [
        0xed, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
    ],
    [
        0xee, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
    ],
];

/// The public key of a peer or an interface; its identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// The first characters of the text form, enough to recognise a key in a log line.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text.push('…');
        text
    }

    /// Whether it is a point of low order, whose tunnel anybody could open: no key generator makes one.
    pub fn is_low_order(&self) -> bool {
        let mut point = self.0;
        point[31] &= 127;
        LOW_ORDER.contains(&point)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buf = [0u8; 44];
        let n = STANDARD.encode_slice(self.0, &mut buf).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&buf[..n]).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for PublicKey {
    type Err = BadKey;
    fn from_str(text: &str) -> Result<Self, BadKey> {
        decode(text).map(|k| Self(*k))
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! secret_key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// Copies share the memory, which is wiped with the last one.
        #[derive(Clone, PartialEq, Eq)]
        pub struct $name(Arc<Zeroizing<[u8; 32]>>);

        impl $name {
            /// Takes 32 raw bytes.
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(Arc::new(Zeroizing::new(bytes)))
            }

            /// The raw bytes, for the kernel and for the file that keeps them.
            pub fn reveal(&self) -> &[u8; 32] {
                &self.0
            }

            /// The text form, wiped when dropped.
            pub fn reveal_base64(&self) -> Zeroizing<String> {
                Zeroizing::new(STANDARD.encode(self.reveal()))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("[redacted]")
            }
        }

        impl FromStr for $name {
            type Err = BadKey;
            fn from_str(text: &str) -> Result<Self, BadKey> {
                decode(text).map(|k| Self(Arc::new(k)))
            }
        }

        impl Serialize for $name {
            /// Always `[redacted]`; a document that must keep the key writes [`Self::reveal_base64`].
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str("[redacted]")
            }
        }
    };
}

secret_key! {
    /// A private key.
    SecretKey
}
secret_key! {
    /// A preshared symmetric key of two peers.
    PresharedKey
}

impl SecretKey {
    /// The public key (X25519).
    pub fn public(&self) -> PublicKey {
        let secret = x25519_dalek::StaticSecret::from(*self.reveal());
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }

    /// The X25519 secret shared with the holder of `other`. `None`: `other` is a point of low order.
    pub fn agree(&self, other: PublicKey) -> Option<Zeroizing<[u8; 32]>> {
        let secret = x25519_dalek::StaticSecret::from(*self.reveal());
        let shared = secret.diffie_hellman(&x25519_dalek::PublicKey::from(other.0));
        shared.was_contributory().then(|| Zeroizing::new(shared.to_bytes()))
    }

    /// A key from 32 random bytes, clamped like `wg genkey`, so that its text equals the kernel's.
    pub fn clamped(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        Self::from_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn public_half_matches_rfc_7748() {
        // RFC 7748, section 6.1, Bob's key pair.
        let hex =
            |s: &str| -> [u8; 32] { std::array::from_fn(|i| u8::from_str_radix(&s[2 * i..2 * i + 2], 16).unwrap()) };
        let secret = SecretKey::from_bytes(hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
        let public = hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
        assert_eq!(secret.public().0, public);
    }

    #[test]
    fn secret_keys_are_never_shown() {
        let k = SecretKey::from_bytes([7; 32]);
        let text = k.reveal_base64().to_string();
        assert!(!format!("{k:?}").contains(&text[..8]));
        assert_eq!(serde_json::to_string(&k).unwrap(), "\"[redacted]\"");
        assert_eq!(text.parse::<SecretKey>().unwrap(), k);
    }

    #[test]
    fn low_order_points_agree_on_nothing() {
        let secret = SecretKey::clamped([3; 32]);
        for mut point in LOW_ORDER {
            for top in [0, 128] {
                point[31] = point[31] & 127 | top;
                let key = PublicKey(point);
                assert!(key.is_low_order() && secret.agree(key).is_none(), "{key}");
            }
        }
        assert!(!secret.public().is_low_order());
        let other = SecretKey::clamped([4; 32]);
        assert_eq!(secret.agree(other.public()), other.agree(secret.public()));
    }

    proptest! {
        #[test]
        fn text_round_trips(bytes in any::<[u8; 32]>()) {
            let k = PublicKey(bytes);
            prop_assert_eq!(k.to_string().len(), 44);
            prop_assert_eq!(k.to_string().parse::<PublicKey>(), Ok(k));
        }

        #[test]
        fn other_text_is_rejected(text in "[A-Za-z0-9+/=]{0,60}") {
            let ok = text.parse::<PublicKey>().is_ok_and(|k| k.to_string() == text);
            prop_assert_eq!(text.parse::<PublicKey>().is_ok(), ok);
        }
    }
}
