//! Manifest of an update bundle, its signatures, and whether this device may install it.
//!
//! # Keys
//! The offline root key signs only the *certificate*: the list of signing keys with a serial number. The image contains
//! the root's public key (several are allowed, so that a root can be replaced). A signing key is rotated by a
//! certificate with a higher serial; a device that has seen it refuses certificates with a lower one, so a certificate alone
//! revokes a key.
//!
//! Both levels have a threshold: how many different keys must have signed. That of the root is in the image's file of root
//! keys, that of the signing keys in the certificate; without one it is 1.
//!
//! # File format
//! `SPOKEUP1`, the header's length (4 bytes, little-endian), the header ([`Header`] as JSON), the root image, the
//! kernel. The header is first, so that the signature is checked before anything is written; it contains sizes and
//! digests of the rest.
use serde::{Deserialize, Serialize};
use spoke_model::signature::{SignKey, Signature, VerifyKey};
use std::collections::BTreeSet;

/// First bytes of a bundle.
pub const MAGIC: &[u8; 8] = b"SPOKEUP1";
/// Longest header, in bytes.
pub const MAX_HEADER: usize = 64 * 1024;
/// Prefixes of the signed messages: no signature is valid in another context.
const CERTIFICATE_CONTEXT: &[u8] = b"spoke update certificate 1\n";
const MANIFEST_CONTEXT: &[u8] = b"spoke update manifest 1\n";

/// One part of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Bytes.
    pub size: u64,
    /// Lower-case hex.
    pub sha256: String,
}

/// Content of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The board it is for.
    pub board: String,
    /// Shown to people; not compared.
    pub version: String,
    /// Increases with every release; compared.
    pub sequence: u64,
    /// The lowest sequence that may be installed after this one; raised when older releases are unsafe.
    pub floor: u64,
    /// Seconds since the epoch after which no device installs it by itself; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// The root image.
    pub root: Part,
    /// The kernel.
    pub kernel: Part,
}

/// The signing keys, certified by the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Increases with every change.
    pub serial: u64,
    /// Keys that may sign manifests.
    pub keys: Vec<VerifyKey>,
    /// How many of them must have signed one.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub threshold: u32,
}

const fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde's `skip_serializing_if` wants")]
const fn is_one(n: &u32) -> bool {
    *n == 1
}

/// The root keys of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// The keys, each once.
    pub keys: Vec<VerifyKey>,
    /// How many of them must have signed a certificate.
    pub threshold: usize,
}

impl Roots {
    /// Reads the file of an image: base64, one a line, `#` begins a comment; `threshold N` where more than one must sign. A
    /// threshold that cannot be read is met by no certificate.
    pub fn parse(text: &str) -> Self {
        let mut roots = Self { keys: Vec::new(), threshold: 1 };
        for line in text.lines().map(|l| l.split('#').next().unwrap_or("").trim()) {
            if let Some(n) = line.strip_prefix("threshold") {
                let n = n.trim_start_matches([' ', '\t', '=']).parse().ok().filter(|n| *n > 0);
                roots.threshold = n.unwrap_or(usize::MAX);
            } else if let Ok(key) = line.parse()
                && !roots.keys.contains(&key)
            {
                roots.keys.push(key);
            }
        }
        roots
    }

    /// Whether a certificate can be valid here at all.
    pub const fn is_usable(&self) -> bool {
        self.threshold <= self.keys.len()
    }
}

/// A certificate with its signatures, as a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certified {
    /// JSON of [`Certificate`], as signed.
    pub certificate: String,
    /// Signature over it by a root key.
    pub signature: Signature,
    /// Signatures by further root keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<Signature>,
}

/// Header of a bundle: both documents as the exact text that was signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// JSON of [`Certificate`].
    pub certificate: String,
    /// Signature over it by a root key.
    pub certificate_signature: Signature,
    /// JSON of [`Manifest`].
    pub manifest: String,
    /// Signature over it by a certified key.
    pub manifest_signature: Signature,
    /// Signatures over the certificate by further root keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificate_signatures: Vec<Signature>,
    /// Signatures over the manifest by further certified keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifest_signatures: Vec<Signature>,
}

