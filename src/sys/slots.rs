//! The two slots as the boot loader sees them: systemd-boot's entries on the FAT partition, U-Boot's environment block.
use rustix::fs::fsync;
use spoke_update::kept;
use spoke_update::kept::Kept;
use spoke_update::seal;
use spoke_update::seal::Seal;
use spoke_update::slot;
use spoke_update::slot::{Entry, Slot, Starts, Trust};
use spoke_update::uboot;
use spoke_update::uboot::{BootEnv, Stored};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

pub mod lock;

/// Directory in which the first process writes the slot, the loader and links to the partitions.
pub const RUN: &str = "/run/slot";
/// Offset of the starts record in the boot environment partition; U-Boot's block lies before it.
const STARTS_AT: u64 = 0x1_0000;

/// Why slots cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// This system was not started from a slot.
    #[error("this system was not started from a slot of a Spoke image: updates work there only")]
    NoSlots,
    /// A partition or file failed.
    #[error("cannot {what}")]
    Io {
        /// The intention.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The boot loader has no entry for a slot.
    #[error("the boot loader has no entry for slot {0}")]
    NoEntry(Slot),
    /// Another process changes the slots.
    #[error("another update is at work{0}: wait until it has ended (spoke update status)")]
    Busy(String),
    /// There is no room for the new kernel.
    #[error(
        "the boot partition has {free} bytes free and the kernel needs {needed}: remove files that are not Spoke's from it"
    )]
    NoSpace {
        /// Bytes free.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// The root image does not fit.
    #[error(
        "the root image has {size} bytes and slot {slot} {room}: this update is for a larger disk layout; flash the device again"
    )]
    TooLarge {
        /// The slot.
        slot: Slot,
        /// Size of the image.
        size: u64,
        /// Size of the partition.
        room: u64,
    },
}

fn io(what: &'static str) -> impl FnOnce(io::Error) -> SlotError {
    move |source| SlotError::Io { what, source }
}

/// Trust of both slots in the boot loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Standing {
    /// The slot we run from.
    pub running: Slot,
    /// Its trust; `None`: the boot loader has no entry for it.
    pub trust: Option<Trust>,
    /// The other slot's.
    pub other: Option<Trust>,
    /// The other slot is committed and used up its starts without reaching its first process.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub other_unstarted: bool,
}

/// Reads and changes the slots.
pub trait Slots: Send {
    /// The slots as the boot loader sees them.
    fn standing(&mut self) -> Result<Standing, SlotError>;
    /// Where the download `id` with a root of `root` bytes is kept: behind the slot that is not running, which stays usable, and
    /// behind the new root, which is copied from there.
    fn room(&mut self, root: u64, id: &str) -> Result<Room, SlotError>;
    /// Writes `size` bytes of a download at `at` of the partition; not synced.
    fn keep(&mut self, image: &mut dyn Read, at: u64, size: u64) -> Result<(), SlotError>;
    /// Syncs what was kept, then records how much of it is there.
    fn mark(&mut self, kept: &Kept) -> Result<(), SlotError>;
    /// What was kept from `at` on.
    fn kept(&mut self, at: u64) -> Result<Box<dyn Read>, SlotError>;
    /// Removes the boot entry of the slot that is not running: it is about to be overwritten.
    fn vacate(&mut self) -> Result<(), SlotError>;
    /// Writes `size` bytes of `image` to the slot that is not running, and syncs.
    fn write_root(&mut self, image: &mut dyn Read, size: u64) -> Result<(), SlotError>;
    /// Writes the kernel of the new slot under a name that boot loaders ignore, and syncs.
    fn stage_kernel(&mut self, image: &mut dyn Read, size: u64) -> Result<(), SlotError>;
    /// Makes the staged slot the one that is tried next. Atomic: one rename or one block.
    fn try_staged(&mut self) -> Result<(), SlotError>;
    /// Commits the running slot.
    fn commit(&mut self) -> Result<(), SlotError>;
    /// Marks the running slot as bad: the next start takes the other one.
    fn condemn(&mut self) -> Result<(), SlotError>;
    /// Puts the other slot on trial, as it is.
    fn try_other(&mut self) -> Result<(), SlotError>;
    /// Resets the count of starts without a completed pass.
    fn clear_starts(&mut self) -> Result<(), SlotError>;
    /// Counts this start as failed: it lasted, and no pass was completed.
    fn start_failed(&mut self) -> Result<(), SlotError>;
}

