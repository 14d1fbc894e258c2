//! `spoke-image flash`: writes an image where it does no harm, shows how far it is, and reads everything back.
use super::{Failure, Outcome};
use crate::cli::print;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal as _, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
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

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    let bad = |text: String| Err(Failure::BadInput(text));
    let context = |path: &Path| {
        let name = path.display().to_string();
        move |e: std::io::Error| anyhow::Error::from(e).context(name)
    };
    let mut image = File::open(&args.image).map_err(context(&args.image))?;
    let size = image.metadata().map_err(context(&args.image))?.len();
    let parts = super::partitions(&args.image)?;
    super::boot_place(&args.image, &parts)?;
    refuse_mounted(&args.target)?;
    let device = std::fs::metadata(&args.target).ok().filter(|m| m.file_type().is_block_device());
    if device.is_none() && args.target.exists() && !args.target.is_file() {
        return bad(format!("{} is neither a disk nor a file", args.target.display()));
    }
    let mut target = OpenOptions::new()
        .read(true)
        .write(true)
        .create(device.is_none())
        .truncate(false)
        .open(&args.target)
        .map_err(context(&args.target))?;
    let room = target.seek(SeekFrom::End(0)).map_err(context(&args.target))?;
    if device.is_some() && room < size {
        return bad(format!(
            "{} has {} MiB, the image {} MiB: take a larger one",
            args.target.display(),
            room >> 20,
            size >> 20
        ));
    }
    let mut kept = Vec::new();
    if args.keep_state {
        let there = super::partitions(&args.target)?;
        for part in parts.iter().filter(|p| ["state", "vault"].contains(&p.name.as_str())) {
            if !there.contains(part) {
                return bad(format!(
                    "{} has another layout: its {} cannot be kept; leave out --keep-state",
                    args.target.display(),
                    part.name
                ));
            }
            kept.push((part.start, part.start + part.size));
        }
    }
    if device.is_some() && !args.yes && !confirmed(&args.target, room)? {
        return Err(Failure::Silent);
    }
    if device.is_none() {
        target.set_len(size).map_err(context(&args.target))?;
    }
    pass(&mut image, &mut target, size, &kept, "writing", |from, target, at| {
        target.seek(SeekFrom::Start(at))?;
        target.write_all(from)
    })
    .map_err(context(&args.target))?;
    target.sync_all().map_err(context(&args.target))?;
    // What was read just now must come from the disk, not from memory.
    let _ = rustix::fs::fadvise(&target, 0, None, rustix::fs::Advice::DontNeed);
    let mut there = vec![0; BLOCK];
    pass(&mut image, &mut target, size, &kept, "comparing", |from, target, at| {
        let there = there.get_mut(..from.len()).unwrap_or_default();
        target.seek(SeekFrom::Start(at))?;
        target.read_exact(there)?;
        if there == from {
            Ok(())
        } else {
            Err(std::io::Error::other(format!("reads back differently at {at}: the disk is worn out or fake")))
        }
    })
    .map_err(context(&args.target))?;
    if let Some(settings) = &args.provision {
        super::provision(&args.target, settings)?;
    }
    print(&format!("{} is ready: put it into the board and start it\n", args.target.display()));
    Ok(())
}

/// Walks over the image block by block, leaving out the kept places, and says how far it is.
fn pass(
    image: &mut File,
    target: &mut File,
    size: u64,
    kept: &[(u64, u64)],
    what: &str,
    mut each: impl FnMut(&[u8], &mut File, u64) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut block = vec![0; BLOCK];
    let (mut at, mut told) = (0, 0);
    while at < size {
        // Places begin and end at whole MiB, like blocks.
        let want = usize::try_from(size - at).unwrap_or(BLOCK).min(BLOCK);
        let part = block.get_mut(..want).unwrap_or_default();
        if !kept.iter().any(|(from, to)| (*from..*to).contains(&at)) {
            image.seek(SeekFrom::Start(at))?;
            image.read_exact(part)?;
            each(part, target, at)?;
        }
        at += want as u64;
        let percent = at * 100 / size;
        if percent != told && std::io::stderr().is_terminal() {
            eprint!("\r{what} {percent} %");
            told = percent;
        }
    }
    if std::io::stderr().is_terminal() {
        eprintln!("\r{what} done   ");
    }
    Ok(())
}

fn confirmed(target: &Path, room: u64) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::BadInput("nobody can be asked: say --yes if everything on the disk may be lost".into()));
    }
    print(&format!("Everything on {} ({} MiB) will be lost. Type yes: ", target.display(), room >> 20));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line.trim() == "yes")
}

/// Refuses a disk that is in use: mounted itself, in one of its partitions, or through something built on it; swap counts.
pub fn refuse_mounted(target: &Path) -> Result<(), Failure> {
    let Ok(meta) = std::fs::metadata(target) else { return Ok(()) };
    if !meta.file_type().is_block_device() {
        return Ok(());
    }
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let sys = Path::new("/sys/dev/block").join(format!("{major}:{minor}"));
    let mut ours = family(&sys);
    ours.push(format!("{major}:{minor}"));
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

/// Numbers of a disk's partitions and of what is built on them (dm, md), from the kernel's tree.
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
        // Some file systems (btrfs, overlay) have numbers of their own: then the source says what it is.
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
    fn a_disk_in_use_is_found_by_number_by_source_and_as_swap() {
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
    fn the_disk_this_machine_runs_from_is_refused() {
        // Whatever is mounted at / here; in some containers that is no block device, and then nothing can be flashed by it.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let source = mounts
            .lines()
            .find(|l| l.split(' ').nth(4) == Some("/"))
            .and_then(|l| l.split(" - ").nth(1)?.split(' ').nth(1));
        if let Some(device) = source.filter(|s| s.starts_with("/dev/") && Path::new(s).exists()) {
            assert!(matches!(refuse_mounted(Path::new(device)), Err(Failure::BadInput(_))), "{device}");
        }
    }
}
