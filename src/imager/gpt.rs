//! Reads, checks and completes a GUID partition table (UEFI specification, chapter 5).
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

const SECTOR: u64 = 512;
/// Bytes of a header that its checksum covers.
const HEADER: usize = 92;

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
    /// A checksum is wrong.
    #[error("has a damaged partition table: fetch it again")]
    Damaged,
}

struct Table {
    header: [u8; HEADER],
    /// All entries, with their padding.
    entries: Vec<u8>,
}

impl Table {
    fn read(disk: &File) -> Result<Self, GptError> {
        let mut header = [0; HEADER];
        disk.read_exact_at(&mut header, SECTOR).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => GptError::None,
            _ => GptError::Io(e),
        })?;
        let (at, count, length) = (number64(&header, 72), number32(&header, 80), number32(&header, 84));
        if !header.starts_with(b"EFI PART") || !(128..=4096).contains(&length) || count > 1024 || at > 1 << 40 {
            return Err(GptError::None);
        }
        let mut entries = vec![0; (count * length) as usize];
        disk.read_exact_at(&mut entries, at * SECTOR)?;
        let table = Self { header, entries };
        if table.sum() != number32(&header, 16) || crc32(&table.entries) != number32(&header, 88) {
            return Err(GptError::Damaged);
        }
        Ok(table)
    }

    /// The header's checksum, over itself with that field zero.
    fn sum(&self) -> u32 {
        let mut header = self.header;
        header[16..20].fill(0);
        crc32(&header)
    }

    fn put(&mut self, at: usize, value: u64) {
        self.header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// The first sector of the header with its checksums set.
    fn sector(&mut self) -> [u8; SECTOR as usize] {
        self.header[88..92].copy_from_slice(&crc32(&self.entries).to_le_bytes());
        let sum = self.sum();
        self.header[16..20].copy_from_slice(&sum.to_le_bytes());
        let mut sector = [0; SECTOR as usize];
        sector[..HEADER].copy_from_slice(&self.header);
        sector
    }
}

fn number32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn number64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// CRC-32 (IEEE 802.3).
fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// The partitions in use, in the order of the table.
pub fn read(disk: &File) -> Result<Vec<Partition>, GptError> {
    let table = Table::read(disk)?;
    let length = number32(&table.header, 84) as usize;
    let used = table.entries.chunks_exact(length).filter(|e| e.iter().take(16).any(|b| *b != 0));
    Ok(used
        .map(|entry| {
            let name: Vec<u16> = entry
                .get(56..128)
                .unwrap_or_default()
                .chunks_exact(2)
                .map(|c| u16::from_le_bytes([c[0], c[1]]))
                .take_while(|c| *c != 0)
                .collect();
            let (first, last) = (number64(entry, 32), number64(entry, 40));
            Partition {
                name: String::from_utf16_lossy(&name),
                start: first.saturating_mul(SECTOR),
                size: last.saturating_add(1).saturating_sub(first).saturating_mul(SECTOR),
            }
        })
        .collect())
}