/// Room for a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Its beginning in the partition, in bytes.
    pub at: u64,
    /// Bytes of it.
    pub size: u64,
    /// Bytes of the download that are there.
    pub have: u64,
}

/// Alignment of a kept download, in bytes.
const KEPT_ALIGN: u64 = 1 << 20;

/// Copies `size` bytes to `at`.
fn copy_to(from: &mut dyn Read, target: &File, mut at: u64, size: u64) -> Result<(), SlotError> {
    let mut buffer = vec![0; 256 * 1024];
    let mut left = size;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..want).unwrap_or(&mut []);
        from.read_exact(part).map_err(io("read the update"))?;
        target.write_all_at(part, at).map_err(io("write the slot"))?;
        at += want as u64;
        left -= want as u64;
    }
    Ok(())
}

fn sync(target: &File) -> Result<(), SlotError> {
    fsync(target).map_err(|e| SlotError::Io { what: "sync the slot", source: e.into() })
}

/// The boot loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// Counts by renaming its entries.
    SystemdBoot,
    /// Counts in its environment block.
    UBoot,
}

/// The slots of this device.
#[derive(Debug)]
pub struct DiskSlots {
    loader: Loader,
    running: Slot,
    /// The mounted FAT partition.
    boot: PathBuf,
    /// Directory of links to the partitions.
    devices: PathBuf,
    /// Remounts the FAT partition for writing while something is written; off where it is writable anyway.
    remount: bool,
}

impl DiskSlots {
    /// As the first process found them.
    pub fn found() -> Result<Self, SlotError> {
        let read = |name: &str| fs::read_to_string(Path::new(RUN).join(name)).map_err(|_| SlotError::NoSlots);
        let running = read("name")?.trim().parse().map_err(|_| SlotError::NoSlots)?;
        let loader = if read("loader")?.trim() == "u-boot" { Loader::UBoot } else { Loader::SystemdBoot };
        Ok(Self::at(loader, running, "/boot".into(), Path::new(RUN).join("dev"), true))
    }

    /// With explicit paths, for the first process and tests.
    pub const fn at(loader: Loader, running: Slot, boot: PathBuf, devices: PathBuf, remount: bool) -> Self {
        Self { loader, running, boot, devices, remount }
    }

    /// The slot we run from.
    pub const fn running(&self) -> Slot {
        self.running
    }

    fn directory(&self) -> PathBuf {
        self.boot.join("EFI/Linux")
    }

    fn staged(&self) -> PathBuf {
        // No boot loader takes a file that does not end in .efi.
        self.directory().join("spoke-staged.new")
    }

    fn entries(&self) -> Result<Vec<Entry>, SlotError> {
        let listed = fs::read_dir(self.directory()).map_err(io("list the boot entries"))?;
        Ok(listed.flatten().filter_map(|e| Entry::parse(e.file_name().to_str()?)).collect())
    }

    fn entry(&self, slot: Slot) -> Result<Entry, SlotError> {
        slot::preferred(self.entries()?, slot).ok_or(SlotError::NoEntry(slot))
    }

    /// Runs `change` with the FAT partition writable, then syncs and remounts it read-only.
    fn writing<T>(&self, change: impl FnOnce() -> Result<T, SlotError>) -> Result<T, SlotError> {
        self.set_writable(true).map_err(io("make the boot partition writable"))?;
        let done = change();
        let synced = File::open(&self.boot).and_then(|d| Ok(rustix::fs::syncfs(&d)?));
        if let Err(e) = self.set_writable(false) {
            tracing::warn!(error = %e, "boot partition not remounted read-only");
        }
        let done = done?;
        synced.map_err(io("sync the boot partition"))?;
        Ok(done)
    }

