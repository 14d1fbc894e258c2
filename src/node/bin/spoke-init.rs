//! The first process of a slot: loads drivers, finds and verifies the root of this kernel, executes systemd.
//!
//! The kernel's command line contains the root hash, so the slot is found by content: an update never changes the partition
//! table, and a kernel never runs on another root.
#![allow(clippy::disallowed_methods, reason = "the only process: it may sleep, change directory and read any clock")]

use rustix::mount::{MountFlags, mount, mount_move};
use rustix::system::{RebootCommand, reboot};
use spoke_sys::early::booted::Booted;
use spoke_sys::early::{argument, load_modules, parts, rescue, say, verity};
use spoke_sys::slots::{DiskSlots, Loader, RUN, Slots as _};
use spoke_update::slot::{Slot, Trust};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time limit for a disk to appear (USB, cards).
const DISK_TIMEOUT: Duration = Duration::from_secs(20);
const INIT: &str = "/usr/lib/systemd/systemd";

/// The verified slot and its disk.
struct Found {
    slot: Slot,
    node: PathBuf,
    parts: BTreeMap<String, parts::Partition>,
}

fn main() {
    // PID 1 must not end: on any error the machine reboots or the operator is asked.
    if std::process::id() != 1 {
        println!("spoke-init {}: the first process of a Spoke image; it does nothing else", env!("CARGO_PKG_VERSION"));
        return;
    }
    let why = match start() {
        Ok(never) => match never {},
        Err(why) => why,
    };
    say(&why);
    give_up(&why);
}

