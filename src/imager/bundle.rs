//! Signing keys and update bundles: created on an administrator's machine, verified on devices.
use super::{Failure, Outcome};
use crate::signing;
use crate::signing::Listed;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use spoke_command::print;
use spoke_config::appliance::signed_message;
use spoke_model::signature::{SignKey, Signature, VerifyKey};
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::disk::{write_atomic, write_public};
use spoke_update::manifest;
use spoke_update::manifest::{Certificate, Certified, Header, MAGIC, Manifest, Part, Roots};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// `spoke-image certify`.
#[derive(Debug, clap::Args)]
pub struct CertifyArgs {
    /// A root key's file
    #[arg(long)]
    root: Vec<PathBuf>,
    /// A command that signs with a root key: gets the bytes on its input, writes the signature to its output
    #[arg(long, value_name = "CMD")]
    signer: Vec<String>,
    /// The public root keys, as in the image; needed with --signer
    #[arg(long, value_name = "FILE")]
    roots: Option<PathBuf>,
    /// How many of the keys must have signed a release
    #[arg(long, default_value_t = 1)]
    threshold: u32,
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
    /// A signing key's file
    #[arg(long)]
    key: Vec<PathBuf>,
    /// A command that signs: gets the bytes on its input, writes the signature to its output
    #[arg(long, value_name = "CMD")]
    signer: Vec<String>,
    /// Where the bundle goes
    #[arg(long)]
    output: PathBuf,
}