/// What this device checks a bundle against.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Its board.
    pub board: String,
    /// Highest certificate serial seen.
    pub serial: u64,
    /// Lowest sequence that may be installed.
    pub floor: u64,
}

/// Why a bundle is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not a bundle.
    #[error("this is not an update bundle: {0}")]
    NotABundle(&'static str),
    /// The certificate is not signed by a root key.
    #[error("its signing keys are not certified by a root key of this device")]
    Uncertified,
    /// Too few root keys have signed the certificate.
    #[error(
        "its signing keys are certified by {got} of the {need} root keys that are needed here: have it signed by others"
    )]
    TooFewRoots {
        /// Root keys that signed.
        got: usize,
        /// Root keys that must have.
        need: usize,
    },
    /// Too few signing keys have signed the manifest.
    #[error("it is signed by {got} of the {need} keys that its certificate demands: have it signed by others")]
    TooFewSignatures {
        /// Keys that signed.
        got: usize,
        /// Keys that must have.
        need: usize,
    },
    /// The certificate is older than one seen before.
    #[error(
        "its signing keys were replaced: it has certificate {got}, this device has seen {seen}; sign it with the new key"
    )]
    OldCertificate {
        /// Serial of the bundle's.
        got: u64,
        /// Highest serial seen.
        seen: u64,
    },
    /// The manifest is not signed by a certified key.
    #[error("its signature is wrong")]
    BadSignature,
    /// For another board.
    #[error("it is for board {got}, this is {board}")]
    OtherBoard {
        /// The bundle's.
        got: String,
        /// Ours.
        board: String,
    },
    /// Older than allowed.
    #[error("release {got} is older than allowed here ({floor} or later): it was withdrawn or has known holes")]
    TooOld {
        /// The bundle's sequence.
        got: u64,
        /// The device's floor.
        floor: u64,
    },
}

/// A verified bundle that may be installed on this device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its content.
    pub manifest: Manifest,
    /// Replaces [`Known`] once the bundle is committed.
    pub learned: Known,
}

/// The header's length in bytes, from the first 12 bytes of a bundle.
pub fn header_length(first: &[u8; 12]) -> Result<usize, ManifestError> {
    let [magic @ .., a, b, c, d] = first;
    if magic != MAGIC {
        return Err(ManifestError::NotABundle("the magic number is missing"));
    }
    match usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])) {
        Ok(n) if (1..=MAX_HEADER).contains(&n) => Ok(n),
        _ => Err(ManifestError::NotABundle("the header's length is out of range")),
    }
}

/// Longest list of signatures that is looked at.
const MAX_SIGNATURES: usize = 16;

/// How many different keys of `keys` have signed `message`.
fn signers<'s>(keys: &[VerifyKey], message: &[u8], signatures: impl IntoIterator<Item = &'s Signature>) -> usize {
    let mut found: BTreeSet<&VerifyKey> = BTreeSet::new();
    for signature in signatures.into_iter().take(MAX_SIGNATURES) {
        found.extend(keys.iter().find(|k| k.verify(message, signature)));
    }
    found.len()
}

/// Verifies a certificate, which need not come with a bundle; [`ManifestError::OldCertificate`] below the serial `seen`.
pub fn verify_certificate(certified: &Certified, roots: &Roots, seen: u64) -> Result<Certificate, ManifestError> {
    let message = certificate_message(&certified.certificate);
    let signatures = std::iter::once(&certified.signature).chain(&certified.more);
    match signers(&roots.keys, &message, signatures) {
        0 => return Err(ManifestError::Uncertified),
        got if got < roots.threshold => return Err(ManifestError::TooFewRoots { got, need: roots.threshold }),
        _ => {}
    }
    let certificate: Certificate = serde_json::from_slice(certified.certificate.as_bytes())
        .map_err(|_| ManifestError::NotABundle("the certificate is malformed"))?;
    if certificate.serial < seen {
        return Err(ManifestError::OldCertificate { got: certificate.serial, seen });
    }
    Ok(certificate)
}

