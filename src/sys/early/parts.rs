//! The named partitions of the boot disk, read from sysfs: udev is not running yet.
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One named partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its name in the partition table, e.g. `root_a`.
    pub name: String,
    /// The kernel's name, e.g. `mmcblk0p2`.
    pub device: String,
    /// The kernel's name of its disk.
    pub disk: String,
}

impl Partition {
    /// Its device node.
    pub fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.device)
    }
}

/// Every named partition of every disk, disk by disk.
pub fn scan(class: &Path) -> Vec<Partition> {
    let mut found = Vec::new();
    for entry in fs::read_dir(class).into_iter().flatten().flatten() {
        let Ok(device) = entry.file_name().into_string() else { continue };
        let Ok(event) = fs::read_to_string(entry.path().join("uevent")) else { continue };
        let Some(name) = event.lines().find_map(|l| l.strip_prefix("PARTNAME=")) else { continue };
        let Ok(real) = fs::canonicalize(entry.path()) else { continue };
        let Some(disk) = real.parent().and_then(Path::file_name).and_then(|d| d.to_str()) else { continue };
        found.push(Partition { name: name.to_owned(), device, disk: disk.to_owned() });
    }
    found.sort_by(|a, b| (&a.disk, &a.device).cmp(&(&b.disk, &b.device)));
    found
}

/// The partitions of one disk by name.
pub fn of_disk(all: &[Partition], disk: &str) -> BTreeMap<String, Partition> {
    all.iter().filter(|p| p.disk == disk).map(|p| (p.name.clone(), p.clone())).collect()
}

/// Makes `directory/NAME` point to the node of each, so that mount units need no udev and never take another disk's.
pub fn link(parts: &BTreeMap<String, Partition>, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for (name, partition) in parts {
        let at = directory.join(name);
        let _ = fs::remove_file(&at);
        std::os::unix::fs::symlink(partition.node(), at)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_partitions_of_their_disk() {
        let dir = tempfile::tempdir().unwrap();
        let class = dir.path().join("class");
        fs::create_dir_all(&class).unwrap();
        for (disk, part, event) in [
            ("sda", "sda1", "DEVTYPE=partition\nPARTN=1\nPARTNAME=boot\n"),
            ("sda", "sda2", "DEVTYPE=partition\nPARTNAME=root_a\n"),
            ("sdb", "sdb1", "DEVTYPE=partition\nPARTNAME=boot\n"),
            ("sdb", "sdb2", "DEVTYPE=partition\n"),
        ] {
            let real = dir.path().join("devices").join(disk).join(part);
            fs::create_dir_all(&real).unwrap();
            fs::write(real.join("uevent"), event).unwrap();
            std::os::unix::fs::symlink(&real, class.join(part)).unwrap();
        }
        let all = scan(&class);
        assert_eq!(all.len(), 3);
        let parts = of_disk(&all, "sda");
        assert_eq!(parts.keys().collect::<Vec<_>>(), ["boot", "root_a"]);
        let links = dir.path().join("links");
        link(&parts, &links).unwrap();
        assert_eq!(fs::read_link(links.join("root_a")).unwrap(), Path::new("/dev/sda2"));
    }
}
