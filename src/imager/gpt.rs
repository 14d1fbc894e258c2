//! Reads a GUID partition table: names, offsets, sizes.
use std::fs::File;
use std::os::unix::fs::FileExt as _;

const SECTOR: u64 = 512;

/// One partition; offset and size in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its name.
    pub name: String,
    /// Offset of its first byte.
    pub start: u64,
    /// Size.
    pub size: u64,
}

/// Why the table cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GptError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// There is no table.
    #[error("has no GUID partition table")]
    None,
}

/// The partitions in use, in the order of the table.
pub fn read(disk: &File) -> Result<Vec<Partition>, GptError> {
    let mut header = [0; 92];
    disk.read_exact_at(&mut header, SECTOR).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => GptError::None,
        _ => GptError::Io(e),
    })?;
    let u32_at = |at: usize| header.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    let entries_at = header.get(72..80).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let (count, length) = (u32_at(80), u32_at(84));
    if !header.starts_with(b"EFI PART") || !(128..=4096).contains(&length) || count > 1024 || entries_at > 1 << 40 {
        return Err(GptError::None);
    }
    let mut found = Vec::new();
    for i in 0..u64::from(count) {
        let mut entry = [0; 128];
        disk.read_exact_at(&mut entry, entries_at * SECTOR + i * u64::from(length))?;
        if entry.iter().take(16).all(|b| *b == 0) {
            continue;
        }
        let lba = |at: usize| entry.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        let name: Vec<u16> = entry
            .get(56..)
            .unwrap_or_default()
            .chunks_exact(2)
            .map(|c| u16::from_le_bytes([c[0], c[1]]))
            .take_while(|c| *c != 0)
            .collect();
        found.push(Partition {
            name: String::from_utf16_lossy(&name),
            start: lba(32).saturating_mul(SECTOR),
            size: (lba(40).saturating_add(1)).saturating_sub(lba(32)).saturating_mul(SECTOR),
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A table with one partition of 8 sectors at sector 40.
    fn table() -> Vec<u8> {
        let mut disk = vec![0; 2048];
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[512 + 72] = 2;
        disk[512 + 80] = 2;
        disk[512 + 84] = 128;
        disk[1024] = 1;
        disk[1024 + 32] = 40;
        disk[1024 + 40] = 47;
        for (i, c) in "boot".bytes().enumerate() {
            disk[1024 + 56 + 2 * i] = c;
        }
        disk
    }

    fn parse(bytes: &[u8]) -> Result<Vec<Partition>, GptError> {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        read(&file)
    }

    #[test]
    fn names_and_offsets_are_read() {
        assert_eq!(parse(&table()).unwrap(), [Partition { name: "boot".into(), start: 40 * 512, size: 8 * 512 }]);
        assert!(matches!(parse(b"short"), Err(GptError::None)));
    }

    proptest! {
        #[test]
        fn any_disk_is_parsed_without_panic(at in 512usize..2048, byte in any::<u8>()) {
            let mut disk = table();
            disk[at] = byte;
            let _ = parse(&disk);
        }
    }
}
