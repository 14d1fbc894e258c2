//! `spoke-image`: writes images to disks, inspects them, adds settings, builds and signs update bundles.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod bundle;
pub mod flash;
pub mod gpt;
pub mod signing;
pub mod verity;

use clap::{Parser, Subcommand};
use spoke_command::{Failure, Outcome, exit_code, print, usage};
use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitCode};

/// Works on images and update bundles.
#[derive(Debug, Parser)]
#[command(name = "spoke-image", version = spoke_model::VERSION, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 fine, 1 failed, 2 bad input.")]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
enum Command {
    /// Write an image to a disk or file, then read it back and compare
    Flash(flash::Args),
    /// Show what is on a disk, an image or in an update bundle
    Inspect {
        /// Disk, image or bundle
        path: PathBuf,
    },
    /// Check a settings file and put it on the boot partition of a disk or image (needs mtools)
    Provision {
        /// Disk or image
        image: PathBuf,
        /// The settings, see spoke.toml.example
        settings: PathBuf,
    },
    /// Make a new signing key
    NewKey {
        /// Where the private half goes (mode 0600); the public half is printed
        file: PathBuf,
    },
    /// On the offline machine: certify signing keys with the root key
    Certify(bundle::CertifyArgs),
    /// Add signatures to a certificate or an update bundle, where more than one key must have signed
    Sign(bundle::SignArgs),
    /// Make a signed update bundle out of what scripts/build-image made
    Bundle(bundle::BundleArgs),
}

/// Parses the arguments and runs the command.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => return usage(false, &e),
    };
    let outcome = match &cli.command {
        Command::Flash(args) => flash::run(args),
        Command::Inspect { path } => inspect(path),
        Command::Provision { image, settings } => provision(image, settings),
        Command::NewKey { file } => bundle::new_key(file),
        Command::Certify(args) => bundle::certify(args),
        Command::Sign(args) => bundle::add_signatures(args),
        Command::Bundle(args) => bundle::bundle(args),
    };
    exit_code("spoke-image", false, outcome)
}

fn partitions(path: &Path) -> Result<Vec<gpt::Partition>, Failure> {
    let file = std::fs::File::open(path).map_err(|e| anyhow::Error::from(e).context(path.display().to_string()))?;
    gpt::read(&file).map_err(|e| Failure::BadInput(format!("{}: {e}", path.display())))
}

/// Said of an image whose build, described beside it, has no key that could certify updates.
fn no_updates(image: &Path) -> Option<&'static str> {
    #[derive(serde::Deserialize)]
    struct Contents {
        update_keys: Option<u32>,
    }
    let text = std::fs::read(image.with_file_name("contents.json")).ok()?;
    let contents: Contents = serde_json::from_slice(&text).ok()?;
    (contents.update_keys == Some(0)).then_some(
        "This image accepts no updates: it was built without a root key (scripts/build-image --update-root FILE).\n",
    )
}

/// The boot partition in the syntax of mtools.
fn boot_place(path: &Path, parts: &[gpt::Partition]) -> Result<String, Failure> {
    let boot = parts.iter().find(|p| p.name == "boot");
    let boot = boot.ok_or_else(|| {
        Failure::BadInput(format!("{}: has no partition named boot: not an image of Spoke", path.display()))
    })?;
    Ok(format!("{}@@{}", path.display(), boot.start))
}

fn mtools(program: &str, arguments: &[&str]) -> Result<String, Failure> {
    let done = Process::new(program).args(arguments).env("MTOOLS_SKIP_CHECK", "1").output();
    let done = done.map_err(|e| anyhow::anyhow!("cannot run {program} (install mtools): {e}"))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    Err(anyhow::anyhow!("{program}: {}", String::from_utf8_lossy(&done.stderr).trim()).into())
}

fn inspect(path: &Path) -> Outcome {
    if let Some(text) = bundle::describe(path)? {
        print(&text);
        return Ok(());
    }
    let parts = partitions(path)?;
    print("partition   start        size\n");
    for p in &parts {
        print(&format!("{:<10} {:>6} MiB {:>7} MiB\n", p.name, p.start >> 20, p.size >> 20));
    }
    if let Some(note) = no_updates(path) {
        print(&format!("\n{note}"));
    }
    let boot = boot_place(path, &parts)?;
    print("\nboot partition:\n");
    for directory in ["::", "::/EFI/Linux"] {
        print(&mtools("mdir", &["-b", "-i", &boot, directory])?);
    }
    Ok(())
}

/// Settings that a device accepts.
struct Accepted<'a>(&'a Path);

/// Reads settings and checks them by the device's own parser: a board may have no screen to report faults.
fn accepted(settings: &Path) -> Result<Accepted<'_>, Failure> {
    let bytes = std::fs::read(settings).map_err(|e| anyhow::Error::from(e).context(settings.display().to_string()))?;
    if let Err(faults) = spoke_config::appliance::parse(&bytes) {
        let text = faults.iter().map(|f| format!("{f}\n")).collect::<String>();
        return Err(Failure::BadInput(format!("{}:\n{text}", settings.display())));
    }
    Ok(Accepted(settings))
}

/// A file that gets settings, in which there may be secrets, is its owner's alone, and that is the caller. A disk stays as it is.
fn keep_private(image: &Path) -> Outcome {
    let at = |e: std::io::Error| anyhow::Error::from(e).context(image.display().to_string());
    let file = std::fs::File::open(image).map_err(at)?;
    let meta = file.metadata().map_err(at)?;
    if !meta.is_file() || meta.permissions().mode() & 0o077 == 0 && meta.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(Failure::BadInput(format!(
            "{} belongs to another user, who would read the settings: name a file of your own",
            image.display()
        )));
    }
    Ok(file.set_permissions(std::fs::Permissions::from_mode(meta.permissions().mode() & 0o700)).map_err(at)?)
}

fn put(image: &Path, settings: Accepted<'_>) -> Outcome {
    let boot = boot_place(image, &partitions(image)?)?;
    keep_private(image)?;
    let from = settings.0.to_str().ok_or_else(|| Failure::BadInput("the settings' path is not UTF-8".into()))?;
    mtools("mcopy", &["-o", "-i", &boot, from, "::spoke.toml"])?;
    // Of the owner, for a device that has settings.
    let signature = settings.0.with_added_extension("sig");
    if let Some(from) = signature.to_str().filter(|_| signature.exists()) {
        mtools("mcopy", &["-o", "-i", &boot, from, "::spoke.toml.sig"])?;
    }
    // The disk may be removed as soon as this returns.
    std::fs::File::open(image).and_then(|f| f.sync_all()).map_err(|e| anyhow::Error::from(e).context("cannot sync"))?;
    print("settings are on the boot partition; the device takes them at its next start\n");
    Ok(())
}

fn provision(image: &Path, settings: &Path) -> Outcome {
    flash::refuse_in_use(image)?;
    put(image, accepted(settings)?)
}
