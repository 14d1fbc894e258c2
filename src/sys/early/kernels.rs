//! Finds the slot of the running kernel: the boot loader does not pass it, but only one kernel contains our root hash.
use spoke_update::slot::{Entry, Slot};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Bytes read at a time: a kernel has up to 40 MB, and a small board has little more.
const CHUNK: usize = 256 * 1024;

/// The slot whose kernel in `directory` contains this root hash.
pub fn slot_of(directory: &Path, root_hash: &str) -> Option<Slot> {
    let needle = format!("spoke.roothash={root_hash}");
    std::fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let slot = match name.as_str() {
            "spoke-a.efi" => Slot::A,
            "spoke-b.efi" => Slot::B,
            other => Entry::parse(other)?.slot,
        };
        contains(File::open(entry.path()).ok()?, needle.as_bytes()).ok()?.then_some(slot)
    })
}

/// Whether the file contains `needle`, which is shorter than a chunk.
fn contains(mut file: impl Read, needle: &[u8]) -> io::Result<bool> {
    let Some(first) = needle.first() else { return Ok(true) };
    let mut buffer = vec![0; CHUNK + needle.len()];
    let mut kept = 0;
    loop {
        let count = file.read(buffer.get_mut(kept..).unwrap_or(&mut []))?;
        if count == 0 {
            return Ok(false);
        }
        let filled = kept + count;
        let mut rest = buffer.get(..filled).unwrap_or(&[]);
        while let Some(at) = rest.iter().position(|b| b == first) {
            rest = rest.get(at..).unwrap_or(&[]);
            if rest.starts_with(needle) {
                return Ok(true);
            }
            rest = rest.get(1..).unwrap_or(&[]);
        }
        // The needle may lie across two chunks.
        kept = filled.min(needle.len() - 1);
        buffer.copy_within(filled - kept..filled, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_with_our_hash_names_the_slot() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = |hash: &str| [vec![b's'; CHUNK - 5], format!("spoke.roothash={hash} ro").into_bytes()].concat();
        std::fs::write(dir.path().join("spoke-000001-a.efi"), kernel("aa")).unwrap();
        std::fs::write(dir.path().join("spoke-000002-b+0-3.efi"), kernel("bb")).unwrap();
        std::fs::write(dir.path().join("spoke-staged.new"), kernel("cc")).unwrap();
        assert_eq!(slot_of(dir.path(), "aa"), Some(Slot::A));
        assert_eq!(slot_of(dir.path(), "bb"), Some(Slot::B));
        assert_eq!(slot_of(dir.path(), "cc"), None);
        std::fs::write(dir.path().join("spoke-b.efi"), kernel("dd")).unwrap();
        assert_eq!(slot_of(dir.path(), "dd"), Some(Slot::B));
        assert_eq!(slot_of(&dir.path().join("absent"), "aa"), None);
    }

    #[test]
    fn text_is_found_across_chunks() {
        for at in [0, 1, CHUNK - 1, CHUNK, CHUNK + 3, 2 * CHUNK] {
            let mut bytes = vec![b'x'; at];
            bytes.extend_from_slice(b"xneedle");
            assert!(contains(&bytes[..], b"xneedle").unwrap(), "{at}");
            bytes.pop();
            assert!(!contains(&bytes[..], b"xneedle").unwrap(), "{at}");
        }
    }
}