fn start() -> Result<std::convert::Infallible, String> {
    for (source, target, flags, options) in [
        ("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=0755"),
        ("proc", "/proc", MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV, c""),
        ("sysfs", "/sys", MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV, c""),
        ("tmpfs", "/run", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0755"),
    ] {
        // May be mounted already: a kernel can mount /dev itself.
        let _ = mount(source, target, source, flags, options);
    }
    let line = std::fs::read_to_string("/proc/cmdline").map_err(|e| format!("no command line: {e}"))?;
    let loaded = load_modules(Path::new("/modules.list"), Path::new("/modules"));
    say(&format!("{loaded} modules loaded"));
    let found = find(&line)?;
    let root = &found.node;
    mount(root, "/root", "squashfs", MountFlags::RDONLY, c"")
        .map_err(|e| format!("cannot mount slot {}: {e}", found.slot))?;
    write_boot_info(&line, &found).map_err(|e| format!("cannot write {RUN}: {e}"))?;
    count_start(&line, &found);
    say(&format!("slot {} verified", found.slot));
    hand_over(&line)
}

/// Verifies every `root_*` partition until one matches; each is read once.
fn find(line: &str) -> Result<Found, String> {
    let hash = argument(line, "spoke.roothash").ok_or("the command line has no spoke.roothash")?;
    let offset = argument(line, "spoke.hashoffset")
        .and_then(|o| o.parse().ok())
        .ok_or("the command line has no spoke.hashoffset")?;
    let (mut refused, mut faults) = (Vec::new(), Vec::new());
    let deadline = Instant::now() + DISK_TIMEOUT;
    let booted = Booted::find();
    loop {
        // Half of the time for the disk that was booted; then any that has our root.
        let all = booted.only(parts::scan(Path::new("/sys/class/block")), Instant::now() + DISK_TIMEOUT / 2 > deadline);
        for part in &all {
            let Some(slot) = Slot::of_partition(&part.name) else { continue };
            if refused.contains(&part.device) {
                continue;
            }
            match verity::open(&part.node(), offset, &hash) {
                Ok(node) => return Ok(Found { slot, node, parts: parts::of_disk(&all, &part.disk) }),
                Err(e) => {
                    say(&e.to_string());
                    faults.push(format!("slot {slot}: {e}"));
                    refused.push(part.device.clone());
                }
            }
        }
        // Both slots were read: waiting is pointless.
        if refused.len() >= 2 || Instant::now() > deadline {
            let seen = if faults.is_empty() { "no disk with slots was found".to_owned() } else { faults.join("; ") };
            return Err(format!("no root belongs to this kernel: {seen}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Writes slot, loader and devices for systemd's units and the supervisor.
fn write_boot_info(line: &str, found: &Found) -> io::Result<()> {
    let run = Path::new(RUN);
    parts::link(&found.parts, &run.join("dev"))?;
    std::fs::write(run.join("name"), found.slot.to_string())?;
    std::fs::write(run.join("loader"), argument(line, "spoke.loader").unwrap_or_default())
}

/// Sets the boot loader's count back and counts this start; after too many without a completed pass the other slot is started.
fn count_start(line: &str, found: &Found) {
    let Ok(mut slots) = slots(line, found.slot, &found.parts, Path::new("/boot")) else { return };
    let starts = slots.starts().begun();
    if let Err(e) = slots.set_starts(starts) {
        say(&format!("{e}"));
    }
    if let Err(e) = slots.arm() {
        say(&format!("{e}"));
    }
    if !starts.exhausted() {
        unmount_boot();
        return;
    }
    let given_up = match slots.standing() {
        Ok(standing) if standing.other.is_some_and(|t| t != Trust::Trying(0)) => slots.condemn().is_ok(),
        _ => false,
    };
    let _ = slots.clear_starts();
    unmount_boot();
    if given_up {
        say(&format!(
            "slot {} was started {} times without one pass: taking the other",
            found.slot,
            starts.failed.saturating_add(starts.early)
        ));
        restart();
    }
}

/// The slots with the FAT partition mounted for writing.
fn slots(line: &str, running: Slot, found: &BTreeMap<String, parts::Partition>, at: &Path) -> io::Result<DiskSlots> {
    let boot = found.get("boot").ok_or(io::ErrorKind::NotFound)?;
    let devices = Path::new("/run/early");
    parts::link(found, devices)?;
    let uboot = argument(line, "spoke.loader").as_deref() == Some("u-boot");
    let loader = if uboot { Loader::UBoot } else { Loader::SystemdBoot };
    let slots = DiskSlots::at(loader, running, at.to_owned(), devices.to_owned(), false);
    // U-Boot counts in a raw partition, systemd-boot in the names on the FAT partition.
    if loader == Loader::SystemdBoot || at != Path::new("/boot") {
        mount(boot.node(), at, "vfat", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, c"")?;
    }
    Ok(slots)
}

fn unmount_boot() {
    let _ = rustix::mount::unmount("/boot", rustix::mount::UnmountFlags::empty());
    rustix::fs::sync();
}

/// Moves the mounts into the root, frees the initramfs and becomes systemd.
fn hand_over(line: &str) -> Result<std::convert::Infallible, String> {
    for name in ["dev", "proc", "sys", "run"] {
        mount_move(format!("/{name}"), format!("/root/{name}")).map_err(|e| format!("cannot move /{name}: {e}"))?;
    }
    // Frees the memory of the initramfs.
    let _ = std::fs::remove_dir_all("/modules");
    let _ = std::fs::remove_file("/init");
    std::env::set_current_dir("/root").map_err(|e| format!("cannot enter the root: {e}"))?;
    mount_move(".", "/").map_err(|e| format!("cannot move the root: {e}"))?;
    rustix::process::chroot(".").map_err(|e| format!("cannot change the root: {e}"))?;
    std::env::set_current_dir("/").map_err(|e| format!("cannot enter the new root: {e}"))?;
    let init = argument(line, "init").unwrap_or_else(|| INIT.to_owned());
    Err(format!("cannot start {init}: {}", std::process::Command::new(&init).exec()))
}

/// No root for this kernel: starts the other slot if the boot loader has one, else asks the operator.
fn give_up(why: &str) -> ! {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let all = parts::scan(Path::new("/sys/class/block"));
    let disk = all.iter().find(|p| p.name == "bootenv").map(|p| parts::of_disk(&all, &p.disk)).unwrap_or_default();
    let hash = argument(&line, "spoke.roothash").unwrap_or_default();
    let Ok(slots_a) = slots(&line, Slot::A, &disk, Path::new("/boot/.")) else {
        // The root may be mounted and only systemd missing: then a reboot uses up a try.
        std::thread::sleep(Duration::from_secs(5));
        restart()
    };
    drop(slots_a);
    let ours = kernel_of(Path::new("/boot/EFI/Linux"), &hash);
    let Ok(mut slots) = (match ours {
        Some(slot) => self::slots_mounted(&line, slot),
        None => Err(()),
    }) else {
        ask(&line, why)
    };
    match slots.standing() {
        Ok(standing) if standing.other.is_some_and(|t| t != Trust::Trying(0)) && slots.condemn().is_ok() => {
            say(&format!("slot {} is given up: {why}", standing.running));
            unmount_boot();
            restart()
        }
        _ => ask(&line, why),
    }
}

fn slots_mounted(line: &str, running: Slot) -> Result<DiskSlots, ()> {
    let uboot = argument(line, "spoke.loader").as_deref() == Some("u-boot");
    let loader = if uboot { Loader::UBoot } else { Loader::SystemdBoot };
    Ok(DiskSlots::at(loader, running, "/boot".into(), "/run/early".into(), false))
}

/// The slot whose kernel on the boot partition contains this root hash.
fn kernel_of(directory: &Path, hash: &str) -> Option<Slot> {
    let needle = format!("spoke.roothash={hash}");
    std::fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let slot = match name.as_str() {
            "spoke-a.efi" => Slot::A,
            "spoke-b.efi" => Slot::B,
            other => spoke_update::slot::Entry::parse(other)?.slot,
        };
        let kernel = std::fs::read(entry.path()).ok()?;
        kernel.windows(needle.len()).any(|w| w == needle.as_bytes()).then_some(slot)
    })
}

fn ask(line: &str, why: &str) -> ! {
    loop {
        let Ok(console) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/console") else {
            std::thread::sleep(Duration::from_secs(60));
            restart()
        };
        let Ok(mut output) = console.try_clone() else { restart() };
        match rescue::ask(&mut io::BufReader::new(console), &mut output, why) {
            Some(rescue::Choice::Try(slot)) => {
                let tried = slots_mounted(line, slot.other()).map(|mut s| s.try_other());
                match tried {
                    Ok(Ok(())) => {
                        unmount_boot();
                        restart()
                    }
                    Ok(Err(e)) => say(&format!("cannot: {e}")),
                    Err(()) => restart(),
                }
            }
            Some(rescue::Choice::PowerOff) => {
                unmount_boot();
                let _ = reboot(RebootCommand::PowerOff);
            }
            Some(rescue::Choice::Reboot) => {
                unmount_boot();
                restart()
            }
            None => std::thread::sleep(Duration::from_secs(10)),
        }
    }
}

fn restart() -> ! {
    rustix::fs::sync();
    std::thread::sleep(Duration::from_secs(1));
    let _ = reboot(RebootCommand::Restart);
    loop {
        std::thread::park();
    }
}
