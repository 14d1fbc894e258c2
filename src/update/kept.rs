//! How much of a download is kept on the disk: the last sector of the slot that is not running.
//!
//! Written after the data is synced. It is a hint: what is kept counts only once all of it has the digests that were signed.
use super::manifest::Manifest;
use super::uboot::crc32;
use spoke_model::signature::sha256_hex;

const MAGIC: &[u8; 8] = b"SPKKEPT1";
/// Length of an id, in bytes.
const ID: usize = 64;
/// Bytes of the note.
pub const SIZE: usize = 8 + ID + 8 + 8 + 4;
/// Bytes at the end of the slot that are left for it.
pub const RESERVED: u64 = 4096;

/// The progress of one download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The content it is of: [`id`].
    pub id: String,
    /// Where it begins in the partition, in bytes.
    pub at: u64,
    /// Bytes that are on the disk.
    pub have: u64,
}

/// Names what a bundle contains, whatever signed it and wherever it is fetched from.
pub fn id(manifest: &Manifest) -> String {
    sha256_hex(format!("{} {}", manifest.root.sha256, manifest.kernel.sha256).as_bytes())
}

impl Kept {
    /// `None`: no note, or a damaged one.
    pub fn parse(note: &[u8]) -> Option<Self> {
        let (data, sum) = note.get(..SIZE)?.split_at_checked(SIZE - 4)?;
        if !data.starts_with(MAGIC) || crc32(data).to_le_bytes() != *sum {
            return None;
        }
        let number = |at: usize| Some(u64::from_le_bytes(data.get(at..at + 8)?.try_into().ok()?));
        let id = std::str::from_utf8(data.get(8..8 + ID)?).ok()?.to_owned();
        Some(Self { id, at: number(8 + ID)?, have: number(16 + ID)? })
    }

    /// The bytes of the note.
    pub fn bytes(&self) -> Vec<u8> {
        let mut id = self.id.clone().into_bytes();
        id.resize(ID, b' ');
        let mut out = [MAGIC.as_slice(), &id, &self.at.to_le_bytes(), &self.have.to_le_bytes()].concat();
        let sum = crc32(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn note_round_trips_and_damage_is_found(at in any::<u64>(), have in any::<u64>(), byte in 0..SIZE, bit in 0u8..8) {
            let kept = Kept { id: sha256_hex(b"x"), at, have };
            let mut note = kept.bytes();
            prop_assert_eq!(Kept::parse(&note), Some(kept));
            note[byte] ^= 1 << bit;
            prop_assert_eq!(Kept::parse(&note), None);
        }

        #[test]
        fn any_bytes_are_parsed(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            prop_assert_eq!(Kept::parse(&bytes), None);
        }
    }
}