/// Verifies a header's signatures and checks it against what this device knows.
pub fn verify_header(header: &[u8], roots: &Roots, known: &Known) -> Result<Accepted, ManifestError> {
    let header: Header =
        serde_json::from_slice(header).map_err(|_| ManifestError::NotABundle("the header is malformed"))?;
    let certificate = verify_certificate(&header.certified(), roots, known.serial)?;
    let signatures = std::iter::once(&header.manifest_signature).chain(&header.manifest_signatures);
    let need = usize::try_from(certificate.threshold.max(1)).unwrap_or(usize::MAX);
    match signers(&certificate.keys, &manifest_message(&header.manifest), signatures) {
        0 => return Err(ManifestError::BadSignature),
        got if got < need => return Err(ManifestError::TooFewSignatures { got, need }),
        _ => {}
    }
    let manifest: Manifest = serde_json::from_slice(header.manifest.as_bytes())
        .map_err(|_| ManifestError::NotABundle("the manifest is malformed"))?;
    if manifest.board != known.board {
        return Err(ManifestError::OtherBoard { got: manifest.board, board: known.board.clone() });
    }
    if manifest.sequence < known.floor {
        return Err(ManifestError::TooOld { got: manifest.sequence, floor: known.floor });
    }
    let learned = Known {
        board: known.board.clone(),
        serial: certificate.serial,
        // A manifest may not lock out itself.
        floor: known.floor.max(manifest.floor.min(manifest.sequence)),
    };
    Ok(Accepted { manifest, learned })
}

impl Header {
    /// A manifest under a certificate; the signatures are made over [`manifest_message`], one at least.
    pub fn new(certified: Certified, manifest: String, signatures: Vec<Signature>) -> Option<Self> {
        let Certified { certificate, signature, more } = certified;
        let mut signatures = signatures.into_iter();
        Some(Self {
            certificate,
            certificate_signature: signature,
            manifest,
            manifest_signature: signatures.next()?,
            certificate_signatures: more,
            manifest_signatures: signatures.collect(),
        })
    }

    /// Its certificate.
    pub fn certified(&self) -> Certified {
        Certified {
            certificate: self.certificate.clone(),
            signature: self.certificate_signature,
            more: self.certificate_signatures.clone(),
        }
    }
}

/// What a root key signs of a certificate.
pub fn certificate_message(certificate: &str) -> Vec<u8> {
    [CERTIFICATE_CONTEXT, certificate.as_bytes()].concat()
}

/// What a signing key signs of a manifest.
pub fn manifest_message(manifest: &str) -> Vec<u8> {
    [MANIFEST_CONTEXT, manifest.as_bytes()].concat()
}

/// Makes a header with one signature; for the build, never for a device.
pub fn sign(certified: Certified, manifest: &Manifest, key: &SignKey) -> Result<Header, serde_json::Error> {
    let Certified { certificate, signature, more } = certified;
    let manifest = serde_json::to_string(manifest)?;
    Ok(Header {
        certificate,
        certificate_signature: signature,
        manifest_signature: key.sign(&manifest_message(&manifest)),
        manifest,
        certificate_signatures: more,
        manifest_signatures: Vec::new(),
    })
}

