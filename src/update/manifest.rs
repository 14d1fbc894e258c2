//! Manifest of an update bundle, its signatures, and whether this device may install it.
//!
//! # Keys
//! The offline root key signs only the *certificate*: the list of signing keys with a serial number. The image contains
//! the root's public key (several are allowed, so that a root can be replaced). A signing key is rotated by a
//! certificate with a higher serial; a device that has committed it refuses certificates with a lower one.
//!
//! # File format
//! `SPOKEUP1`, the header's length (4 bytes, little-endian), the header ([`Header`] as JSON), the root image, the
//! kernel. The header is first, so that the signature is checked before anything is written; it contains sizes and
//! digests of the rest.
use serde::{Deserialize, Serialize};
use spoke_model::signature::{SignKey, Signature, VerifyKey};

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
    /// The certificate is older than one committed before.
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

/// Reads the root keys of an image: base64, one a line, `#` begins a comment.
pub fn root_keys(text: &str) -> Vec<VerifyKey> {
    text.lines().map(|l| l.split('#').next().unwrap_or("").trim()).filter_map(|l| l.parse().ok()).collect()
}

/// Verifies a header's signatures and checks it against what this device knows.
pub fn verify_header(header: &[u8], roots: &[VerifyKey], known: &Known) -> Result<Accepted, ManifestError> {
    let header: Header =
        serde_json::from_slice(header).map_err(|_| ManifestError::NotABundle("the header is malformed"))?;
    let signed = signed(CERTIFICATE_CONTEXT, &header.certificate);
    if !roots.iter().any(|k| k.verify(&signed, &header.certificate_signature)) {
        return Err(ManifestError::Uncertified);
    }
    let certificate: Certificate = serde_json::from_slice(header.certificate.as_bytes())
        .map_err(|_| ManifestError::NotABundle("the certificate is malformed"))?;
    if certificate.serial < known.serial {
        return Err(ManifestError::OldCertificate { got: certificate.serial, seen: known.serial });
    }
    let signed = self::signed(MANIFEST_CONTEXT, &header.manifest);
    if !certificate.keys.iter().any(|k| k.verify(&signed, &header.manifest_signature)) {
        return Err(ManifestError::BadSignature);
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

/// Makes a header; for the build, never for a device.
pub fn sign(
    certificate: &str,
    certificate_signature: Signature,
    manifest: &Manifest,
    key: &SignKey,
) -> Result<Header, serde_json::Error> {
    let manifest = serde_json::to_string(manifest)?;
    let manifest_signature = key.sign(&signed(MANIFEST_CONTEXT, &manifest));
    Ok(Header { certificate: certificate.to_owned(), certificate_signature, manifest, manifest_signature })
}

/// Certifies signing keys with the root key; used on an offline machine.
pub fn certify(certificate: &Certificate, root: &SignKey) -> Result<(String, Signature), serde_json::Error> {
    let text = serde_json::to_string(certificate)?;
    let signature = root.sign(&signed(CERTIFICATE_CONTEXT, &text));
    Ok((text, signature))
}

fn signed(context: &[u8], text: &str) -> Vec<u8> {
    [context, text.as_bytes()].concat()
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
        let (text, signature) =
            certify(&Certificate { serial, keys: vec![key(certified).public()] }, &key(root)).unwrap();
        serde_json::to_vec(&sign(&text, signature, manifest, &key(signer)).unwrap()).unwrap()
    }

    fn known() -> Known {
        Known { board: "x".into(), serial: 2, floor: 4 }
    }

    #[test]
    fn accepted_bundle_raises_serial_and_floor() {
        let roots = [key(9).public(), key(1).public()];
        let accepted = verify_header(&bundle(1, 3, 2, 2, &manifest()), &roots, &known()).unwrap();
        assert_eq!(accepted.learned, Known { board: "x".into(), serial: 3, floor: 5 });
        assert_eq!(accepted.manifest, manifest());
    }

    #[test]
    fn each_fault_has_its_error() {
        let roots = [key(1).public()];
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
        let text = serde_json::to_string(&Certificate { serial: 9, keys: vec![key(2).public()] }).unwrap();
        let signature = key(1).sign(&signed(MANIFEST_CONTEXT, &text));
        let header = sign(&text, signature, &manifest(), &key(2)).unwrap();
        let bytes = serde_json::to_vec(&header).unwrap();
        assert_eq!(verify_header(&bytes, &[key(1).public()], &known()).unwrap_err(), ManifestError::Uncertified);
    }

    #[test]
    fn root_keys_are_one_per_line() {
        let text = format!("# roots\n{}  # ours\nnonsense\n", key(1).public());
        assert_eq!(root_keys(&text), [key(1).public()]);
    }

    proptest! {
        #[test]
        fn flipped_bit_is_rejected(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let good = bundle(1, 2, 2, 2, &manifest());
            let mut bad = good.clone();
            let at = at.index(bad.len());
            bad[at] ^= 1 << bit;
            let result = verify_header(&bad, &[key(1).public()], &known());
            // A flip in the name of an ignored JSON field is harmless; what is accepted must be what was signed.
            prop_assert!(result.is_err() || result.unwrap().manifest == manifest());
        }

        #[test]
        fn any_bytes_are_rejected(bytes in proptest::collection::vec(any::<u8>(), 0..200), first in any::<[u8; 12]>()) {
            let _ = header_length(&first);
            prop_assert!(verify_header(&bytes, &[key(1).public()], &known()).is_err());
        }
    }
}
