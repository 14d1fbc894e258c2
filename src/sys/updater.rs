//! Small files on tmpfs by which the supervisor talks with the root's parts of an image, each written by one and read by the other.
use crate::random::seed;
use rustix::fs::{Mode, OFlags, open};
use serde::de::DeserializeOwned;
use spoke_model::release::WantedRelease;
use spoke_update::notice::Notice;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// Longest file accepted, in bytes.
const MAX: u64 = 16 * 1024;

/// The files of one device.
#[derive(Clone, Debug)]
pub struct Notes {
    notice: PathBuf,
    wanted: PathBuf,
    network: PathBuf,
}

impl Notes {
    /// In the supervisor's runtime directory.
    pub fn at(runtime_dir: &Path) -> Self {
        Self::in_places(Path::new(super::slots::RUN).join("update.json"), runtime_dir)
    }

    /// With a place of its own for the notice, for tests.
    pub fn in_places(notice: PathBuf, runtime_dir: &Path) -> Self {
        Self { notice, wanted: runtime_dir.join("wanted-release.json"), network: runtime_dir.join("network") }
    }

    /// Written by the supervisor, read by `apply-network` of the image: lines of `port NUMBER` and `forwarding yes`.
    pub fn network(&self, text: &str) -> io::Result<()> {
        replace(&self.network, text.as_bytes(), 0o640)
    }

    /// Written by the updater.
    pub fn post(&self, notice: &Notice) -> io::Result<()> {
        replace(&self.notice, &serde_json::to_vec(notice)?, 0o644)
    }

    /// Read by the supervisor; `None` without slots.
    pub fn notice(&self) -> Option<Notice> {
        read(&self.notice)
    }

    /// Written by the supervisor; `None` wants nothing.
    pub fn want(&self, wanted: Option<&WantedRelease>) -> io::Result<()> {
        match wanted {
            Some(wanted) => replace(&self.wanted, &serde_json::to_vec(wanted)?, 0o640),
            None => match fs::remove_file(&self.wanted) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            },
        }
    }

    /// Read by the updater, which is root and does not trust the writer: a bundle must be signed all the same.
    pub fn wanted(&self) -> Option<WantedRelease> {
        read(&self.wanted)
    }
}

/// On tmpfs, so not synced; renamed, so that a reader never sees a part.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let fresh = path.with_extension(format!("{:016x}.new", seed()));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file = File::from(open(&fresh, flags, Mode::RUSR | Mode::WUSR)?);
    let written = file
        .write_all(bytes)
        .and_then(|()| Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?))
        .and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}

/// Regular files only: the owner of the directory must not make the reader block or read another file.
fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file: File = open(path, flags, Mode::empty()).ok()?.into();
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_model::release::Rollout;
    use spoke_update::record::UpdateRecord;
    use spoke_update::slot::Slot;

    fn notes() -> (tempfile::TempDir, Notes) {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::in_places(dir.path().join("n"), dir.path());
        (dir, notes)
    }

    #[test]
    fn each_side_reads_the_others_file() {
        let (_dir, notes) = notes();
        assert_eq!((notes.notice(), notes.wanted()), (None, None));
        let notice = Notice::of(&UpdateRecord::new("x".into()), Slot::B, "1");
        notes.post(&notice).unwrap();
        assert_eq!(notes.notice(), Some(notice));
        let wanted = WantedRelease { version: "2".into(), source: None, rollout: Rollout::default() };
        notes.want(Some(&wanted)).unwrap();
        assert_eq!(notes.wanted(), Some(wanted));
        notes.want(None).unwrap();
        notes.want(None).unwrap();
        assert_eq!(notes.wanted(), None);
    }

    #[test]
    fn symlink_fifo_and_oversized_file_are_refused() {
        let (dir, notes) = notes();
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, br#"{"version":"2"}"#).unwrap();
        std::os::unix::fs::symlink(&elsewhere, dir.path().join("w")).unwrap();
        assert_eq!(notes.wanted(), None);
        fs::remove_file(dir.path().join("w")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("w"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(notes.wanted(), None);
        fs::remove_file(dir.path().join("w")).unwrap();
        fs::write(dir.path().join("w"), vec![b'{'; 100_000]).unwrap();
        assert_eq!(notes.wanted(), None);
    }
}
