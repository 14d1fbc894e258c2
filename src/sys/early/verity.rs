//! Sets up dm-verity for a root partition: every block read is then checked against the root hash.
use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Updater, ioctl, opcode};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Why a partition cannot be the root.
#[derive(Debug, thiserror::Error)]
pub enum VerityError {
    /// No readable superblock of a hash tree where one should be.
    #[error("{0} has no hash tree at the given offset")]
    NoTree(PathBuf),
    /// The content does not belong to the root hash.
    #[error("{0} does not match the root hash")]
    Mismatch(PathBuf),
    /// The kernel refused a step.
    #[error("device mapper: {step}")]
    Mapper {
        /// What was asked for.
        step: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// The part of the on-disk superblock that the mapping needs.
struct Tree {
    hash_type: u32,
    data_block: u32,
    hash_block: u32,
    blocks: u64,
    algorithm: String,
    salt: String,
}

impl Tree {
    fn parse(sb: &[u8; 512]) -> Option<Self> {
        let u32_at = |at: usize| Some(u32::from_le_bytes(sb.get(at..at + 4)?.try_into().ok()?));
        let salt_len = usize::from(u16::from_le_bytes(sb.get(80..82)?.try_into().ok()?));
        let algorithm = sb.get(32..64)?.split(|b| *b == 0).next()?;
        let tree = Self {
            hash_type: u32_at(12)?,
            data_block: u32_at(64)?,
            hash_block: u32_at(68)?,
            blocks: u64::from_le_bytes(sb.get(72..80)?.try_into().ok()?),
            algorithm: std::str::from_utf8(algorithm).ok()?.to_owned(),
            salt: const_hex::encode(sb.get(88..88 + salt_len.min(256))?),
        };
        // (The offsets follow the layout of `struct verity_sb`: signature, version, type, uuid, algorithm, sizes, salt.)
        let sane = sb.starts_with(b"verity\0\0")
            && [512, 1024, 2048, 4096].contains(&tree.data_block)
            && tree.hash_block == tree.data_block;
        (sane && tree.hash_type <= 1 && tree.algorithm.bytes().all(|b| b.is_ascii_alphanumeric())).then_some(tree)
    }
}

/// `struct dm_ioctl` followed by what its commands carry.
#[repr(C, align(8))]
struct Request {
    bytes: [u8; Self::SIZE],
}

impl Request {
    const HEADER: usize = 312;
    const SIZE: usize = 2048;
    const READ_ONLY: u32 = 1;
    /// `DM_SKIP_LOCKFS_FLAG`.
    const SKIP_LOCKFS: u32 = 1 << 10;

    fn new(flags: u32) -> Self {
        let mut r = Self { bytes: [0; Self::SIZE] };
        r.put(0, &4u32.to_ne_bytes());
        r.put(12, &(Self::SIZE as u32).to_ne_bytes());
        r.put(16, &(Self::HEADER as u32).to_ne_bytes());
        r.put(28, &flags.to_ne_bytes());
        r.put(48, b"root");
        r
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    /// Adds the one target of the mapping.
    fn target(&mut self, sectors: u64, parameters: &str) {
        self.put(20, &1u32.to_ne_bytes());
        self.put(Self::HEADER + 8, &sectors.to_ne_bytes());
        self.put(Self::HEADER + 24, b"verity");
        self.put(Self::HEADER + 40, parameters.as_bytes());
    }

    fn minor(&self) -> u32 {
        let mut device = [0; 8];
        device.copy_from_slice(&self.bytes[40..48]);
        rustix::fs::minor(u64::from_ne_bytes(device))
    }
}

const CREATE: u8 = 3;
const REMOVE: u8 = 4;
const SUSPEND: u8 = 6;
const LOAD: u8 = 9;

fn ask<const OP: rustix::ioctl::Opcode>(
    control: &File,
    request: &mut Request,
    step: &'static str,
) -> Result<(), VerityError> {
    // SAFETY: every opcode used is one of the device mapper's, which read and write at most `data_size` bytes of the
    // buffer; that field is set to the buffer's size in `Request::new`.
    #[allow(unsafe_code)]
    unsafe { ioctl(control, Updater::<OP, Request>::new(request)) }
        .map_err(|e| VerityError::Mapper { step, source: e.into() })
}

const fn code(number: u8) -> rustix::ioctl::Opcode {
    // The size in the opcode is that of the header alone.
    opcode::read_write::<[u8; Request::HEADER]>(0xfd, number)
}

/// A mapped root: every block read through it is checked.
#[derive(Debug)]
pub struct Root {
    node: PathBuf,
    sectors: u64,
    parameters: String,
}

/// Maps `partition` as the verified device, after one block of it was read and checked. A block that does not match is a read
/// error until [`Root::restart_on_corruption`]: a root that does not match at all must not become a boot loop.
pub fn open(partition: &Path, hash_offset: u64, root_hash: &str) -> Result<Root, VerityError> {
    let no_tree = || VerityError::NoTree(partition.to_owned());
    let mut superblock = [0; 512];
    File::open(partition).and_then(|f| f.read_exact_at(&mut superblock, hash_offset)).map_err(|_| no_tree())?;
    let tree = Tree::parse(&superblock).ok_or_else(no_tree)?;
    let control = control().map_err(|source| VerityError::Mapper { step: "open", source })?;
    let _ = ask::<{ code(REMOVE) }>(&control, &mut Request::new(0), "remove");
    ask::<{ code(CREATE) }>(&control, &mut Request::new(Request::READ_ONLY), "create")?;
    let at = partition.display();
    let hash_start = hash_offset / u64::from(tree.hash_block) + 1;
    let salt = if tree.salt.is_empty() { "-" } else { &tree.salt };
    let sectors = tree.blocks * u64::from(tree.data_block) / 512;
    let parameters = format!(
        "{} {at} {at} {} {} {} {hash_start} {} {root_hash} {salt}",
        tree.hash_type, tree.data_block, tree.hash_block, tree.blocks, tree.algorithm
    );
    let mapped = (|| {
        let node = load(&control, sectors, &parameters)?;
        let mut block = [0; 4096];
        File::open(&node)
            .and_then(|mut f| f.read_exact(&mut block))
            .map_err(|_| VerityError::Mismatch(partition.to_owned()))?;
        Ok(node)
    })();
    match mapped {
        Ok(node) => Ok(Root { node, sectors, parameters }),
        Err(e) => {
            let _ = ask::<{ code(REMOVE) }>(&control, &mut Request::new(0), "remove");
            Err(e)
        }
    }
}

impl Root {
    /// Its device node.
    pub fn node(&self) -> &Path {
        &self.node
    }

    /// Reads every block; an error if one does not match.
    pub fn check(&self) -> io::Result<()> {
        let mut file = File::open(&self.node)?;
        let mut buffer = vec![0; 256 * 1024];
        while file.read(&mut buffer)? > 0 {}
        Ok(())
    }

    /// From here on a block that does not match restarts the machine: programs that cannot be read would leave it half working.
    pub fn restart_on_corruption(&self) -> Result<(), VerityError> {
        let control = control().map_err(|source| VerityError::Mapper { step: "open", source })?;
        load(&control, self.sectors, &format!("{} 1 restart_on_corruption", self.parameters)).map(drop)
    }
}

/// Replaces the mapping; returns its node.
fn load(control: &File, sectors: u64, parameters: &str) -> Result<PathBuf, VerityError> {
    let mut load = Request::new(Request::READ_ONLY);
    load.target(sectors, parameters);
    ask::<{ code(LOAD) }>(control, &mut load, "load")?;
    // The read-only file system on it needs no freeze.
    let mut resume = Request::new(Request::SKIP_LOCKFS);
    ask::<{ code(SUSPEND) }>(control, &mut resume, "resume")?;
    Ok(PathBuf::from(format!("/dev/dm-{}", resume.minor())))
}

fn control() -> io::Result<File> {
    let path = Path::new("/dev/mapper/control");
    if !path.exists() {
        std::fs::create_dir_all("/dev/mapper")?;
        // The node's numbers are fixed in the kernel's list of misc devices.
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path,
            rustix::fs::FileType::CharacterDevice,
            Mode::RUSR | Mode::WUSR,
            rustix::fs::makedev(10, 236),
        )?;
    }
    Ok(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A superblock as `veritysetup format` writes it.
    fn superblock() -> [u8; 512] {
        let mut sb = [0; 512];
        sb[..8].copy_from_slice(b"verity\0\0");
        // The version is the field behind the signature, the type of hash the one after it.
        sb[8] = 1;
        sb[12] = 1;
        sb[32..38].copy_from_slice(b"sha256");
        sb[64..68].copy_from_slice(&4096u32.to_le_bytes());
        sb[68..72].copy_from_slice(&4096u32.to_le_bytes());
        sb[72..80].copy_from_slice(&5000u64.to_le_bytes());
        sb[80] = 2;
        sb[88] = 0xab;
        sb[89] = 0xcd;
        sb
    }

    #[test]
    fn reads_what_veritysetup_writes() {
        let tree = Tree::parse(&superblock()).unwrap();
        assert_eq!(
            (tree.blocks, tree.data_block, tree.algorithm.as_str(), tree.salt.as_str()),
            (5000, 4096, "sha256", "abcd")
        );
    }

    proptest! {
        #[test]
        fn any_superblock_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 512), magic in any::<bool>()) {
            let mut sb: [u8; 512] = bytes.try_into().unwrap();
            if magic {
                sb[..8].copy_from_slice(b"verity\0\0");
            }
            let _ = Tree::parse(&sb);
        }
    }
}
