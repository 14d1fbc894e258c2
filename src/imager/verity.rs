//! Checks an image's root partition against the root hash in its kernel, as dm-verity does at every read on the device.
use ring::digest::{Context, SHA256};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

const BLOCK: usize = 4096;
const DIGEST: usize = 32;
const KEYS: [&[u8]; 2] = [b"spoke.roothash=", b"spoke.hashoffset="];

/// What a kernel expects of its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    hash: Vec<u8>,
    offset: u64,
}

/// The expectations of every kernel in `size` bytes of the boot partition at `start`.
pub fn expected(disk: &File, start: u64, size: u64) -> io::Result<Vec<Expected>> {
    // Longer than the two words of a command line; blocks overlap by it.
    const OVERLAP: usize = 512;
    let mut block = vec![0; (1 << 20) + OVERLAP];
    let (mut at, mut found) = (0, Vec::new());
    while at < size {
        let want = usize::try_from(size - at).unwrap_or(usize::MAX).min(block.len());
        let part = block.get_mut(..want).unwrap_or_default();
        disk.read_exact_at(part, start + at)?;
        let mut rest: &[u8] = part;
        while let Some(i) = rest.windows(KEYS[0].len()).position(|w| w == KEYS[0]) {
            rest = rest.get(i..).unwrap_or_default();
            if let Some(e) = command_line(rest).filter(|e| !found.contains(e)) {
                found.push(e);
            }
            rest = rest.get(1..).unwrap_or_default();
        }
        at += 1 << 20;
    }
    Ok(found)
}

fn command_line(text: &[u8]) -> Option<Expected> {
    let text = text.get(..text.len().min(200))?;
    let value = |key: &[u8]| {
        let i = text.windows(key.len()).position(|w| w == key)?;
        let value = text.get(i + key.len()..)?;
        std::str::from_utf8(value.split(|b| b.is_ascii_whitespace() || *b == 0).next()?).ok()
    };
    let hash = const_hex::decode(value(KEYS[0])?).ok().filter(|h| h.len() == DIGEST)?;
    Some(Expected { hash, offset: value(KEYS[1])?.parse().ok()? })
}

/// The root hash of `size` bytes of data at `start`, with the salt of the superblock that follows them (`struct verity_sb`:
/// salt size at 80, salt at 88); `None`: no superblock. Hashes of a level fill blocks of 4 KiB, padded with zeros.
pub fn root_hash(disk: &File, start: u64, size: u64) -> io::Result<Option<Vec<u8>>> {
    let mut superblock = [0; 512];
    disk.read_exact_at(&mut superblock, start + size)?;
    let length = usize::from(u16::from_le_bytes([superblock[80], superblock[81]]));
    let (true, Some(salt)) = (superblock.starts_with(b"verity\0\0"), superblock.get(88..88 + length.min(256))) else {
        return Ok(None);
    };
    let digest = |block: &[u8]| {
        let mut sum = Context::new(&SHA256);
        sum.update(salt);
        sum.update(block);
        sum.finish()
    };
    let mut level = Vec::new();
    let mut block = [0; BLOCK];
    for n in 0..size / BLOCK as u64 {
        disk.read_exact_at(&mut block, start + n * BLOCK as u64)?;
        level.extend_from_slice(digest(&block).as_ref());
    }
    while level.len() > DIGEST {
        let mut above = Vec::new();
        for part in level.chunks(BLOCK) {
            block.fill(0);
            block.get_mut(..part.len()).unwrap_or_default().copy_from_slice(part);
            above.extend_from_slice(digest(&block).as_ref());
        }
        level = above;
    }
    Ok(Some(level))
}

impl Expected {
    /// Whether the partition at `start` is the root that the kernel expects.
    pub fn is_at(&self, disk: &File, start: u64, size: u64) -> io::Result<bool> {
        if !self.offset.is_multiple_of(BLOCK as u64) || self.offset.saturating_add(512) > size {
            return Ok(false);
        }
        Ok(root_hash(disk, start, self.offset)?.is_some_and(|hash| hash == self.hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn command_line_is_found_across_blocks() {
        let hash = "ab".repeat(32);
        for at in [0usize, 700, (1 << 20) - 40, (1 << 20) + 3] {
            let mut disk = vec![0; 3 << 20];
            let line = format!("spoke.roothash={hash} spoke.hashoffset=8192 quiet");
            disk[at + 512..at + 512 + line.len()].copy_from_slice(line.as_bytes());
            let found = expected(&file(&disk), 512, (3 << 20) - 512).unwrap();
            assert_eq!(found, [Expected { hash: vec![0xab; 32], offset: 8192 }], "{at}");
        }
        assert_eq!(expected(&file(&[0; 4096]), 0, 4096).unwrap(), []);
    }

    #[test]
    fn every_flipped_bit_changes_the_root_hash() {
        // 200 blocks have two levels of hashes.
        let mut disk: Vec<u8> = (0..200 * BLOCK).map(|i| (i / 7) as u8).collect();
        let mut superblock = [0; 512];
        superblock[..8].copy_from_slice(b"verity\0\0");
        superblock[80] = 4;
        superblock[88..92].copy_from_slice(b"salt");
        disk.extend_from_slice(&superblock);
        let size = 200 * BLOCK as u64;
        let right = root_hash(&file(&disk), 0, size).unwrap().unwrap();
        let expected = Expected { hash: right, offset: size };
        assert!(expected.is_at(&file(&disk), 0, disk.len() as u64).unwrap());
        for at in [0, 5000, 128 * BLOCK, 200 * BLOCK - 1, 200 * BLOCK + 88] {
            let mut damaged = disk.clone();
            damaged[at] ^= 1;
            assert!(!expected.is_at(&file(&damaged), 0, disk.len() as u64).unwrap(), "{at}");
        }
    }
}
