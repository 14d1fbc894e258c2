//! `spoke-image flash`: writes an image to a disk that is not in use, shows the progress, and reads everything back.
use super::gpt::Partition;
use super::{Failure, Outcome, verity};
use spoke_command::print;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal as _, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// `spoke-image flash`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image (disk.img)
    image: PathBuf,
    /// Disk or file to write to
    target: PathBuf,
    /// Leave the partitions with identity and state as they are
    #[arg(long)]
    keep_state: bool,
    /// Settings to put on the boot partition
    #[arg(long, value_name = "FILE")]
    provision: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

const BLOCK: usize = 1 << 20;

/// Runs the command; all checks come before the first write.
pub fn run(args: &Args) -> Outcome {
    let bad = |text: String| Err(Failure::BadInput(text));
    let shown = args.target.display();
    let mut image = File::open(&args.image).map_err(named(&args.image))?;
    let size = image.metadata().map_err(named(&args.image))?.len();
    let parts = super::partitions(&args.image)?;
    super::boot_place(&args.image, &parts)?;
    if let Some(cut) = parts.iter().find(|p| p.start.saturating_add(p.size) > size) {
        return bad(format!(
            "{} ends before its partition {} does: the download was cut off; fetch it again",
            args.image.display(),
            cut.name
        ));
    }
    check_image(&args.image, &image, &parts)?;
    let settings = args.provision.as_deref().map(super::accepted).transpose()?;
    refuse_in_use(&args.target)?;
    let there = std::fs::metadata(&args.target).ok();
    if there.is_none() && in_dev(&args.target) {
        return bad(format!("there is no disk {shown}: lsblk lists those of this machine"));
    }
    let device = there.as_ref().is_some_and(|m| m.file_type().is_block_device());
    let exists = there.is_some();
    if let Some(meta) = there.filter(|_| !device) {
        if !meta.is_file() {
            return bad(format!("{shown} is neither a disk nor a file"));
        }
        let source = image.metadata().map_err(named(&args.image))?;
        if (meta.dev(), meta.ino()) == (source.dev(), source.ino()) {
            return bad(format!("{shown} is the image itself"));
        }
    }
    if exists && settings.is_some() {
        super::keep_private(&args.target)?;
    }
    let kept = if args.keep_state { kept(&args.target, &parts)? } else { Vec::new() };
    let mut target = open(&args.target, device)?;
    let room = target.seek(SeekFrom::End(0)).map_err(named(&args.target))?;
    if device && room < size {
        return bad(format!("{shown} has {} MiB, the image {} MiB: take a larger one", room >> 20, size >> 20));
    }
    if exists && !args.yes && !confirmed(&args.target, room)? {
        return Err(Failure::Silent);
    }
    if !device {
        target.set_len(size).map_err(named(&args.target))?;
    }
    write(&mut image, &mut target, size, &kept).map_err(named(&args.target))?;
    // Read back from the disk, not from the page cache.
    let _ = rustix::fs::fadvise(&target, 0, None, rustix::fs::Advice::DontNeed);
    compare(&mut image, &mut target, size, &kept).map_err(named(&args.target))?;
    let end = if device { room } else { size };
    super::gpt::complete(&target, end, |at| getrandom::fill(at).map_err(std::io::Error::other))
        .map_err(|e| anyhow::anyhow!("{shown}: the partition table was not completed: {e}"))?;
    drop(target);
    if let Some(settings) = settings {
        super::put(&args.target, settings)?;
    }
    if let Some(note) = super::no_updates(&args.image) {
        print(note);
    }
    print(&format!("{shown} is ready: put it into the board and start it\n"));
    Ok(())
}

/// Whether a path that does not exist would be a file among the device nodes.
fn in_dev(target: &Path) -> bool {
    let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::canonicalize(parent).is_ok_and(|p| p.starts_with("/dev"))
}

/// Finds damage inside an image: its root must be the one that a kernel on it expects, and if the checksums of its build lie
/// beside it, the file must be the one that was built.
fn check_image(path: &Path, image: &File, parts: &[Partition]) -> Result<(), Failure> {
    let damaged = |what: &str| Failure::BadInput(format!("{}: {what}: fetch it again", path.display()));
    let find = |name: &str| parts.iter().find(|p| p.name == name);
    if let (Some(boot), Some(root)) = (find("boot"), find("root_a")) {
        let expected = verity::expected(image, boot.start, boot.size).map_err(named(path))?;
        let mut whole = false;
        for kernel in &expected {
            whole |= kernel.is_at(image, root.start, root.size).map_err(named(path))?;
        }
        if expected.is_empty() {
            return Err(damaged("no kernel on its boot partition names a root"));
        }
        if !whole {
            return Err(damaged("root_a is not the root that its kernel was built with"));
        }
    }
    let sums = std::fs::read_to_string(path.with_file_name("SHA256SUMS")).unwrap_or_default();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let wanted = sums.lines().find_map(|l| l.split_once("  ").filter(|(_, file)| *file == name).map(|(sum, _)| sum));
    match wanted {
        Some(sum) if super::bundle::part(path)?.sha256 != sum => {
            Err(damaged("its checksum is not the one in SHA256SUMS beside it"))
        }
        Some(_) | None => Ok(()),
    }
}

