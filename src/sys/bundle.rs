//! Installs a bundle: verifies the signature, writes the slot that is not running, then its kernel.
use crate::slots::{Room, SlotError, Slots};
use spoke_update::kept;
use spoke_update::kept::Kept;
use spoke_update::manifest::{Accepted, Known, ManifestError, Part, Roots, header_length, verify_header};
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};

/// Bytes that are fetched at a time.
const CHUNK: u64 = 256 * 1024;
/// Bytes between two records of the progress: what a power cut costs, against one sector written.
const MARK_EVERY: u64 = 4 << 20;

/// A bundle, read once from its beginning to its end.
pub trait Bundle: Read + Send {
    /// Leaves out the next `n` bytes; what was fetched in an earlier attempt is not fetched again.
    fn skip(&mut self, n: u64) -> io::Result<()>;
}

impl Bundle for File {
    fn skip(&mut self, n: u64) -> io::Result<()> {
        let n = i64::try_from(n).map_err(io::Error::other)?;
        self.seek(SeekFrom::Current(n)).map(drop)
    }
}

/// Why a bundle was not installed. The running slot is as it was; the other one may be empty after [`InstallError::Slot`], and
/// after [`InstallError::Damaged`] and [`InstallError::Truncated`] if there was no room to keep the bundle.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// It could not be read.
    #[error("the bundle cannot be read")]
    Read(#[source] io::Error),
    /// It must not be installed on this device.
    #[error("the bundle is refused: {0}")]
    Refused(#[from] ManifestError),
    /// It ended early.
    #[error("the bundle is truncated: fetch it again")]
    Truncated,
    /// A part is not what was signed.
    #[error("the bundle's {0} is damaged: fetch it again")]
    Damaged(&'static str),
    /// The slot could not be written.
    #[error("the update was not written")]
    Slot(#[from] SlotError),
    /// Another update is on trial.
    #[error("{0}")]
    Busy(String),
}

/// Reads and verifies the header of a bundle; the rest is still in `bundle`.
pub fn open(bundle: &mut dyn Read, roots: &Roots, known: &Known) -> Result<Accepted, InstallError> {
    let mut first = [0; 12];
    bundle.read_exact(&mut first).map_err(cut)?;
    let mut header = vec![0; header_length(&first)?];
    bundle.read_exact(&mut header).map_err(cut)?;
    Ok(verify_header(&header, roots, known)?)
}

fn cut(e: io::Error) -> InstallError {
    if e.kind() == io::ErrorKind::UnexpectedEof { InstallError::Truncated } else { InstallError::Read(e) }
}

/// Writes the parts of an opened bundle. Afterwards `Slots::try_staged` makes it the next to start.
///
/// Where there is room, all of it is fetched and verified before the slot is given up, which until then stays a fallback, and
/// the boot partition is writable only while the kernel is copied; an attempt goes on where the one before ended. Otherwise it
/// is written as it arrives.
pub fn write(bundle: &mut dyn Bundle, accepted: &Accepted, slots: &mut impl Slots) -> Result<(), InstallError> {
    let manifest = &accepted.manifest;
    let (root, kernel) = (&manifest.root, &manifest.kernel);
    let total = root.size.saturating_add(kernel.size);
    let id = kept::id(manifest);
    let room = slots.room(root.size, &id)?;
    if room.size >= total {
        fetch(bundle, &id, room, total, slots)?;
        let mut kept = slots.kept(room.at)?;
        let whole =
            copy("root image", root, &mut kept, discard).and_then(|()| copy("kernel", kernel, &mut kept, discard));
        if let Err(e) = whole {
            // No part of it is known to be right.
            slots.mark(&Kept { id, at: room.at, have: 0 })?;
            return Err(e);
        }
        slots.vacate()?;
        return write_parts(&mut slots.kept(room.at)?, accepted, slots);
    }
    slots.vacate()?;
    write_parts(bundle, accepted, slots)
}

/// Fetches what is not kept yet.
fn fetch(
    bundle: &mut dyn Bundle,
    id: &str,
    room: Room,
    total: u64,
    slots: &mut impl Slots,
) -> Result<(), InstallError> {
    let mark = |slots: &mut _, have| Slots::mark(slots, &Kept { id: id.to_owned(), at: room.at, have });
    let mut have = room.have.min(total);
    if have > 0 {
        tracing::info!(have, total, "download continues where it ended");
        bundle.skip(have).map_err(InstallError::Read)?;
    }
    let mut marked = have;
    while have < total {
        let size = CHUNK.min(total - have);
        if let Err(e) = slots.keep(bundle, room.at.saturating_add(have), size) {
            if have > marked
                && let Err(e) = mark(slots, have)
            {
                tracing::warn!(error = %e, "progress of the download not recorded");
            }
            return Err(if matches!(bundle.read(&mut [0]), Ok(0)) { InstallError::Truncated } else { e.into() });
        }
        have += size;
        if have == total || have - marked >= MARK_EVERY {
            mark(slots, have)?;
            marked = have;
        }
    }
    Ok(())
}

fn discard(from: &mut dyn Read, size: u64) -> Result<(), SlotError> {
    let read = io::copy(&mut from.take(size), &mut io::sink());
    read.map(drop).map_err(|source| SlotError::Io { what: "read the download", source })
}

fn write_parts(bundle: &mut dyn Read, accepted: &Accepted, slots: &mut impl Slots) -> Result<(), InstallError> {
    let manifest = &accepted.manifest;
    copy("root image", &manifest.root, bundle, |from, size| slots.write_root(from, size))?;
    copy("kernel", &manifest.kernel, bundle, |from, size| slots.stage_kernel(from, size))
}

fn copy(
    what: &'static str,
    part: &Part,
    bundle: &mut dyn Read,
    to: impl FnOnce(&mut dyn Read, u64) -> Result<(), SlotError>,
) -> Result<(), InstallError> {
    let mut summing =
        Summing { from: bundle.take(part.size), sum: ring::digest::Context::new(&ring::digest::SHA256), read: 0 };
    let written = to(&mut summing, part.size);
    if written.is_err() && summing.read < part.size && summing.ended() {
        return Err(InstallError::Truncated);
    }
    written?;
    if const_hex::encode(summing.sum.finish()) == part.sha256 { Ok(()) } else { Err(InstallError::Damaged(what)) }
}

/// Hashes what is read through it.
struct Summing<'a> {
    from: io::Take<&'a mut dyn Read>,
    sum: ring::digest::Context,
    read: u64,
}

impl Summing<'_> {
    /// Whether the end is reached.
    fn ended(&mut self) -> bool {
        matches!(self.from.read(&mut [0]), Ok(0))
    }
}

impl Read for Summing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.sum.update(buffer.get(..n).unwrap_or_default());
        self.read += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Standing;
    use spoke_model::signature::{SignKey, sha256_hex};
    use spoke_update::manifest::{Certificate, MAGIC, Manifest, certify, sign};
    use spoke_update::slot::{Slot, Trust};

    /// Slots in memory that know what the boot loader would see.
    #[derive(Default)]
    struct Fake {
        root: Vec<u8>,
        kernel: Vec<u8>,
        visible: bool,
        room: u64,
        /// Room behind the slot.
        spare: u64,
        kept: Vec<u8>,
        marked: Option<Kept>,
        /// Records of the progress that were written.
        marks: usize,
    }

    impl Slots for Fake {
        fn standing(&mut self) -> Result<Standing, SlotError> {
            let other = self.visible.then_some(Trust::Good);
            Ok(Standing { running: Slot::A, trust: Some(Trust::Good), other, other_unstarted: false })
        }
        fn room(&mut self, _: u64, id: &str) -> Result<Room, SlotError> {
            let have = self.marked.as_ref().filter(|k| k.id == id).map_or(0, |k| k.have);
            Ok(Room { at: 0, size: self.spare, have })
        }
        fn keep(&mut self, image: &mut dyn Read, at: u64, size: u64) -> Result<(), SlotError> {
            let (at, size) = (usize::try_from(at).unwrap(), usize::try_from(size).unwrap());
            self.kept.truncate(at);
            assert_eq!(self.kept.len(), at);
            let mut all = vec![0; size];
            image.read_exact(&mut all).map_err(|source| SlotError::Io { what: "read the update", source })?;
            self.kept.extend(all);
            Ok(())
        }
        fn mark(&mut self, kept: &Kept) -> Result<(), SlotError> {
            (self.marked, self.marks) = (Some(kept.clone()), self.marks + 1);
            Ok(())
        }
        fn kept(&mut self, _: u64) -> Result<Box<dyn Read>, SlotError> {
            Ok(Box::new(io::Cursor::new(self.kept.clone())))
        }
        fn vacate(&mut self) -> Result<(), SlotError> {
            self.visible = false;
            Ok(())
        }
        fn write_root(&mut self, image: &mut dyn Read, size: u64) -> Result<(), SlotError> {
            if size > self.room {
                return Err(SlotError::TooLarge { slot: Slot::B, size, room: self.room });
            }
            let mut all = vec![0; usize::try_from(size).unwrap()];
            image.read_exact(&mut all).map_err(|source| SlotError::Io { what: "read the update", source })?;
            self.root = all;
            Ok(())
        }
        fn stage_kernel(&mut self, image: &mut dyn Read, size: u64) -> Result<(), SlotError> {
            assert!(!self.visible);
            let mut all = Vec::new();
            image.take(size).read_to_end(&mut all).unwrap();
            if all.len() as u64 != size {
                return Err(SlotError::Io { what: "write the kernel", source: io::ErrorKind::UnexpectedEof.into() });
            }
            self.kernel = all;
            Ok(())
        }
        fn try_staged(&mut self) -> Result<(), SlotError> {
            self.visible = true;
            Ok(())
        }
        fn commit(&mut self) -> Result<(), SlotError> {
            Ok(())
        }
        fn condemn(&mut self) -> Result<(), SlotError> {
            Ok(())
        }
        fn try_other(&mut self) -> Result<(), SlotError> {
            Ok(())
        }
        fn clear_starts(&mut self) -> Result<(), SlotError> {
            Ok(())
        }
        fn start_failed(&mut self) -> Result<(), SlotError> {
            Ok(())
        }
    }

    fn key(n: u8) -> SignKey {
        SignKey::from_seed(&[n; 32]).unwrap()
    }

    fn bundle(root: &[u8], kernel: &[u8]) -> Vec<u8> {
        let part = |b: &[u8]| Part { size: b.len() as u64, sha256: sha256_hex(b) };
        let manifest = Manifest {
            board: "x".into(),
            version: "2".into(),
            sequence: 2,
            floor: 0,
            expires: None,
            root: part(root),
            kernel: part(kernel),
        };
        let certificate = Certificate { serial: 1, keys: vec![key(2).public()], threshold: 1 };
        let certified = certify(&certificate, &key(1)).unwrap();
        let header = serde_json::to_vec(&sign(certified, &manifest, &key(2)).unwrap()).unwrap();
        [&MAGIC[..], &u32::try_from(header.len()).unwrap().to_le_bytes(), &header, root, kernel].concat()
    }

    /// A bundle in memory that breaks off after some bytes, and how many of it were read.
    struct Link<'a> {
        rest: &'a [u8],
        breaks: usize,
        read: usize,
    }

    impl Read for Link<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.read >= self.breaks {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            let most = buffer.len().min(self.breaks - self.read);
            let n = self.rest.read(&mut buffer[..most])?;
            self.read += n;
            Ok(n)
        }
    }

    impl Bundle for Link<'_> {
        fn skip(&mut self, n: u64) -> io::Result<()> {
            self.rest = &self.rest[usize::try_from(n).unwrap()..];
            Ok(())
        }
    }

    fn install_from(link: &mut Link<'_>, slots: &mut Fake) -> Result<(), InstallError> {
        let known = Known { board: "x".into(), serial: 0, floor: 0 };
        let accepted = open(link, &Roots { keys: vec![key(1).public()], threshold: 1 }, &known)?;
        write(link, &accepted, slots)?;
        Ok(slots.try_staged()?)
    }

    fn install(bundle: &[u8], slots: &mut Fake) -> Result<(), InstallError> {
        install_from(&mut Link { rest: bundle, breaks: usize::MAX, read: 0 }, slots)
    }

    #[test]
    fn a_whole_bundle_is_written_and_may_be_tried() {
        let mut slots = Fake { visible: true, room: 100, ..Fake::default() };
        install(&bundle(b"root", b"kernel"), &mut slots).unwrap();
        assert_eq!(
            (slots.root.as_slice(), slots.kernel.as_slice(), slots.visible),
            (&b"root"[..], &b"kernel"[..], true)
        );
    }

    #[test]
    fn cut_anywhere_it_is_never_tried() {
        let whole = bundle(b"root image", b"kernel");
        for end in 0..whole.len() {
            let mut slots = Fake { room: 100, ..Fake::default() };
            let e = install(&whole[..end], &mut slots).unwrap_err();
            assert!(matches!(e, InstallError::Truncated), "cut at {end}: {e:?}");
            assert!(!slots.visible);
        }
    }

    #[test]
    fn fallback_stays_until_the_bundle_is_whole() {
        let whole = bundle(b"root image", b"kernel");
        let slots = || Fake { visible: true, room: 100, spare: 16, ..Fake::default() };
        for end in 0..whole.len() {
            let mut slots = slots();
            install(&whole[..end], &mut slots).unwrap_err();
            assert!(slots.visible, "cut at {end}");
        }
        let mut damaged = whole.clone();
        *damaged.last_mut().unwrap() ^= 1;
        let mut kept = slots();
        assert!(matches!(install(&damaged, &mut kept), Err(InstallError::Damaged("kernel"))));
        assert!(kept.visible && kept.root.is_empty());
        let mut kept = slots();
        install(&whole, &mut kept).unwrap();
        assert_eq!((kept.root.as_slice(), kept.kernel.as_slice()), (&b"root image"[..], &b"kernel"[..]));
    }

    #[test]
    fn damage_behind_the_header_is_found() {
        let mut bad = bundle(b"root image", b"kernel");
        let at = bad.len() - 1;
        bad[at] ^= 1;
        let mut slots = Fake { room: 100, ..Fake::default() };
        assert!(matches!(install(&bad, &mut slots), Err(InstallError::Damaged("kernel"))));
        bad[at - 8] ^= 1;
        assert!(matches!(install(&bad, &mut slots), Err(InstallError::Damaged("root image"))));
        assert!(!slots.visible);
    }

    #[test]
    fn one_that_does_not_fit_says_so() {
        let mut slots = Fake { room: 3, ..Fake::default() };
        let e = install(&bundle(b"root", b"kernel"), &mut slots).unwrap_err();
        assert!(matches!(e, InstallError::Slot(SlotError::TooLarge { size: 4, room: 3, .. })), "{e:?}");
    }

    #[test]
    fn later_attempt_fetches_only_the_rest() {
        const MIB: usize = 1 << 20;
        let (root, kernel) = (vec![7; 9 * MIB], vec![8; 2 * MIB]);
        let whole = bundle(&root, &kernel);
        let header = whole.len() - 11 * MIB;
        let mut slots = Fake { visible: true, room: u64::MAX, spare: 11 << 20, ..Fake::default() };
        let mut fetched = 0;
        // Each attempt gets 3 MiB and a bit.
        for attempt in 1.. {
            let mut link = Link { rest: &whole, breaks: header + 3 * MIB + 1000, read: 0 };
            let done = install_from(&mut link, &mut slots);
            fetched += link.read - header;
            if done.is_ok() {
                assert_eq!(attempt, 4);
                break;
            }
            assert!(slots.visible, "the fallback stays");
        }
        assert!(fetched < 11 * MIB + 4 * 1000, "{fetched} bytes");
        assert!(slots.root == root && slots.kernel == kernel);
        assert!(slots.marks <= 8, "{} records of the progress", slots.marks);
    }

    #[test]
    fn power_cut_costs_what_was_not_recorded() {
        let (root, kernel) = (vec![7; 9 << 20], vec![8; 2 << 20]);
        let whole = bundle(&root, &kernel);
        let mut slots = Fake { room: u64::MAX, spare: 11 << 20, ..Fake::default() };
        install_from(&mut Link { rest: &whole, breaks: 7 << 20, read: 0 }, &mut slots).unwrap_err();
        // The last record is lost, and what was written behind the one before is anything.
        let have = 4 << 20;
        slots.marked.as_mut().unwrap().have = have;
        slots.kept.truncate(usize::try_from(have).unwrap() + 100);
        install(&whole, &mut slots).unwrap();
        assert!(slots.root == root && slots.kernel == kernel);
    }

    #[test]
    fn damaged_beginning_is_fetched_again() {
        let whole = bundle(&vec![7; 1 << 20], b"kernel");
        let mut slots = Fake { visible: true, room: u64::MAX, spare: 2 << 20, ..Fake::default() };
        install_from(&mut Link { rest: &whole, breaks: 700 << 10, read: 0 }, &mut slots).unwrap_err();
        assert!(slots.marked.as_ref().unwrap().have > 0);
        slots.kept[5] ^= 1;
        assert!(matches!(install(&whole, &mut slots), Err(InstallError::Damaged("root image"))));
        assert!(slots.visible, "the fallback stays");
        install(&whole, &mut slots).unwrap();
    }

    #[test]
    fn progress_of_another_release_does_not_count() {
        let (one, two) = (bundle(&vec![7; 1 << 20], b"kernel"), bundle(&vec![9; 1 << 20], b"kernel"));
        let mut slots = Fake { room: u64::MAX, spare: 2 << 20, ..Fake::default() };
        install_from(&mut Link { rest: &one, breaks: 700 << 10, read: 0 }, &mut slots).unwrap_err();
        install(&two, &mut slots).unwrap();
        assert_eq!(slots.root, vec![9; 1 << 20]);
    }
}