/// Completes the table of a disk of `size` bytes: the backup at the disk's end, and ids of its own for disk and partitions, by
/// which two disks with the same image are distinguished.
pub fn complete(disk: &File, size: u64, mut random: impl FnMut(&mut [u8]) -> io::Result<()>) -> Result<(), GptError> {
    let mut table = Table::read(disk)?;
    let length = number32(&table.header, 84) as usize;
    let mut id = |at: &mut [u8]| {
        random(at)?;
        // Version 4, variant 1 (RFC 9562); the first three fields of a GUID are little-endian.
        at[7] = at[7] & 0x0f | 0x40;
        at[8] = at[8] & 0x3f | 0x80;
        Ok::<(), io::Error>(())
    };
    id(&mut table.header[56..72])?;
    for entry in table.entries.chunks_exact_mut(length).filter(|e| e.iter().take(16).any(|b| *b != 0)) {
        id(&mut entry[16..32])?;
    }
    let entry_sectors = (table.entries.len() as u64).div_ceil(SECTOR);
    let last = (size / SECTOR).saturating_sub(1);
    let (backup, old_backup) = (last.saturating_sub(entry_sectors), number64(&table.header, 32));
    let first_entries = number64(&table.header, 72);
    // A backup elsewhere would be found by no tool, and could later lie inside a partition.
    if old_backup != last && old_backup < last {
        disk.write_all_at(&[0; SECTOR as usize], old_backup * SECTOR)?;
    }
    table.put(48, backup.saturating_sub(1));
    // The backup first: until it is written, the primary is whole.
    for (at, value) in [(24, last), (32, 1), (72, backup)] {
        table.put(at, value);
    }
    let sector = table.sector();
    disk.write_all_at(&table.entries, backup * SECTOR)?;
    disk.write_all_at(&sector, last * SECTOR)?;
    disk.sync_all()?;
    for (at, value) in [(24, 1), (32, last), (72, first_entries)] {
        table.put(at, value);
    }
    let sector = table.sector();
    // The protective partition of the MBR covers the disk, as far as its 32 bits go.
    let covered = u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes();
    disk.write_all_at(&covered, 446 + 12)?;
    disk.write_all_at(&table.entries, first_entries * SECTOR)?;
    disk.write_all_at(&sector, SECTOR)?;
    disk.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A table with one partition of 8 sectors at sector 40.
    fn table() -> Vec<u8> {
        let mut disk = vec![0; 64 * 512];
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[512 + 12] = 92;
        disk[512 + 32] = 63;
        disk[512 + 72] = 2;
        disk[512 + 80] = 2;
        disk[512 + 84] = 128;
        disk[1024] = 1;
        disk[1024 + 32] = 40;
        disk[1024 + 40] = 47;
        for (i, c) in "boot".bytes().enumerate() {
            disk[1024 + 56 + 2 * i] = c;
        }
        let sum = crc32(&disk[1024..1024 + 256]).to_le_bytes();
        disk[512 + 88..512 + 92].copy_from_slice(&sum);
        let sum = crc32(&disk[512..512 + 92]).to_le_bytes();
        disk[512 + 16..512 + 20].copy_from_slice(&sum);
        disk
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, bytes).unwrap();
        file
    }

    #[test]
    fn names_and_offsets_are_read() {
        let boot = Partition { name: "boot".into(), start: 40 * 512, size: 8 * 512 };
        assert_eq!(read(&file(&table())).unwrap(), [boot]);
        assert!(matches!(read(&file(b"short")), Err(GptError::None)));
    }

    #[test]
    fn backup_is_at_the_end_and_ids_differ() {
        let disk = file(&table());
        let size = 1 << 20;
        disk.set_len(size).unwrap();
        let mut n = 0;
        let random = |at: &mut [u8]| {
            n += 1;
            at.fill(n);
            Ok(())
        };
        complete(&disk, size, random).unwrap();
        assert_eq!(read(&disk).unwrap()[0].name, "boot");
        let mut last = [0; 92];
        disk.read_exact_at(&mut last, size - 512).unwrap();
        assert!(last.starts_with(b"EFI PART"));
        assert_eq!((number64(&last, 24), number64(&last, 32)), (2047, 1));
        let mut primary = [0; 92];
        disk.read_exact_at(&mut primary, 512).unwrap();
        assert_eq!((number64(&primary, 24), number64(&primary, 32)), (1, 2047));
        assert_eq!(primary[56..72], last[56..72]);
        assert_ne!(primary[56..72], [0; 16]);
    }

    proptest! {
        #[test]
        fn flipped_bit_of_the_table_is_found(at in 512usize..512 + 92, bit in 0u8..8) {
            let mut disk = table();
            disk[at] ^= 1 << bit;
            prop_assert!(read(&file(&disk)).is_err());
        }

        #[test]
        fn flipped_bit_of_an_entry_is_found(at in 1024usize..1024 + 256, bit in 0u8..8) {
            let mut disk = table();
            disk[at] ^= 1 << bit;
            prop_assert!(matches!(read(&file(&disk)), Err(GptError::Damaged)));
        }
    }
}