fn named(path: &Path) -> impl FnOnce(std::io::Error) -> anyhow::Error {
    let name = path.display().to_string();
    move |e| anyhow::Error::from(e).context(name)
}

/// Byte ranges of `target` that are kept: identity and state. Its layout must be the image's.
fn kept(target: &Path, parts: &[Partition]) -> Result<Vec<(u64, u64)>, Failure> {
    let there = super::partitions(target)?;
    let mut kept = Vec::new();
    for part in parts.iter().filter(|p| ["state", "vault"].contains(&p.name.as_str())) {
        if !there.contains(part) {
            return Err(Failure::BadInput(format!(
                "{} has another layout: its {} cannot be kept; leave out --keep-state",
                target.display(),
                part.name
            )));
        }
        kept.push((part.start, part.start + part.size));
    }
    Ok(kept)
}

/// Opens the target. A disk is opened with `O_EXCL`, so that the kernel refuses it while anything holds it.
fn open(target: &Path, device: bool) -> Result<File, Failure> {
    let exclusive = if device { rustix::fs::OFlags::EXCL.bits() } else { 0 };
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(!device)
        .mode(0o600)
        .truncate(false)
        .custom_flags(i32::try_from(exclusive)?)
        .open(target)
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::ResourceBusy => {
                Failure::BadInput(format!("{} is in use by this machine: unmount or detach it first", target.display()))
            }
            _ => named(target)(e).into(),
        })
}

fn write(image: &mut File, target: &mut File, size: u64, kept: &[(u64, u64)]) -> std::io::Result<()> {
    for_each_block(image, size, kept, "writing", |block, at| {
        target.seek(SeekFrom::Start(at))?;
        target.write_all(block)
    })?;
    target.sync_all()
}

fn compare(image: &mut File, target: &mut File, size: u64, kept: &[(u64, u64)]) -> std::io::Result<()> {
    let mut there = vec![0; BLOCK];
    for_each_block(image, size, kept, "comparing", |block, at| {
        let there = there.get_mut(..block.len()).unwrap_or_default();
        target.seek(SeekFrom::Start(at))?;
        target.read_exact(there)?;
        if there == block {
            Ok(())
        } else {
            Err(std::io::Error::other(format!("reads back differently at {at}: the disk is worn out or fake")))
        }
    })
}

/// Reads the image block by block, calls `each` except for the kept ranges, and prints the progress.
fn for_each_block(
    image: &mut File,
    size: u64,
    kept: &[(u64, u64)],
    what: &str,
    mut each: impl FnMut(&[u8], u64) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut block = vec![0; BLOCK];
    let (mut at, mut shown) = (0, None);
    let terminal = std::io::stderr().is_terminal();
    while at < size {
        // Ranges begin and end at whole MiB, like blocks.
        let want = usize::try_from(size - at).unwrap_or(BLOCK).min(BLOCK);
        let part = block.get_mut(..want).unwrap_or_default();
        if !kept.iter().any(|(from, to)| (*from..*to).contains(&at)) {
            image.seek(SeekFrom::Start(at))?;
            image.read_exact(part)?;
            each(part, at)?;
        }
        at += want as u64;
        // On a terminal each percent in place, elsewhere (a log) each quarter on a line of its own.
        let percent = at * 100 / size;
        let step = if terminal { percent } else { percent / 25 };
        if shown != Some(step) {
            let line = format!("{what} {percent} % of {} MiB", size >> 20);
            if terminal {
                eprint!("\r{line}")
            } else {
                eprintln!("{line}")
            }
            shown = Some(step);
        }
    }
    if terminal {
        eprintln!();
    }
    Ok(())
}

fn confirmed(target: &Path, room: u64) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::BadInput(
            "standard input is no terminal: confirm with --yes that everything on the disk may be lost".into(),
        ));
    }
    print(&format!("Everything on {} ({} MiB) will be lost. Type yes: ", target.display(), room >> 20));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line.trim() == "yes")
}

/// Refuses a disk that is in use (mounted or swap), by itself, a partition or a device built on it; a partition, since
/// an image is a whole disk; and a file that is attached to a loop device.
pub fn refuse_in_use(target: &Path) -> Result<(), Failure> {
    let Ok(meta) = std::fs::metadata(target) else { return Ok(()) };
    if !meta.file_type().is_block_device() {
        return match attached(target, Path::new("/sys/block")) {
            None => Ok(()),
            Some(device) => Err(Failure::BadInput(format!(
                "{} is attached as {device}: detach it first (losetup --detach)",
                target.display()
            ))),
        };
    }
    let number = format!("{}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let sys = Path::new("/sys/dev/block").join(&number);
    if sys.join("partition").exists() {
        return Err(Failure::BadInput(format!("{} is a partition: name the whole disk it is on", target.display())));
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut ours = family(&sys);
    ours.push(number);
    match in_use(&ours, &mounts, &swaps, |path| {
        let rdev = std::fs::metadata(path).ok()?.rdev();
        Some(format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev)))
    }) {
        None => Ok(()),
        Some(place) => Err(Failure::BadInput(format!(
            "{} is in use ({place}): that may be the disk this machine runs from; unmount it first if it is not",
            target.display()
        ))),
    }
}

