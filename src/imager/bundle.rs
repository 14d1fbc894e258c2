//! Signing keys and update bundles: created on an administrator's machine, verified on devices.
use super::{Failure, Outcome};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use spoke_command::print;
use spoke_model::signature::{SignKey, Signature, VerifyKey};
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::disk::{read_secret, write_atomic};
use spoke_update::manifest;
use spoke_update::manifest::{Certificate, Header, MAGIC, Manifest, Part};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// `spoke-image certify`.
#[derive(Debug, clap::Args)]
pub struct CertifyArgs {
    /// The root key's file
    #[arg(long)]
    root: PathBuf,
    /// Rises with every new certificate: devices refuse lower ones than they have seen
    #[arg(long)]
    serial: u64,
    /// Where the certificate goes
    #[arg(long)]
    output: PathBuf,
    /// Public signing keys
    #[arg(required = true)]
    keys: Vec<VerifyKey>,
}

/// `spoke-image bundle`.
#[derive(Debug, clap::Args)]
pub struct BundleArgs {
    /// Directory that scripts/build-image made for the board
    #[arg(long)]
    image: PathBuf,
    /// The release's number: rises with every release
    #[arg(long)]
    sequence: u64,
    /// The lowest release that may still be installed after this one
    #[arg(long, default_value_t = 0)]
    floor: u64,
    /// Devices install it by themselves for this many days, by hand for ever; without it there is no limit
    #[arg(long)]
    valid_days: Option<u64>,
    /// The certificate of the signing key
    #[arg(long)]
    certificate: PathBuf,
    /// The signing key's file
    #[arg(long)]
    key: PathBuf,
    /// Where the bundle goes
    #[arg(long)]
    output: PathBuf,
}

/// A certificate's file.
#[derive(Serialize, Deserialize)]
struct Certified {
    certificate: String,
    signature: Signature,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> anyhow::Error {
    let name = path.display().to_string();
    move |e| anyhow::Error::from(e).context(name)
}

fn key(path: &Path) -> Result<SignKey, Failure> {
    let text =
        read_secret(path, 256)?.ok_or_else(|| Failure::BadInput(format!("{} does not exist", path.display())))?;
    let bad = || Failure::BadInput(format!("{} holds no signing key (spoke-image new-key makes one)", path.display()));
    let text = std::str::from_utf8(&text).map_err(|_| bad())?;
    let seed = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| bad())?);
    SignKey::from_seed(&seed).map_err(|_| bad())
}

/// Makes a key.
pub fn new_key(file: &Path) -> Outcome {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut()).map_err(|e| anyhow::anyhow!("no random bytes: {e}"))?;
    let key = SignKey::from_seed(seed.as_ref())?;
    let text = Zeroizing::new(format!("{}\n", STANDARD.encode(*seed)));
    write_atomic(file, text.as_bytes(), false)?;
    print(&format!("{}\n", key.public()));
    Ok(())
}

/// Certifies keys.
pub fn certify(args: &CertifyArgs) -> Outcome {
    let certificate = Certificate { serial: args.serial, keys: args.keys.clone() };
    let (certificate, signature) = manifest::certify(&certificate, &key(&args.root)?)?;
    let text = serde_json::to_string_pretty(&Certified { certificate, signature })?;
    std::fs::write(&args.output, text + "\n").map_err(at(&args.output))?;
    Ok(())
}

/// Size and digest of a file.
pub(super) fn part(path: &Path) -> Result<Part, Failure> {
    let mut file = File::open(path).map_err(at(path))?;
    let mut sum = ring::digest::Context::new(&ring::digest::SHA256);
    let (mut block, mut size) = (vec![0; 1 << 20], 0);
    loop {
        let n = file.read(&mut block).map_err(at(path))?;
        if n == 0 {
            break;
        }
        sum.update(block.get(..n).unwrap_or_default());
        size += n as u64;
    }
    let sha256 = const_hex::encode(sum.finish());
    Ok(Part { size, sha256 })
}

/// Makes a bundle.
pub fn bundle(args: &BundleArgs) -> Outcome {
    #[derive(Deserialize)]
    struct Contents {
        board: String,
        version: String,
        #[serde(default)]
        sequence: u64,
    }
    let described = args.image.join("contents.json");
    let contents: Contents = serde_json::from_slice(&std::fs::read(&described).map_err(at(&described))?)?;
    if contents.sequence != 0 && contents.sequence != args.sequence {
        return Err(Failure::BadInput(format!(
            "{} was built as release {}, not {}: its devices compare that number",
            args.image.display(),
            contents.sequence,
            args.sequence
        )));
    }
    let parts = [args.image.join("root.img"), args.image.join("boot.efi")];
    let manifest = Manifest {
        board: contents.board,
        version: contents.version,
        sequence: args.sequence,
        floor: args.floor,
        expires: args.valid_days.map(|days| SystemClock.wall().secs().saturating_add(days.saturating_mul(86_400))),
        root: part(&parts[0])?,
        kernel: part(&parts[1])?,
    };
    let certified: Certified =
        serde_json::from_slice(&std::fs::read(&args.certificate).map_err(at(&args.certificate))?)?;
    let key = key(&args.key)?;
    let named: Certificate = serde_json::from_str(&certified.certificate)?;
    if !named.keys.contains(&key.public()) {
        return Err(Failure::BadInput(format!(
            "{} does not name the key {} ({}): no device would accept the bundle; certify that key first",
            args.certificate.display(),
            key.public(),
            args.key.display()
        )));
    }
    let header = manifest::sign(&certified.certificate, certified.signature, &manifest, &key)?;
    let header = serde_json::to_vec(&header)?;
    let mut output = File::create(&args.output).map_err(at(&args.output))?;
    output.write_all(MAGIC).map_err(at(&args.output))?;
    output.write_all(&u32::try_from(header.len())?.to_le_bytes()).map_err(at(&args.output))?;
    output.write_all(&header).map_err(at(&args.output))?;
    for path in &parts {
        io::copy(&mut File::open(path).map_err(at(path))?, &mut output).map_err(at(&args.output))?;
    }
    output.sync_all().map_err(at(&args.output))?;
    print(&format!(
        "{} release {} ({}) for {}\n",
        args.output.display(),
        args.sequence,
        manifest.version,
        manifest.board
    ));
    Ok(())
}

/// The content of a bundle as text, not verified; `None` if the file is no bundle.
pub fn describe(path: &Path) -> Result<Option<String>, Failure> {
    let mut file = File::open(path).map_err(at(path))?;
    let mut first = [0; 12];
    if file.read_exact(&mut first).is_err() {
        return Ok(None);
    }
    let Ok(length) = manifest::header_length(&first) else { return Ok(None) };
    let mut header = vec![0; length];
    file.read_exact(&mut header).map_err(at(path))?;
    let bad = |_| Failure::BadInput(format!("{}: its header cannot be read", path.display()));
    let header: Header = serde_json::from_slice(&header).map_err(bad)?;
    let manifest: Manifest = serde_json::from_str(&header.manifest).map_err(bad)?;
    let certificate: Certificate = serde_json::from_str(&header.certificate).map_err(bad)?;
    Ok(Some(format!(
        "update bundle (signatures not checked here)\nboard        {}\nversion      {}\nrelease      {} (nothing below {} afterwards)\nroot image   {} bytes\nkernel       {} bytes\ncertificate  {} with {} signing keys\n",
        manifest.board,
        manifest.version,
        manifest.sequence,
        manifest.floor,
        manifest.root.size,
        manifest.kernel.size,
        certificate.serial,
        certificate.keys.len()
    )))
}
