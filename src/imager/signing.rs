//! Signatures by keys in files, and by commands that keep theirs: a token, a smart card, a KMS.
use super::Failure;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use spoke_model::signature::{SignKey, Signature, VerifyKey};
use spoke_sys::disk::read_secret;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use zeroize::Zeroizing;

/// Keys that signatures must be of, and the file that lists them.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// The keys.
    pub keys: &'a [VerifyKey],
    /// The file.
    pub file: &'a Path,
}

/// Signatures over `message` by each key file and command. A command gets the message on its standard input and writes the
/// signature to its output: 64 bytes, or base64.
pub fn sign(
    message: &[u8],
    files: &[PathBuf],
    commands: &[String],
    listed: Option<Listed<'_>>,
) -> Result<Vec<Signature>, Failure> {
    let bad = |text: String| Err(Failure::BadInput(text));
    let mut made = Vec::new();
    for file in files {
        let key = key(file)?;
        if let Some(Listed { keys, file: list }) = listed
            && !keys.contains(&key.public())
        {
            return bad(format!(
                "{} does not name the key {} ({}): no device would accept its signature",
                list.display(),
                key.public(),
                file.display()
            ));
        }
        made.push(key.sign(message));
    }
    for command in commands {
        let Some(Listed { keys, file }) = listed else {
            return bad(format!("whose key signs with {command:?}? name the public root keys: --roots FILE"));
        };
        let signature = run(command, message)?;
        if !keys.iter().any(|k| k.verify(message, &signature)) {
            return bad(format!("what {command:?} printed is no signature by a key that {} names", file.display()));
        }
        made.push(signature);
    }
    if made.is_empty() {
        return bad("no signer: name a key's file or a command (--signer CMD)".into());
    }
    Ok(made)
}

fn run(command: &str, message: &[u8]) -> Result<Signature, Failure> {
    let failed = |what: String| anyhow::anyhow!("{command:?} {what}");
    let spawned = Command::new("sh").args(["-c", command]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|e| failed(format!("cannot be run: {e}")))?;
    if let Some(mut input) = child.stdin.take() {
        match input.write_all(message) {
            // Its status says more.
            Err(e) if e.kind() != ErrorKind::BrokenPipe => return Err(failed(format!("took no input: {e}")).into()),
            Ok(()) | Err(_) => {}
        }
    }
    let done = child.wait_with_output().map_err(|e| failed(format!("did not end: {e}")))?;
    if !done.status.success() {
        return Err(failed(format!("ended with {}", done.status)).into());
    }
    if let Ok(raw) = done.stdout.as_slice().try_into() {
        return Ok(Signature(raw));
    }
    let text = std::str::from_utf8(&done.stdout).ok().and_then(|t| t.trim().parse().ok());
    Ok(text.ok_or_else(|| failed("printed no Ed25519 signature (64 bytes, or base64)".into()))?)
}

fn key(path: &Path) -> Result<SignKey, Failure> {
    let text =
        read_secret(path, 256)?.ok_or_else(|| Failure::BadInput(format!("{} does not exist", path.display())))?;
    let bad = || Failure::BadInput(format!("{} holds no signing key (spoke-image new-key makes one)", path.display()));
    let text = std::str::from_utf8(&text).map_err(|_| bad())?;
    let seed = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| bad())?);
    SignKey::from_seed(&seed).map_err(|_| bad())
}
