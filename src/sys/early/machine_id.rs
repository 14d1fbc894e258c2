//! The machine id, which systemd derives DHCP's identifiers from. The root is read-only, so it is kept in the raw partition of the boot
//! environment: identifiers that change at every start use up the addresses of a DHCP server.
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Offset in the boot environment's partition, behind what the boot loader and the count of starts use.
const AT: u64 = 0x8_0000;
const MAGIC: &[u8; 8] = b"SPKMCHID";
/// Bytes of the record: magic, id, id inverted. It fits into one sector, which is written atomically.
const SIZE: usize = 8 + 16 + 16;

/// A machine id, see machine-id(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineId([u8; 16]);

impl MachineId {
    /// The id kept in `partition`; a new one is stored there. An error to store it loses it at the next start only.
    pub fn keep(partition: &Path) -> Option<Self> {
        match Self::read(partition) {
            Some(id) => Some(id),
            None => {
                let id = Self::random()?;
                let _ = id.write(partition);
                Some(id)
            }
        }
    }

    fn read(partition: &Path) -> Option<Self> {
        let mut record = [0; SIZE];
        File::open(partition).ok()?.read_exact_at(&mut record, AT).ok()?;
        let (magic, rest) = record.split_at(MAGIC.len());
        let (id, inverse) = rest.split_at(16);
        let intact = magic == MAGIC && id.iter().zip(inverse).all(|(a, b)| *a == !*b);
        intact.then(|| id.try_into().map(Self).ok()).flatten()
    }

    fn write(self, partition: &Path) -> io::Result<()> {
        let record = [&MAGIC[..], &self.0, &self.0.map(|b| !b)].concat();
        let file = OpenOptions::new().write(true).open(partition)?;
        file.write_all_at(&record, AT)?;
        file.sync_all()
    }

    fn random() -> Option<Self> {
        let bytes = crate::random::key_bytes().ok()?;
        let mut id: [u8; 16] = bytes.get(..16)?.try_into().ok()?;
        // Version and variant of a random UUID (RFC 9562).
        id[6] = id[6] & 0x0f | 0x40;
        id[8] = id[8] & 0x3f | 0x80;
        Some(Self(id))
    }

    /// The content of /etc/machine-id.
    pub fn text(self) -> String {
        format!("{}\n", const_hex::encode(self.0))
    }

    /// The host name until the node has a name.
    pub fn host_name(self) -> String {
        format!("spoke-{}", const_hex::encode(&self.0[..4]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bootenv");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        (dir, path)
    }

    #[test]
    fn id_stays_the_same_over_starts() {
        let (_dir, path) = partition();
        let id = MachineId::keep(&path).unwrap();
        assert_eq!(MachineId::keep(&path), Some(id));
        assert_eq!(id.text().trim().len(), 32);
        assert_eq!(id.host_name().len(), "spoke-".len() + 8);
        let (_dir, other) = partition();
        assert_ne!(MachineId::keep(&other), Some(id));
    }

    #[test]
    fn damaged_id_is_replaced() {
        let (_dir, path) = partition();
        let id = MachineId::keep(&path).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[0x55], AT + 9).unwrap();
        let new = MachineId::keep(&path).unwrap();
        assert_ne!(new, id);
        assert_eq!(MachineId::keep(&path), Some(new));
    }

    #[test]
    fn unwritable_partition_gives_an_id_for_this_start() {
        assert!(MachineId::keep(Path::new("/proc/version")).is_some());
    }
}