/// `spoke-image sign`.
#[derive(Debug, clap::Args)]
pub struct SignArgs {
    /// The certificate, bundle, or settings for a device (NAME.toml, signed in NAME.toml.sig)
    file: PathBuf,
    /// A key's file: a root key for a certificate, a signing key for a bundle, an owner's for settings
    #[arg(long)]
    key: Vec<PathBuf>,
    /// A command that signs: gets the bytes on its input, writes the signature to its output
    #[arg(long, value_name = "CMD")]
    signer: Vec<String>,
    /// The public root keys, as in the image; needed with --signer for a certificate or settings
    #[arg(long, value_name = "FILE")]
    roots: Option<PathBuf>,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> anyhow::Error {
    let name = path.display().to_string();
    move |e| anyhow::Error::from(e).context(name)
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
    let different = args.keys.iter().collect::<BTreeSet<_>>().len();
    if !(1..=different).contains(&usize::try_from(args.threshold)?) {
        return Err(Failure::BadInput(format!("{} of {different} keys can sign no release", args.threshold)));
    }
    let certificate = Certificate { serial: args.serial, keys: args.keys.clone(), threshold: args.threshold };
    let certificate = serde_json::to_string(&certificate)?;
    let roots = args.roots.as_deref().map(read_roots).transpose()?;
    let listed = roots.as_ref().zip(args.roots.as_deref()).map(|(r, file)| Listed { keys: &r.keys, file });
    let mut signatures =
        signing::sign(&manifest::certificate_message(&certificate), &args.root, &args.signer, listed)?.into_iter();
    let signature = signatures.next().ok_or(Failure::Silent)?;
    let certified = Certified { certificate, signature, more: signatures.collect() };
    write_certificate(&args.output, &certified)?;
    if let Some(roots) = roots {
        note_missing(1 + certified.more.len(), roots.threshold);
    }
    Ok(())
}

fn write_certificate(path: &Path, certified: &Certified) -> Outcome {
    let text = serde_json::to_string_pretty(certified)? + "\n";
    Ok(write_public(path, &mut |file| file.write_all(text.as_bytes()))?)
}

fn read_roots(path: &Path) -> Result<Roots, Failure> {
    Ok(Roots::parse(&std::fs::read_to_string(path).map_err(at(path))?))
}

fn note_missing(have: usize, need: usize) {
    if have < need {
        print(&format!(
            "{have} of {need} signatures: devices accept it once others have signed it (spoke-image sign)\n"
        ));
    }
}

/// Signs a settings file: the signature is written beside it.
fn sign_settings(args: &SignArgs) -> Outcome {
    let message = signed_message(&std::fs::read(&args.file).map_err(at(&args.file))?);
    let roots = args.roots.as_deref().map(read_roots).transpose()?;
    let listed = roots.as_ref().zip(args.roots.as_deref()).map(|(r, file)| Listed { keys: &r.keys, file });
    let made = signing::sign(&message, &args.key, &args.signer, listed)?;
    let text = format!("{}\n", made.first().ok_or(Failure::Silent)?);
    Ok(write_public(&args.file.with_added_extension("sig"), &mut |file| file.write_all(text.as_bytes()))?)
}

/// Adds signatures to a certificate or bundle, or signs a settings file.
pub fn add_signatures(args: &SignArgs) -> Outcome {
    if args.file.extension().is_some_and(|e| e == "toml") {
        return sign_settings(args);
    }
    let Some(mut header) = read_header(&args.file)? else {
        let mut certified: Certified = serde_json::from_slice(&std::fs::read(&args.file).map_err(at(&args.file))?)?;
        let roots = args.roots.as_deref().map(read_roots).transpose()?;
        let listed = roots.as_ref().zip(args.roots.as_deref()).map(|(r, file)| Listed { keys: &r.keys, file });
        let message = manifest::certificate_message(&certified.certificate);
        let made = signing::sign(&message, &args.key, &args.signer, listed)?;
        add(&certified.signature, &mut certified.more, made);
        write_certificate(&args.file, &certified)?;
        if let Some(roots) = roots {
            note_missing(1 + certified.more.len(), roots.threshold);
        }
        return Ok(());
    };
    let named: Certificate = serde_json::from_str(&header.certificate)?;
    let listed = Listed { keys: &named.keys, file: &args.file };
    let message = manifest::manifest_message(&header.manifest);
    let made = signing::sign(&message, &args.key, &args.signer, Some(listed))?;
    add(&header.manifest_signature, &mut header.manifest_signatures, made);
    // The header grows: the parts behind it are copied to a new file.
    let mut from = File::open(&args.file).map_err(at(&args.file))?;
    let mut first = [0; 12];
    from.read_exact(&mut first).map_err(at(&args.file))?;
    let before = manifest::header_length(&first).map_err(|e| anyhow::anyhow!("{e}"))?;
    from.seek(SeekFrom::Current(i64::try_from(before)?)).map_err(at(&args.file))?;
    write_public(&args.file, &mut |output| {
        write_header(output, &header)?;
        io::copy(&mut from, output).map(drop)
    })?;
    note_missing(1 + header.manifest_signatures.len(), usize::try_from(named.threshold)?);
    Ok(())
}

fn add(first: &Signature, more: &mut Vec<Signature>, made: Vec<Signature>) {
    for signature in made {
        if signature != *first && !more.contains(&signature) {
            more.push(signature);
        }
    }
}

fn write_header(output: &mut File, header: &Header) -> io::Result<()> {
    let header = serde_json::to_vec(header)?;
    let length = u32::try_from(header.len()).map_err(io::Error::other)?;
    output.write_all(MAGIC)?;
    output.write_all(&length.to_le_bytes())?;
    output.write_all(&header)
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
    let named: Certificate = serde_json::from_str(&certified.certificate)?;
    let listed = Listed { keys: &named.keys, file: &args.certificate };
    let text = serde_json::to_string(&manifest)?;
    let signatures = signing::sign(&manifest::manifest_message(&text), &args.key, &args.signer, Some(listed))?;
    let made = signatures.len();
    let header = Header::new(certified, text, signatures).ok_or(Failure::Silent)?;
    let mut sources = Vec::new();
    for path in &parts {
        sources.push(File::open(path).map_err(at(path))?);
    }
    write_public(&args.output, &mut |output| {
        write_header(output, &header)?;
        sources.iter_mut().try_for_each(|source| io::copy(source, output).map(drop))
    })?;
    print(&format!(
        "{} release {} ({}) for {}\n",
        args.output.display(),
        args.sequence,
        manifest.version,
        manifest.board
    ));
    note_missing(made, usize::try_from(named.threshold)?);
    Ok(())
}

/// The header of a bundle, not verified; `None` if the file is no bundle.
fn read_header(path: &Path) -> Result<Option<Header>, Failure> {
    let mut file = File::open(path).map_err(at(path))?;
    let mut first = [0; 12];
    if file.read_exact(&mut first).is_err() {
        return Ok(None);
    }
    let Ok(length) = manifest::header_length(&first) else { return Ok(None) };
    let mut header = vec![0; length];
    file.read_exact(&mut header).map_err(at(path))?;
    let bad = |_| Failure::BadInput(format!("{}: its header cannot be read", path.display()));
    Ok(Some(serde_json::from_slice(&header).map_err(bad)?))
}

/// The content of a bundle as text, not verified; `None` if the file is no bundle.
pub fn describe(path: &Path) -> Result<Option<String>, Failure> {
    let Some(header) = read_header(path)? else { return Ok(None) };
    let bad = |_| Failure::BadInput(format!("{}: its header cannot be read", path.display()));
    let manifest: Manifest = serde_json::from_str(&header.manifest).map_err(bad)?;
    let certificate: Certificate = serde_json::from_str(&header.certificate).map_err(bad)?;
    Ok(Some(format!(
        "update bundle (signatures not checked here)\nboard        {}\nversion      {}\nrelease      {} (nothing below {} afterwards)\nroot image   {} bytes\nkernel       {} bytes\ncertificate  {} with {} signing keys, {} of which must sign\nsigned       {} times, the certificate {} times\n",
        manifest.board,
        manifest.version,
        manifest.sequence,
        manifest.floor,
        manifest.root.size,
        manifest.kernel.size,
        certificate.serial,
        certificate.keys.len(),
        certificate.threshold,
        1 + header.manifest_signatures.len(),
        1 + header.certificate_signatures.len()
    )))
}