/// Certifies signing keys with one root key; used on an offline machine.
pub fn certify(certificate: &Certificate, root: &SignKey) -> Result<Certified, serde_json::Error> {
    let certificate = serde_json::to_string(certificate)?;
    Ok(Certified { signature: root.sign(&certificate_message(&certificate)), certificate, more: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(n: u8) -> SignKey {
        SignKey::from_seed(&[n; 32]).unwrap()
    }

    fn manifest() -> Manifest {
        let part = Part { size: 3, sha256: "00".into() };
        Manifest {
            board: "x".into(),
            version: "1.1.0".into(),
            sequence: 7,
            floor: 5,
            expires: None,
            root: part.clone(),
            kernel: part,
        }
    }

    fn bundle(root: u8, serial: u64, certified: u8, signer: u8, manifest: &Manifest) -> Vec<u8> {
        let certified = certify(&certificate(serial, &[certified], 1), &key(root)).unwrap();
        serde_json::to_vec(&sign(certified, manifest, &key(signer)).unwrap()).unwrap()
    }

    fn certificate(serial: u64, keys: &[u8], threshold: u32) -> Certificate {
        Certificate { serial, keys: keys.iter().map(|n| key(*n).public()).collect(), threshold }
    }

    fn roots(keys: &[u8], threshold: usize) -> Roots {
        Roots { keys: keys.iter().map(|n| key(*n).public()).collect(), threshold }
    }

    /// A bundle signed by these root and signing keys.
    fn signed_by(certificate: &Certificate, by_roots: &[u8], by: &[u8]) -> Vec<u8> {
        let text = serde_json::to_string(certificate).unwrap();
        let mut signatures = by_roots.iter().map(|n| key(*n).sign(&certificate_message(&text)));
        let certified =
            Certified { certificate: text.clone(), signature: signatures.next().unwrap(), more: signatures.collect() };
        let manifest = serde_json::to_string(&manifest()).unwrap();
        let signatures = by.iter().map(|n| key(*n).sign(&manifest_message(&manifest))).collect();
        serde_json::to_vec(&Header::new(certified, manifest, signatures).unwrap()).unwrap()
    }

    fn known() -> Known {
        Known { board: "x".into(), serial: 2, floor: 4 }
    }

    #[test]
    fn accepted_bundle_raises_serial_and_floor() {
        let roots = roots(&[9, 1], 1);
        let accepted = verify_header(&bundle(1, 3, 2, 2, &manifest()), &roots, &known()).unwrap();
        assert_eq!(accepted.learned, Known { board: "x".into(), serial: 3, floor: 5 });
        assert_eq!(accepted.manifest, manifest());
    }

    #[test]
    fn each_fault_has_its_error() {
        let roots = roots(&[1], 1);
        let refusal = |b: &[u8]| verify_header(b, &roots, &known()).unwrap_err();
        assert_eq!(refusal(&bundle(3, 3, 2, 2, &manifest())), ManifestError::Uncertified);
        assert_eq!(refusal(&bundle(1, 1, 2, 2, &manifest())), ManifestError::OldCertificate { got: 1, seen: 2 });
        assert_eq!(refusal(&bundle(1, 2, 2, 4, &manifest())), ManifestError::BadSignature);
        let other = Manifest { board: "y".into(), ..manifest() };
        assert_eq!(
            refusal(&bundle(1, 2, 2, 2, &other)),
            ManifestError::OtherBoard { got: "y".into(), board: "x".into() }
        );
        let old = Manifest { sequence: 3, ..manifest() };
        assert_eq!(refusal(&bundle(1, 2, 2, 2, &old)), ManifestError::TooOld { got: 3, floor: 4 });
        assert!(matches!(refusal(b"{}"), ManifestError::NotABundle(_)));
    }

    #[test]
    fn manifest_signature_is_no_certificate() {
        // Same text and key, other context: a leaked signing key cannot certify itself.
        let text = serde_json::to_string(&certificate(9, &[2], 1)).unwrap();
        let signature = key(1).sign(&manifest_message(&text));
        let header = sign(Certified { certificate: text, signature, more: vec![] }, &manifest(), &key(2)).unwrap();
        let bytes = serde_json::to_vec(&header).unwrap();
        assert_eq!(verify_header(&bytes, &roots(&[1], 1), &known()).unwrap_err(), ManifestError::Uncertified);
    }

    #[test]
    fn root_keys_are_one_per_line() {
        let text = format!("# roots\n{}  # ours\nnonsense\n", key(1).public());
        assert_eq!(Roots::parse(&text), roots(&[1], 1));
        let twice = format!("threshold = 2\n{0}\n{0}\n", key(1).public());
        assert_eq!(Roots::parse(&twice), roots(&[1], 2));
        assert!(!Roots::parse(&twice).is_usable(), "one key is not two");
        for bad in ["threshold 0", "threshold two", "threshold"] {
            assert!(!Roots::parse(&format!("{bad}\n{}", key(1).public())).is_usable(), "{bad}");
        }
    }

    #[test]
    fn two_of_three_root_keys_must_have_certified() {
        let roots = roots(&[1, 7, 9], 2);
        let check = |by: &[u8]| verify_header(&signed_by(&certificate(3, &[2], 1), by, &[2]), &roots, &known());
        assert_eq!(check(&[1]).unwrap_err(), ManifestError::TooFewRoots { got: 1, need: 2 });
        // The same key twice is one key, and a foreign one is none.
        assert_eq!(check(&[1, 1, 4]).unwrap_err(), ManifestError::TooFewRoots { got: 1, need: 2 });
        assert_eq!(check(&[4, 5]).unwrap_err(), ManifestError::Uncertified);
        check(&[9, 1]).unwrap();
        check(&[4, 1, 7]).unwrap();
    }

    #[test]
    fn two_of_three_signing_keys_must_have_signed() {
        let check =
            |by: &[u8]| verify_header(&signed_by(&certificate(3, &[2, 3, 4], 2), &[1], by), &roots(&[1], 1), &known());
        assert_eq!(check(&[2]).unwrap_err(), ManifestError::TooFewSignatures { got: 1, need: 2 });
        assert_eq!(check(&[2, 2, 8]).unwrap_err(), ManifestError::TooFewSignatures { got: 1, need: 2 });
        assert_eq!(check(&[8]).unwrap_err(), ManifestError::BadSignature);
        check(&[8, 3, 2]).unwrap();
        // A key that is listed twice is one key.
        let twice = signed_by(&certificate(3, &[2, 2], 2), &[1], &[2, 2]);
        assert_eq!(
            verify_header(&twice, &roots(&[1], 1), &known()).unwrap_err(),
            ManifestError::TooFewSignatures { got: 1, need: 2 }
        );
    }

    #[test]
    fn header_with_one_signature_is_as_before() {
        // Devices and bundles of an earlier release: the fields for more are not there.
        let header: serde_json::Value = serde_json::from_slice(&bundle(1, 3, 2, 2, &manifest())).unwrap();
        let fields: Vec<_> = header.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["certificate", "certificate_signature", "manifest", "manifest_signature"]);
        assert!(!header["certificate"].as_str().unwrap().contains("threshold"));
    }

    #[test]
    fn certificate_alone_revokes_a_key() {
        // Given: a key was replaced, and a device saw the certificate without a bundle.
        let certified = certify(&certificate(5, &[3], 1), &key(1)).unwrap();
        let seen = verify_certificate(&certified, &roots(&[1], 1), 2).unwrap().serial;
        let known = Known { serial: seen, ..known() };
        // Then
        let stolen = bundle(1, 3, 2, 2, &manifest());
        assert_eq!(
            verify_header(&stolen, &roots(&[1], 1), &known).unwrap_err(),
            ManifestError::OldCertificate { got: 3, seen: 5 }
        );
        verify_header(&bundle(1, 5, 3, 3, &manifest()), &roots(&[1], 1), &known).unwrap();
        let forged = certify(&certificate(9, &[3], 1), &key(2)).unwrap();
        assert_eq!(verify_certificate(&forged, &roots(&[1], 1), 5).unwrap_err(), ManifestError::Uncertified);
    }

    proptest! {
        #[test]
        fn flipped_bit_is_rejected(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let good = bundle(1, 2, 2, 2, &manifest());
            let mut bad = good.clone();
            let at = at.index(bad.len());
            bad[at] ^= 1 << bit;
            let result = verify_header(&bad, &roots(&[1], 1), &known());
            // A flip in the name of an ignored JSON field is harmless; what is accepted must be what was signed.
            prop_assert!(result.is_err() || result.unwrap().manifest == manifest());
        }

        #[test]
        fn any_bytes_are_rejected(bytes in proptest::collection::vec(any::<u8>(), 0..200), first in any::<[u8; 12]>()) {
            let _ = header_length(&first);
            prop_assert!(verify_header(&bytes, &roots(&[1], 1), &known()).is_err());
        }
    }
}
