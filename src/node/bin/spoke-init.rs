//! The first process of a slot: loads drivers, finds and verifies the root of this kernel, executes systemd.
//!
//! The kernel's command line contains the root hash, so the slot is found by content: an update never changes the partition
//! table, and a kernel never runs on another root.
#![allow(clippy::disallowed_methods, reason = "the only process: it may sleep, change directory and read any clock")]

use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::system::{RebootCommand, reboot};
use spoke_sys::early::booted::Booted;
use spoke_sys::early::consoles::Consoles;
use spoke_sys::early::machine_id::MachineId;
use spoke_sys::early::rescue::{Choice, Console as _};
use spoke_sys::early::watchdog::Watchdog;
use spoke_sys::early::{argument, kernels, load_modules, parts, rescue, say, verity};
use spoke_sys::slots::{DiskSlots, Loader, RUN, Slots as _};
use spoke_update::slot::{Slot, Starts, Trust};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time limit for a disk to appear (USB, cards).
const DISK_TIMEOUT: Duration = Duration::from_secs(20);
const INIT: &str = "/usr/lib/systemd/systemd";
/// Memory with which the tunnel comes up, as the kernel counts it: without its own code and the firmware's part. Bytes.
const MEMORY_NEEDED: u64 = 80 << 20;
const BOOT: &str = "/boot";
/// Links to the partitions before the root is known.
const DEVICES: &str = "/run/early";

/// The verified slot and its disk.
struct Found {
    slot: Slot,
    root: verity::Root,
    parts: BTreeMap<String, parts::Partition>,
}

fn main() {
    // PID 1 must not end: on any error the machine reboots or the operator is asked.
    if std::process::id() != 1 {
        println!("spoke-init {}: the first process of a Spoke image; it does nothing else", env!("CARGO_PKG_VERSION"));
        return;
    }
    for (source, target, flags, options) in [
        ("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=0755"),
        ("proc", "/proc", MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV, c""),
        ("sysfs", "/sys", MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV, c""),
        ("tmpfs", "/run", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0755"),
    ] {
        // May be mounted already: a kernel can mount /dev itself.
        let _ = mount(source, target, source, flags, options);
    }
    // Read once: on an error the mounts may have been moved into the root already.
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let loaded = load_modules(Path::new("/modules.list"), Path::new("/modules"));
    let mut watchdog = Watchdog::start();
    say(&format!("{loaded} modules loaded, watchdog {}", if watchdog.is_some() { "started" } else { "absent" }));
    let memory = memory_total();
    if (1..MEMORY_NEEDED).contains(&memory) {
        say(&format!(
            "this machine has {} MiB of memory, and Spoke needs {}: it may hang or restart",
            memory >> 20,
            MEMORY_NEEDED >> 20
        ));
    }
    let why = match start(&line, &mut watchdog) {
        Ok(never) => match never {},
        Err(why) => why,
    };
    say(&why);
    give_up(&line, &why, watchdog.or_else(Watchdog::start));
}

/// Bytes of memory the kernel can use; 0 if it does not report them.
fn memory_total() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total =
        text.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    total.unwrap_or(0) * 1024
}

fn start(line: &str, watchdog: &mut Option<Watchdog>) -> Result<std::convert::Infallible, String> {
    let found = find(line)?;
    write_boot_info(line, &found).map_err(|e| format!("cannot write {RUN}: {e}"))?;
    // Counted before anything is read from the root, which can end the start.
    let starts = count_start(line, &found);
    let before = u16::from(starts.failed) + u16::from(starts.early.saturating_sub(1));
    let _ = std::fs::write(Path::new(RUN).join("starts"), format!("{before}\n"));
    if before > 0
        && let Err(e) = found.root.check()
    {
        return Err(format!("slot {}: {} is damaged: {e}", found.slot, found.slot.partition()));
    }
    mount(found.root.node(), "/root", "squashfs", MountFlags::RDONLY, c"")
        .map_err(|e| format!("cannot mount slot {}: {e}", found.slot))?;
    found.root.restart_on_corruption().map_err(|e| e.to_string())?;
    set_identity();
    say(&format!("slot {} verified", found.slot));
    if let Some(watchdog) = watchdog.take() {
        watchdog.hand_over();
    }
    hand_over(line)
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
                Ok(root) => return Ok(Found { slot, root, parts: parts::of_disk(&all, &part.disk) }),
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
/// Returns the count.
fn count_start(line: &str, found: &Found) -> Starts {
    if let Err(e) = parts::link(&found.parts, Path::new(DEVICES)) {
        say(&format!("cannot link the partitions: {e}"));
        return Starts::default();
    }
    let mut slots = disk_slots(line, found.slot);
    let starts = slots.starts().begun();
    if let Err(e) = slots.set_starts(starts) {
        say(&format!("{e}"));
    }
    // U-Boot counts in a raw partition, systemd-boot in the names on the FAT partition.
    if !uses_u_boot(line)
        && let Err(e) = mount_boot(&found.parts)
    {
        say(&format!("cannot mount the boot partition: {e}"));
        return starts;
    }
    if let Err(e) = slots.arm() {
        say(&format!("{e}"));
    }
    if starts.exhausted() {
        let given_up = condemn(&mut slots);
        let _ = slots.clear_starts();
        if given_up {
            unmount_boot();
            say(&format!(
                "slot {} was started {} times without one pass: taking the other",
                found.slot,
                starts.failed.saturating_add(starts.early)
            ));
            restart();
        }
    }
    unmount_boot();
    starts
}

fn uses_u_boot(line: &str) -> bool {
    argument(line, "spoke.loader").as_deref() == Some("u-boot")
}

fn disk_slots(line: &str, running: Slot) -> DiskSlots {
    let loader = if uses_u_boot(line) { Loader::UBoot } else { Loader::SystemdBoot };
    DiskSlots::at(loader, running, BOOT.into(), DEVICES.into(), false)
}

fn mount_boot(parts: &BTreeMap<String, parts::Partition>) -> io::Result<()> {
    let boot = parts.get("boot").ok_or(io::ErrorKind::NotFound)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount(boot.node(), BOOT, "vfat", flags, c"")?)
}