    fn set_writable(&self, writable: bool) -> io::Result<()> {
        use rustix::mount::{MountFlags, mount_remount};
        if !self.remount {
            return Ok(());
        }
        let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        if !writable {
            flags |= MountFlags::RDONLY;
        }
        Ok(mount_remount(&self.boot, flags, c"")?)
    }

    /// The partition of the slot that is not running, and its length.
    fn other_slot(&self) -> Result<(File, u64), SlotError> {
        let mut target = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.devices.join(self.running.other().partition()))
            .map_err(io("open the slot for writing"))?;
        let length = io::Seek::seek(&mut target, io::SeekFrom::End(0)).map_err(io("measure the slot"))?;
        Ok((target, length))
    }

    /// Where a download is kept in that partition: behind the root that is there, which is whole until the download is, and
    /// behind the new one, which is copied from there.
    fn kept_at(&self, root: u64) -> Result<u64, SlotError> {
        let (target, _) = self.other_slot()?;
        let mut superblock = [0; 48];
        target.read_exact_at(&mut superblock, 0).map_err(io("read the slot"))?;
        // `struct squashfs_super_block`: magic at 0, bytes used at 40. The hash tree behind it takes less than a hundredth.
        let used = superblock.get(40..48).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        let there = if superblock.starts_with(b"hsqs") { used.saturating_add(used / 100 + KEPT_ALIGN) } else { 0 };
        Ok(there.max(root).checked_next_multiple_of(KEPT_ALIGN).unwrap_or(u64::MAX))
    }

    fn rename(&self, from: &Entry, to: &Entry) -> Result<(), SlotError> {
        if from == to {
            return Ok(());
        }
        let directory = self.directory();
        self.writing(|| {
            fs::rename(directory.join(from.to_string()), directory.join(to.to_string()))
                .map_err(io("rename a boot entry"))
        })
    }

    fn stored(&self) -> Result<Stored, SlotError> {
        let file = File::open(self.devices.join("bootenv")).map_err(io("read the boot environment"))?;
        // A copy that cannot be read is a damaged one.
        let copies = uboot::OFFSETS.map(|at| {
            let mut copy = vec![0; uboot::SIZE];
            file.read_exact_at(&mut copy, at).map(|()| copy).unwrap_or_default()
        });
        let [first, second] = &copies;
        Ok(Stored::parse([first, second]))
    }

    fn change_environment(&self, change: impl FnOnce(BootEnv) -> BootEnv) -> Result<(), SlotError> {
        let stored = self.stored()?;
        let mut last = Ok(());
        let mut written = false;
        for (copy, bytes) in stored.store(&change(stored.env.clone())) {
            let at = uboot::OFFSETS.get(copy).copied().unwrap_or_default();
            match self.write_bootenv(&bytes, at) {
                Ok(()) => written = true,
                Err(e) => last = Err(e),
            }
        }
        // One copy is enough for the boot loader; the next change repairs the other.
        match last {
            Err(e) if !written => Err(io("write the boot environment")(e)),
            Err(e) => {
                tracing::warn!(error = %e, "one copy of the boot environment not written");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn write_bootenv(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.devices.join("bootenv"))?;
        file.write_all_at(bytes, at)?;
        file.sync_all()
    }

    /// What was committed on this disk, apart from the state partition.
    pub fn seal(&self) -> Seal {
        let read = |at| {
            let mut copy = vec![0; seal::SIZE];
            let file = File::open(self.devices.join("bootenv"))?;
            file.read_exact_at(&mut copy, at).map(|()| copy)
        };
        let [first, second] = seal::OFFSETS.map(|at| read(at).unwrap_or_default());
        Seal::parse([&first, &second])
    }

    /// Stores at least these numbers.
    pub fn raise_seal(&self, to: Seal) -> Result<(), SlotError> {
        let stored = self.seal();
        let raised = stored.raised(to);
        if raised == stored {
            return Ok(());
        }
        for at in seal::OFFSETS {
            self.write_bootenv(&raised.bytes(), at).map_err(io("store what was committed"))?;
        }
        Ok(())
    }

    /// Starts without a completed pass.
    pub fn starts(&self) -> Starts {
        let mut record = [0; Starts::SIZE];
        match File::open(self.devices.join("bootenv")).and_then(|f| f.read_exact_at(&mut record, STARTS_AT)) {
            Ok(()) => Starts::parse(&record),
            Err(_) => Starts::default(),
        }
    }

    /// For the first process of a slot: its kernel and initramfs are whole, so the boot loader's count of a committed slot is set
    /// back. Under systemd-boot the FAT partition must be writable.
    pub fn arm(&self) -> Result<(), SlotError> {
        match self.loader {
            Loader::UBoot => self.change_environment(|env| env.armed(self.running)),
            Loader::SystemdBoot => {
                let entry = self.entry(self.running)?;
                if entry.trust() == Trust::Good { self.rename(&entry, &entry.armed()) } else { Ok(()) }
            }
        }
    }

    /// Stores the number of starts.
    pub fn set_starts(&self, starts: Starts) -> Result<(), SlotError> {
        self.write_bootenv(&starts.bytes(), STARTS_AT).map_err(io("count the start"))
    }
}

impl Slots for DiskSlots {
    fn standing(&mut self) -> Result<Standing, SlotError> {
        let (running, other) = (self.running, self.running.other());
        let (trust, other, other_unstarted) = match self.loader {
            Loader::UBoot => {
                let env = self.stored()?.env;
                (Some(env.trust(running)), Some(env.trust(other)), env.is_unstarted(other))
            }
            Loader::SystemdBoot => {
                let (ours, others) = (self.entry(running).ok(), self.entry(other).ok());
                let unstarted = others.as_ref().is_some_and(Entry::is_unstarted);
                (ours.map(|e| e.trust()), others.map(|e| e.trust()), unstarted)
            }
        };
        Ok(Standing { running, trust, other, other_unstarted })
    }

    fn vacate(&mut self) -> Result<(), SlotError> {
        let other = self.running.other();
        match self.loader {
            Loader::UBoot => self.change_environment(|env| env.with(other, Trust::Trying(0))),
            Loader::SystemdBoot => {
                let gone: Vec<_> = self.entries()?.into_iter().filter(|e| e.slot == other).collect();
                let directory = self.directory();
                self.writing(|| {
                    for entry in gone {
                        fs::remove_file(directory.join(entry.to_string())).map_err(io("remove a boot entry"))?;
                    }
                    Ok(())
                })
            }
        }
    }

    fn room(&mut self, root: u64, id: &str) -> Result<Room, SlotError> {
        let (target, length) = self.other_slot()?;
        let (least, end) = (self.kept_at(root)?, length.saturating_sub(kept::RESERVED));
        let mut note = [0; kept::SIZE];
        let found = target.read_exact_at(&mut note, end).ok().and_then(|()| Kept::parse(&note));
        // Behind the root that is there: another one may have been written since.
        let found = found.filter(|k| k.id == id && k.at >= least && k.at.saturating_add(k.have) <= end);
        let (at, have) = found.map_or((least, 0), |k| (k.at, k.have));
        Ok(Room { at, size: end.saturating_sub(at), have })
    }

    fn keep(&mut self, image: &mut dyn Read, at: u64, size: u64) -> Result<(), SlotError> {
        let (target, _) = self.other_slot()?;
        copy_to(image, &target, at, size)
    }

    fn mark(&mut self, kept: &Kept) -> Result<(), SlotError> {
        let (target, length) = self.other_slot()?;
        sync(&target)?;
        let end = length.saturating_sub(kept::RESERVED);
        target.write_all_at(&kept.bytes(), end).map_err(io("record the download"))?;
        sync(&target)
    }

    fn kept(&mut self, at: u64) -> Result<Box<dyn Read>, SlotError> {
        let (mut target, _) = self.other_slot()?;
        io::Seek::seek(&mut target, io::SeekFrom::Start(at)).map_err(io("read the download"))?;
        Ok(Box::new(target))
    }

    fn write_root(&mut self, image: &mut dyn Read, size: u64) -> Result<(), SlotError> {
        let slot = self.running.other();
        let (target, room) = self.other_slot()?;
        if size > room {
            return Err(SlotError::TooLarge { slot, size, room });
        }
        copy_to(image, &target, 0, size)?;
        sync(&target)
    }

    fn stage_kernel(&mut self, image: &mut dyn Read, size: u64) -> Result<(), SlotError> {
        let staged = self.staged();
        let slot_file = self.directory().join(format!("spoke-{}.efi", self.running.other()));
        let uboot = self.loader == Loader::UBoot;
        self.writing(|| {
            let _ = fs::remove_file(&staged);
            if uboot {
                // Its entry is removed already; its kernel makes room for the new one.
                let _ = fs::remove_file(&slot_file);
            }
            let room = rustix::fs::statvfs(&self.boot)
                .map_err(|e| SlotError::Io { what: "measure the boot partition", source: e.into() })?;
            let free = room.f_bavail * room.f_frsize;
            if free < size {
                return Err(SlotError::NoSpace { free, needed: size });
            }
            let mut file = File::create(&staged).map_err(io("create the kernel's file"))?;
            let copied = io::copy(&mut image.take(size), &mut file).map_err(io("write the kernel"))?;
            if copied != size {
                return Err(io("write the kernel")(io::ErrorKind::UnexpectedEof.into()));
            }
            file.sync_all().map_err(io("sync the kernel"))
        })
    }

    fn try_staged(&mut self) -> Result<(), SlotError> {
        let (staged, directory, other) = (self.staged(), self.directory(), self.running.other());
        let name = match self.loader {
            Loader::UBoot => format!("spoke-{other}.efi"),
            Loader::SystemdBoot => {
                let order = slot::next_order(&self.entries()?);
                Entry::trying(order, other).to_string()
            }
        };
        self.writing(|| fs::rename(&staged, directory.join(name)).map_err(io("name the new kernel")))?;
        match self.loader {
            Loader::SystemdBoot => Ok(()),
            Loader::UBoot => self.change_environment(|env| env.trying(other)),
        }
    }

    fn commit(&mut self) -> Result<(), SlotError> {
        match self.loader {
            Loader::UBoot => self.change_environment(|env| env.committed(self.running)),
            Loader::SystemdBoot => {
                let entry = self.entry(self.running)?;
                self.rename(&entry, &entry.armed())
            }
        }
    }

    fn condemn(&mut self) -> Result<(), SlotError> {
        match self.loader {
            Loader::UBoot => self.change_environment(|env| env.with(self.running, Trust::Trying(0))),
            Loader::SystemdBoot => {
                let entry = self.entry(self.running)?;
                self.rename(&entry, &entry.condemned())
            }
        }
    }

    fn try_other(&mut self) -> Result<(), SlotError> {
        let other = self.running.other();
        match self.loader {
            Loader::UBoot => self.change_environment(|env| env.trying(other)),
            Loader::SystemdBoot => {
                let entry = self.entry(other)?;
                let order = slot::next_order(&self.entries()?);
                self.rename(&entry, &Entry::trying(order, other))
            }
        }
    }

    fn clear_starts(&mut self) -> Result<(), SlotError> {
        if self.starts() == Starts::default() { Ok(()) } else { self.set_starts(Starts::default()) }
    }

    fn start_failed(&mut self) -> Result<(), SlotError> {
        self.set_starts(self.starts().lived())
    }
}

#[cfg(test)]
mod tests;
