//! Update bundles and the boot environment. A release is accepted only signed, for this board, and not below the floor.

use spoke_model::signature::SignKey;
use spoke_sys::bundle::open;
use spoke_update::manifest::{Certificate, Known, MAGIC, Manifest, Roots, certify, sign};
use spoke_update::seal::Seal;
use spoke_update::uboot::Stored;

fn key(n: u8) -> SignKey {
    SignKey::from_seed(&[n; 32]).unwrap_or_else(|_| unreachable!("a seed"))
}

/// The first byte selects the reader, the rest is its input. Whether it was accepted.
pub(crate) fn consume(data: &[u8]) -> bool {
    let Some((kind, rest)) = data.split_first() else { return false };
    let known = Known { board: "x".into(), serial: 2, floor: 4 };
    match kind % 4 {
        0 => {
            let accepted = open(&mut &*rest, &Roots { keys: vec![key(1).public()], threshold: 1 }, &known);
            assert!(accepted.is_err(), "an unsigned bundle was accepted");
            false
        }
        1 => {
            let Ok(manifest) = serde_json::from_slice::<Manifest>(rest) else { return false };
            let certificate = Certificate { serial: 3, keys: vec![key(2).public()], threshold: 1 };
            let (Ok(certified), other) = (certify(&certificate, &key(1)), key(3)) else { return false };
            let bundle = |by: &SignKey| {
                let header = sign(certified.clone(), &manifest, by).ok().and_then(|h| serde_json::to_vec(&h).ok())?;
                let length = u32::try_from(header.len()).ok()?;
                Some([MAGIC.as_slice(), &length.to_le_bytes(), &header].concat())
            };
            let (Some(genuine), Some(forged)) = (bundle(&key(2)), bundle(&other)) else { return false };
            let roots = Roots { keys: vec![key(1).public()], threshold: 1 };
            assert!(open(&mut forged.as_slice(), &roots, &known).is_err(), "signed by a key without certificate");
            match open(&mut genuine.as_slice(), &roots, &known) {
                Ok(accepted) => {
                    assert!(manifest.board == known.board && manifest.sequence >= known.floor);
                    assert!(
                        accepted.learned.floor >= known.floor
                            && accepted.learned.floor <= manifest.sequence.max(known.floor)
                    );
                    assert_eq!((accepted.learned.serial, accepted.manifest), (3, manifest));
                    true
                }
                Err(_) => false,
            }
        }
        2 => {
            let (first, second) = rest.split_at(rest.len() / 2);
            let seal = Seal::parse([first, second]);
            assert_eq!(Seal::parse([&seal.bytes(), &[]]), seal, "a seal is written and read again");
            assert_eq!(seal.raised(Seal::parse([&[], &[]])), seal, "a seal only rises");
            true
        }
        _ => {
            let (first, second) = rest.split_at(rest.len() / 2);
            let env = Stored::parse([first, second]);
            let _ = env.needs_repair();
            if let Ok(text) = std::str::from_utf8(rest) {
                let _ = Roots::parse(text);
            }
            true
        }
    }
}
