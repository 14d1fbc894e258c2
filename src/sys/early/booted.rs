//! Which disk and which slot the boot loader started, by the variables that systemd-boot and the kernel's stub leave in UEFI
//! (systemd-boot(7), systemd-stub(7)); U-Boot keeps them, too.
//!
//! A stick beside an installed disk may carry the same release, and both slots of a disk may: their roots are then equal, and
//! content alone would choose the wrong one.
use super::parts::Partition;
use super::say;
use spoke_update::slot::{Entry, Slot};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const VARIABLES: &str = "/sys/firmware/efi/efivars";
/// Vendor of systemd's variables.
const VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
const SECTOR: u64 = 512;

/// What the boot loader started; `None`: unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Booted {
    /// Id of the boot partition, in the bytes of the partition table.
    partition: Option<[u8; 16]>,
    slot: Option<Slot>,
}

impl Booted {
    /// Reads the variables, which must be mounted already or can be mounted.
    pub fn find() -> Self {
        let variables = Path::new(VARIABLES);
        if !variables.join(format!("LoaderInfo-{VENDOR}")).exists() {
            let _ = rustix::mount::mount("efivarfs", variables, "efivarfs", rustix::mount::MountFlags::RDONLY, c"");
        }
        Self::read(variables)
    }

    fn read(variables: &Path) -> Self {
        let text = |name: &str| {
            let bytes = std::fs::read(variables.join(format!("{name}-{VENDOR}"))).ok()?;
            // Four bytes of attributes, then UTF-16.
            let units = bytes.get(4..)?.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]]));
            Some(String::from_utf16_lossy(&units.take_while(|u| *u != 0).collect::<Vec<_>>()))
        };
        let partition = ["StubDevicePartUUID", "LoaderDevicePartUUID"];
        Self {
            partition: partition.into_iter().find_map(|name| id(&text(name)?)),
            slot: text("StubImageIdentifier").and_then(|path| slot(&path)),
        }
    }

    /// The partitions of the disk that was booted, those of the started slot first. All of them if the disk is unknown or, after
    /// `waited`, not there.
    pub fn only(&self, mut all: Vec<Partition>, waited: bool) -> Vec<Partition> {
        if let Some(wanted) = self.partition {
            let disks: BTreeSet<String> = all.iter().map(|p| p.disk.clone()).collect();
            let ours: BTreeSet<String> = disks
                .into_iter()
                .filter(|disk| {
                    File::open(Path::new("/dev").join(disk))
                        .and_then(|d| ids(&d))
                        .is_ok_and(|ids| ids.contains(&wanted))
                })
                .collect();
            if !ours.is_empty() || !waited {
                all.retain(|p| ours.contains(&p.disk));
            } else {
                say("the disk that was booted from is not there: searching all");
            }
        }
        let started = self.slot;
        all.sort_by_key(|p| started.is_none() || Slot::of_partition(&p.name) != started);
        all
    }
}

/// The slot of a kernel's path, such as `\EFI\Linux\spoke-000002-b+2-2.efi` or `\EFI\Linux\spoke-b.efi`.
fn slot(path: &str) -> Option<Slot> {
    let name = path.rsplit(['\\', '/']).next()?;
    let plain = name.strip_prefix("spoke-").and_then(|n| n.strip_suffix(".efi")).and_then(|n| n.parse().ok());
    plain.or_else(|| Some(Entry::parse(name)?.slot))
}

/// A GUID in the bytes of a partition table: its first three fields are little-endian.
fn id(text: &str) -> Option<[u8; 16]> {
    let hex = text.trim().replace('-', "");
    let mut bytes: [u8; 16] = const_hex::decode(hex).ok()?.try_into().ok()?;
    bytes[0..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    Some(bytes)
}

/// The ids of a disk's partitions.
fn ids(disk: &File) -> io::Result<Vec<[u8; 16]>> {
    let mut header = [0; 92];
    disk.read_exact_at(&mut header, SECTOR)?;
    let u32_at = |at: usize| header.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    let at = header.get(72..80).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let (count, length) = (u32_at(80), u32_at(84));
    if !header.starts_with(b"EFI PART") || !(128..=4096).contains(&length) || count > 1024 || at > 1 << 40 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut found = Vec::new();
    for n in 0..u64::from(count) {
        let mut id = [0; 16];
        disk.read_exact_at(&mut id, at * SECTOR + n * u64::from(length) + 16)?;
        if id != [0; 16] {
            found.push(id);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(text: &str) -> Vec<u8> {
        let units = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
        [6, 0, 0, 0].into_iter().chain(units).collect()
    }

    #[test]
    fn variables_name_disk_and_slot() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Booted::read(dir.path()), Booted::default());
        let write = |name: &str, text: &str| {
            std::fs::write(dir.path().join(format!("{name}-{VENDOR}")), variable(text)).unwrap();
        };
        write("LoaderDevicePartUUID", "5B0CE000-0000-4000-8000-0000000000F1");
        write("StubImageIdentifier", "\\EFI\\Linux\\spoke-000002-b+2-2.efi");
        let booted = Booted::read(dir.path());
        assert_eq!(booted.slot, Some(Slot::B));
        let bytes = [0x00, 0xe0, 0x0c, 0x5b, 0, 0, 0, 0x40, 0x80, 0, 0, 0, 0, 0, 0, 0xf1];
        assert_eq!(booted.partition, Some(bytes));
        assert_eq!(slot("\\EFI\\Linux\\spoke-a.efi"), Some(Slot::A));
        assert_eq!(slot("\\EFI\\BOOT\\BOOTX64.EFI"), None);
    }

    #[test]
    fn started_slot_is_searched_first() {
        let part = |name: &str| Partition { name: name.into(), device: name.into(), disk: "none".into() };
        let all = || vec![part("boot"), part("root_a"), part("root_b")];
        let names = |all: Vec<Partition>| all.into_iter().map(|p| p.name).collect::<Vec<_>>();
        let booted = Booted { partition: None, slot: Some(Slot::B) };
        assert_eq!(names(booted.only(all(), false)), ["root_b", "boot", "root_a"]);
        assert_eq!(names(Booted::default().only(all(), false)), ["boot", "root_a", "root_b"]);
        // Another disk is no substitute until the wait is over.
        let absent = Booted { partition: Some([1; 16]), slot: None };
        assert!(absent.only(all(), false).is_empty());
        assert_eq!(absent.only(all(), true).len(), 3);
    }

    #[test]
    fn ids_of_a_table_are_read() {
        let mut disk = vec![0; 4096];
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[512 + 72] = 2;
        disk[512 + 80] = 2;
        disk[512 + 84] = 128;
        disk[1024 + 16..1024 + 32].fill(7);
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &disk).unwrap();
        assert_eq!(ids(&file).unwrap(), [[7; 16]]);
    }
}