/// The loop device a file is attached to.
fn attached(file: &Path, sys_block: &Path) -> Option<String> {
    let file = std::fs::canonicalize(file).ok()?;
    std::fs::read_dir(sys_block).ok()?.flatten().find_map(|entry| {
        let behind = std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        (Path::new(behind.trim_end_matches('\n')) == file).then(|| format!("/dev/{}", entry.file_name().display()))
    })
}

/// Numbers of a disk's partitions and of the devices built on them (dm, md), from sysfs.
fn family(sys: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(sys).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.join("partition").exists() {
            found.extend(std::fs::read_to_string(path.join("dev")).ok().map(|d| d.trim().to_owned()));
            found.extend(family(&path));
        }
    }
    for holder in std::fs::read_dir(sys.join("holders")).into_iter().flatten().flatten() {
        let path = holder.path();
        found.extend(std::fs::read_to_string(path.join("dev")).ok().map(|d| d.trim().to_owned()));
        if let Ok(real) = std::fs::canonicalize(&path) {
            found.extend(family(&real));
        }
    }
    found
}

/// Where one of the devices `ours` (`MAJOR:MINOR`) is mounted or swapped to.
fn in_use(ours: &[String], mounts: &str, swaps: &str, number: impl Fn(&str) -> Option<String>) -> Option<String> {
    for line in mounts.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let (Some(device), Some(place)) = (words.get(2), words.get(4)) else { continue };
        // Some file systems (btrfs, overlay) have anonymous device numbers: then the source names the device.
        let source = words.iter().position(|w| *w == "-").and_then(|i| words.get(i + 2)).copied().unwrap_or_default();
        let behind = if source.starts_with("/dev/") { number(source) } else { None };
        if ours.iter().any(|o| o == device || Some(o) == behind.as_ref()) {
            return Some((*place).to_owned());
        }
    }
    let swap = swaps.lines().skip(1).filter_map(|l| l.split_ascii_whitespace().next());
    swap.into_iter().find(|s| number(s).is_some_and(|n| ours.contains(&n))).map(|_| "swap".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_in_use_is_found_by_number_source_and_swap() {
        let ours = ["8:0".to_owned(), "8:1".to_owned()];
        let none = |_: &str| None;
        assert_eq!(in_use(&ours, "22 1 8:1 / / rw - ext4 /dev/root rw\n", "", none).as_deref(), Some("/"));
        assert_eq!(in_use(&ours, "22 1 8:2 / / rw - ext4 /dev/sda2 rw\n", "", none), None);
        let sda1 = |p: &str| (p == "/dev/sda1").then(|| "8:1".to_owned());
        assert_eq!(
            in_use(&ours, "22 1 0:40 / /data rw shared:1 - btrfs /dev/sda1 rw\n", "", sda1).as_deref(),
            Some("/data")
        );
        assert_eq!(in_use(&ours, "", "Filename Type\n/dev/sda1 partition 1 0 -2\n", sda1).as_deref(), Some("swap"));
    }

    #[test]
    fn file_on_a_loop_device_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("disk.img");
        std::fs::write(&file, "").unwrap();
        let file = std::fs::canonicalize(file).unwrap();
        let device = directory.path().join("sys/loop3/loop");
        std::fs::create_dir_all(&device).unwrap();
        let sys = directory.path().join("sys");
        assert_eq!(attached(&file, &sys), None);
        std::fs::write(device.join("backing_file"), format!("{}\n", file.display())).unwrap();
        assert_eq!(attached(&file, &sys).as_deref(), Some("/dev/loop3"));
        assert_eq!(attached(directory.path(), &sys), None);
    }

    #[test]
    fn differing_readback_is_an_error() {
        let image: Vec<u8> = (0..3 * BLOCK + 700).map(|i| (i / 5) as u8).collect();
        let file = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            file
        };
        let (mut from, mut to, size) = (file(&image), file(&[]), image.len() as u64);
        write(&mut from, &mut to, size, &[]).unwrap();
        compare(&mut from, &mut to, size, &[]).unwrap();
        for at in [0, BLOCK - 1, 2 * BLOCK, image.len() - 1] {
            let mut worn = image.clone();
            worn[at] ^= 1;
            let error = compare(&mut from, &mut file(&worn), size, &[]).unwrap_err().to_string();
            assert!(error.contains("reads back differently"), "{error}");
        }
        let cut = &image[..image.len() - 1];
        assert!(compare(&mut from, &mut file(cut), size, &[]).is_err(), "a disk smaller than it reports");
        // Kept ranges are neither written nor compared.
        let mut other = file(&vec![7; image.len()]);
        let middle = [(BLOCK as u64, 2 * BLOCK as u64)];
        write(&mut from, &mut other, size, &middle).unwrap();
        compare(&mut from, &mut other, size, &middle).unwrap();
        assert!(compare(&mut from, &mut other, size, &[]).is_err());
    }
}