fn unmount_boot() {
    let _ = rustix::mount::unmount(BOOT, rustix::mount::UnmountFlags::empty());
    rustix::fs::sync();
}

/// Gives the running slot up if the other one can start; whether that was done.
fn condemn(slots: &mut DiskSlots) -> bool {
    match slots.standing() {
        Ok(standing) if standing.other.is_some_and(|t| t != Trust::Trying(0)) => match slots.condemn() {
            Ok(()) => true,
            Err(e) => {
                say(&format!("cannot give slot {} up: {e}", standing.running));
                false
            }
        },
        Ok(_) => false,
        Err(e) => {
            say(&format!("cannot read the boot entries: {e}"));
            false
        }
    }
}

/// Sets the machine id and the host name, which are the same at every start of this disk and different on every other.
fn set_identity() {
    let Some(id) = MachineId::keep(&Path::new(DEVICES).join("bootenv")) else { return };
    let file = "/run/machine-id";
    // As systemd does for an id of one start; it takes one that is there.
    if let Err(e) = std::fs::write(file, id.text())
        .and_then(|()| Ok(mount_bind(file, "/root/etc/machine-id")?))
        .and_then(|()| Ok(rustix::system::sethostname(id.host_name().as_bytes())?))
    {
        say(&format!("cannot set the machine id: {e}"));
    }
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
fn give_up(line: &str, why: &str, mut watchdog: Option<Watchdog>) -> ! {
    let mut slots = own_slots(line);
    match &mut slots {
        Ok(slots) => {
            if condemn(slots) {
                say(&format!("slot {} is given up: {why}", slots.running()));
                unmount_boot();
                restart()
            }
        }
        Err(e) => say(e),
    }
    let mut consoles = Consoles::open(|| {
        if let Some(watchdog) = &mut watchdog {
            watchdog.feed();
        }
    });
    loop {
        match rescue::ask(&mut consoles, why) {
            Choice::Try(slot) => match slots.as_ref().map(|_| disk_slots(line, slot.other()).try_other()) {
                Ok(Ok(())) => break,
                Ok(Err(e)) => consoles.write(&format!("cannot: {e}\r\n")),
                Err(e) => consoles.write(&format!("cannot: {e}\r\n")),
            },
            Choice::PowerOff => {
                unmount_boot();
                let _ = reboot(RebootCommand::PowerOff);
            }
            Choice::Reboot => break,
            // A slot that was given up may work all the same; ours does not.
            Choice::Unattended => {
                if let Ok(slots) = &mut slots
                    && let Err(e) = slots.try_other()
                {
                    say(&format!("cannot: {e}"));
                }
                break;
            }
        }
    }
    unmount_boot();
    restart()
}

/// The slots of the disk whose boot partition has our kernel, which stays mounted.
fn own_slots(line: &str) -> Result<DiskSlots, String> {
    let hash = argument(line, "spoke.roothash").unwrap_or_default();
    let all = parts::scan(Path::new("/sys/class/block"));
    let mut faults = Vec::new();
    for boot in all.iter().filter(|p| p.name == "boot") {
        let disk = parts::of_disk(&all, &boot.disk);
        if let Err(e) = mount_boot(&disk) {
            faults.push(format!("cannot mount the boot partition {}: {e}", boot.device));
            continue;
        }
        match kernels::slot_of(&Path::new(BOOT).join("EFI/Linux"), &hash) {
            Some(slot) => {
                parts::link(&disk, Path::new(DEVICES)).map_err(|e| format!("cannot link the partitions: {e}"))?;
                return Ok(disk_slots(line, slot));
            }
            None => faults.push(format!("the boot partition {} does not have the running kernel", boot.device)),
        }
        unmount_boot();
    }
    Err(if faults.is_empty() { "no boot partition was found".to_owned() } else { faults.join("; ") })
}

fn restart() -> ! {
    rustix::fs::sync();
    std::thread::sleep(Duration::from_secs(1));
    let _ = reboot(RebootCommand::Restart);
    loop {
        std::thread::park();
    }
}
