//! `spoke provision`: moves settings from the boot partition to the state partition. The image runs it at each boot.
use crate::health;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use spoke_api::health::summary::Components;
use spoke_command::{Failure, Outcome, print};
use spoke_config::Config;
use spoke_config::appliance::{MAX_BYTES, Replacing, SETTINGS, SIGNATURE, Settings, parse_on_device};
use spoke_config::on_image::KEPT;
use spoke_model::signature::sha256_hex;
use spoke_sys::beneath::{Beneath, inside};
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::disk::write_atomic;
use spoke_sys::vault::{Missing, Vault};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The file with the faults of the settings, on the boot partition.
const FAULTS: &str = "spoke-faults.txt";
/// The supervisor's state directory on the state partition; `/var/lib/spoke` for the supervisor.
const STATE: &str = "spoke";
/// Directory of the secrets in it.
const SECRETS: &str = "secrets";
/// Beside the settings: the hash of those that were taken and could not be wiped. They are not taken again at the next start.
const TAKEN: &str = "spoke.taken";
/// Among the settings of the host: who may replace the settings by a later file.
const REPLACING: &str = "replacing";
/// Interval at which missing or faulty settings are read again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// `spoke provision`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The boot partition's mount point
    #[arg(long, default_value = "/boot")]
    boot: PathBuf,
    /// The state partition's mount point
    #[arg(long, default_value = "/state")]
    state: PathBuf,
    /// Look once instead of waiting until the settings are right; exit code 2 if they are not
    #[arg(long)]
    once: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    let (components, status) = watch::channel(Components::default());
    spoke_command::block_on(async {
        let (stop, stopped) = watch::channel(false);
        let server = tokio::spawn(serve(status, stopped));
        let done = store_settings(args, &components).await;
        // Frees the address, which the supervisor listens on next.
        let _ = stop.send(true);
        let _ = server.await;
        done
    })?
}

/// Serves `/health` until the supervisor does, so that provisioning can be polled.
async fn serve(components: watch::Receiver<Components>, stop: watch::Receiver<bool>) {
    let (clock, mut unprovisioned, mut stopped) = (SystemClock, components.clone(), stop.clone());
    // Nothing is served if the settings are valid.
    tokio::select! {
        _ = unprovisioned.changed() => {}
        _ = stopped.changed() => return,
    }
    let variables = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let Ok(config) = Config::from_text(None, variables) else { return };
    let (_status, net) = watch::channel(crate::reconciler::NetStatus::default());
    let deps = health::Deps {
        clock,
        started: clock.now(),
        config: Arc::new(config),
        net,
        components,
        changes: None,
        agent: None,
        stop,
    };
    match health::run(deps).await {
        Ok(()) => {}
    }
}

async fn store_settings(args: &Args, components: &watch::Sender<Components>) -> Outcome {
    let directory = args.state.join("config");
    let config = directory.join(SETTINGS);
    // On the image the boot partition is mounted for this process alone.
    if !is_mount(&args.boot) {
        remount(&args.boot);
    }
    restore(args);
    // An operator on the board edits the file as root.
    if config.exists()
        && let Err(e) = Beneath::open(&directory).and_then(|d| d.give(SETTINGS))
    {
        print(&format!("spoke: cannot give {SETTINGS} to the supervisor: {e}\n"));
    }
    name_host(args);
    let mut reported = String::new();
    loop {
        let problem = match look(args, &config) {
            Look::Stored => {
                name_host(args);
                print("spoke: settings taken from the boot partition\n");
                return Ok(());
            }
            Look::Nothing => None,
            Look::Problem(problem) => Some(problem),
        };
        if let Some(problem) = problem.as_ref().filter(|p| p.text != reported) {
            print(&format!("spoke: {}", problem.text));
            if let Some(faults) = &problem.faults {
                write_faults(args, faults);
            }
            reported.clone_from(&problem.text);
        }
        // Existing settings stay in force, whatever is wrong with the boot partition or with new ones.
        if config.exists() {
            return Ok(());
        }
        if args.once {
            return Err(Failure::BadInput(problem.map_or_else(|| "no settings".to_owned(), |p| p.status)));
        }
        report_unprovisioned(components, problem.map_or_else(String::new, |p| p.status));
        SystemClock.sleep(RETRY_INTERVAL).await;
        remount(&args.boot);
    }
}

/// Whether a file that the settings name is on this device; at this time the state partition may not be at its final place.
fn present(args: &Args, path: &Path) -> bool {
    match path.strip_prefix(KEPT) {
        Ok(kept) => args.state.join("spoke").join(kept).exists(),
        Err(_) => path.exists(),
    }
}

/// What the boot partition has.
enum Look {
    /// New settings, which were stored.
    Stored,
    /// Nothing new, and nothing is wrong.
    Nothing,
    /// Nothing usable.
    Problem(Problem),
}

/// Why no settings were taken.
struct Problem {
    /// For the console.
    text: String,
    /// For `/health`.
    status: String,
    /// Faults for the file on the boot partition, one a line.
    faults: Option<String>,
}

fn problem(status: String) -> Look {
    Look::Problem(Problem { text: format!("{status}\n"), status, faults: None })
}

/// Reads the settings of the boot partition and stores them if they are right.
fn look(args: &Args, config: &Path) -> Look {
    let bytes = match read_settings(&args.boot) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return absent(args, config.exists()),
        Err(e) => {
            return problem(format!("cannot read {SETTINGS} on the boot partition: {e}: write it there again"));
        }
    };
    if read_own(args, TAKEN).is_some_and(|hash| hash == sha256_hex(&bytes)) && config.exists() {
        return Look::Nothing;
    }
    if config.exists() && !may_replace(args, &bytes) {
        return problem(format!(
            "{SETTINGS} on the boot partition is not taken: this device has settings, and that file is not signed by their owner ({SIGNATURE}). Change them through the control plane or as root over SSH, or flash the device again"
        ));
    }
    match parse_on_device(&bytes, &|path| present(args, path)) {
        Ok(settings) => match store(args, &settings) {
            Ok(()) => {
                wipe(args, &bytes);
                Look::Stored
            }
            Err(Failure::BadInput(e)) => problem(format!("cannot store the settings: {e}")),
            Err(Failure::Failed(e)) => problem(format!("cannot store the settings: {e:#}")),
            Err(Failure::Silent | Failure::Differs | Failure::Invalid) => {
                problem("cannot store the settings".to_owned())
            }
        },
        Err(faults) => {
            let lines = faults.iter().map(|f| format!("{f}\n")).collect::<String>();
            let list = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            Look::Problem(Problem {
                text: format!("{SETTINGS} on the boot partition has faults; correct it there:\n{lines}"),
                status: format!("{SETTINGS} on the boot partition has faults: {list}"),
                faults: Some(lines),
            })
        }
    }
}

/// Whether the settings in force let a file on the boot partition replace them.
fn may_replace(args: &Args, bytes: &[u8]) -> bool {
    let replacing = std::fs::read_to_string(args.state.join("host").join(REPLACING)).unwrap_or_default();
    let mut signature = String::new();
    let read = std::fs::File::open(args.boot.join(SIGNATURE)).and_then(|f| f.take(1024).read_to_string(&mut signature));
    Replacing::read(&replacing).allows(bytes, read.is_ok().then_some(&signature))
}

/// There is no settings file: none is needed, it has another name, or it has to be put there.
fn absent(args: &Args, configured: bool) -> Look {
    if device().exists() && !is_mount(&args.boot) {
        return problem("the boot partition cannot be mounted: flash the device again with --keep-state".to_owned());
    }
    if let Some(name) = misnamed(&args.boot) {
        return problem(format!("{name} on the boot partition is not read: rename it to {SETTINGS}"));
    }
    if configured {
        return Look::Nothing;
    }
    Look::Problem(Problem {
        text: format!("no settings yet: put {SETTINGS} on the boot partition\n"),
        status: format!("there is no {SETTINGS} on the boot partition: put it there"),
        faults: None,
    })
}

/// A file that was meant to be the settings: desktops hide the ending they add (`spoke.toml.txt`), browsers number downloads.
fn misnamed(boot: &Path) -> Option<String> {
    let names = std::fs::read_dir(boot).ok()?.flatten().filter_map(|e| e.file_name().into_string().ok());
    let mut meant: Vec<_> = names
        .filter(|name| {
            let lower = name.to_ascii_lowercase();
            lower.starts_with("spoke")
                && (lower.contains("toml") || lower == "spoke.txt")
                && lower != SETTINGS
                && !lower.ends_with(".example")
        })
        .collect();
    meant.sort();
    meant.into_iter().next()
}

/// The settings of the boot partition; of a longer file no more than shows that it is too long.
fn read_settings(boot: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(boot.join(SETTINGS))?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A file of the supervisor's settings, read with the rights of its owner.
fn read_own(args: &Args, name: &str) -> Option<String> {
    let read = inside(&args.state.join("config"), |directory| directory.read(name, MAX_BYTES));
    String::from_utf8(read.ok()?.0).ok()
}

/// Keeps the host's name for the image: that of the node, if it has one.
fn name_host(args: &Args) {
    let text = read_own(args, SETTINGS).unwrap_or_default();
    let id = Config::from_text(Some((SETTINGS, &text)), std::iter::empty()).ok().and_then(|c| c.node.id);
    if let Err(e) = keep_host(args, "hostname", &id.map(|id| host_name(&id.to_string())).unwrap_or_default()) {
        print(&format!("spoke: cannot keep the host name: {e}\n"));
    }
}

/// A node's name as a host name (RFC 1123: letters, digits and `-`, at most 63).
fn host_name(id: &str) -> String {
    let name: String = id.chars().take(63).map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    name.trim_matches('-').to_owned()
}

/// Writes a setting of the host, which `apply-host` of the image applies; nothing if it is the same, removed if empty.
fn keep_host(args: &Args, name: &str, content: &str) -> Result<(), anyhow::Error> {
    let path = args.state.join("host").join(name);
    if std::fs::read_to_string(&path).unwrap_or_default().trim() == content {
        return Ok(());
    }
    if content.is_empty() {
        return Ok(std::fs::remove_file(path)?);
    }
    std::fs::create_dir_all(args.state.join("host"))?;
    Ok(write_atomic(&path, format!("{content}\n").as_bytes(), true).map(drop)?)
}

fn report_unprovisioned(components: &watch::Sender<Components>, what: String) {
    components.send_if_modified(|v| {
        let changed = v.unprovisioned.as_ref() != Some(&what);
        v.unprovisioned = Some(what);
        changed
    });
}

/// Restores the identity from its second copy if the state partition lost it.
fn restore(args: &Args) {
    let vault = Path::new(spoke_sys::slots::RUN).join("dev/vault");
    if !vault.exists() {
        return;
    }
    // Written by mount-state.
    let repaired = Path::new(spoke_sys::slots::RUN).join("state-repaired").exists();
    match Vault::at(vault).restore(&args.state, if repaired { Missing::Lost } else { Missing::Removed }) {
        Ok(names) if names.is_empty() => {}
        Ok(names) => print(&format!(
            "spoke: brought back from the second copy: {}
",
            names.join(", ")
        )),
        // Continue as a new device.
        Err(e) => print(&format!("spoke: {e}\n")),
    }
}

/// Stores the settings. If interrupted, the next boot repeats it.
fn store(args: &Args, settings: &Settings) -> Result<(), Failure> {
    // Secrets first, since the settings refer to them. Both directories belong to the supervisor's user.
    let secrets = &settings.appliance.secrets;
    if !secrets.is_empty() {
        inside(&args.state.join(STATE), |state| {
            let directory = state.make_directory(SECRETS)?;
            secrets.iter().try_for_each(|(name, secret)| directory.write(name, secret.as_bytes(), 0o600))
        })?;
    }
    inside(&args.state.join("config"), |directory| directory.write(SETTINGS, settings.config.as_bytes(), 0o600))?;
    let servers = settings.appliance.ntp.join(" ");
    // Without the distribution's servers: where time servers are given, others may be blocked.
    let servers = if servers.is_empty() { servers } else { format!("[Time]\nNTP={servers}\nFallbackNTP=") };
    keep_host(args, "timesyncd.conf", &servers)?;
    keep_host(args, REPLACING, &settings.appliance.replacing.text())?;
    if !settings.appliance.ssh_keys.is_empty() {
        let keys = settings.appliance.ssh_keys.join("\n") + "\n";
        write_atomic(&args.state.join("ssh/authorized_keys"), keys.as_bytes(), true)?;
    }
    Ok(())
}

/// Wipes stored settings from the boot partition. Where that is refused they stay readable there, and are not taken again.
fn wipe(args: &Args, bytes: &[u8]) {
    let wipe = || -> io::Result<()> {
        let path = args.boot.join(SETTINGS);
        let mut file = std::fs::OpenOptions::new().write(true).open(&path)?;
        let length = file.metadata()?.len();
        file.rewind()?;
        // Overwritten in place: freed blocks would keep the text. Blocks that the card itself remapped cannot be wiped.
        io::copy(&mut io::Read::take(io::repeat(b'#'), length), &mut file)?;
        file.sync_all()?;
        drop(file);
        std::fs::remove_file(&path)?;
        let _ = std::fs::remove_file(args.boot.join(FAULTS));
        let _ = std::fs::remove_file(args.boot.join(SIGNATURE));
        Ok(())
    };
    let note = |work: &(dyn Fn(&Beneath) -> io::Result<()> + Sync)| inside(&args.state.join("config"), work);
    match with_writable_boot(&args.boot, wipe) {
        Ok(()) => {
            let _ = note(&|directory| directory.remove(TAKEN));
        }
        Err(e) => {
            print(&format!(
                "spoke: cannot wipe the settings from the boot partition: {e}: they are in force, and can be read there\n"
            ));
            if let Err(e) = note(&|directory| directory.write(TAKEN, sha256_hex(bytes).as_bytes(), 0o600)) {
                print(&format!("spoke: {e}\n"));
            }
        }
    }
}

fn write_faults(args: &Args, faults: &str) {
    let text = format!(
        "The device found these faults in {SETTINGS} and waits for a file without them:\r\n{}",
        faults.replace('\n', "\r\n")
    );
    let write = || {
        let mut file = std::fs::File::create(args.boot.join(FAULTS))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    // The faults were printed to the console already.
    if let Err(e) = with_writable_boot(&args.boot, write) {
        print(&format!("spoke: cannot write {FAULTS}: {e}\n"));
    }
}

fn is_mount(path: &Path) -> bool {
    let device = |p: &Path| std::fs::metadata(p).map(|m| m.dev()).ok();
    device(path) != path.parent().and_then(device)
}

const BOOT_FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

fn with_writable_boot(boot: &Path, change: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let mounted = is_mount(boot);
    if mounted {
        mount_remount(boot, BOOT_FLAGS, c"")?;
    }
    let done = change();
    if mounted {
        rustix::fs::sync();
        let _ = mount_remount(boot, BOOT_FLAGS | MountFlags::RDONLY, c"");
    }
    done
}

/// Mounts the boot partition, again if it is mounted: files written from outside (a card reader, a gadget port) appear only then, and
/// only if it is mounted nowhere else.
fn remount(boot: &Path) {
    let device = device();
    if device.exists() && (!is_mount(boot) || unmount(boot, UnmountFlags::empty()).is_ok()) {
        let _ = mount(&device, boot, "vfat", BOOT_FLAGS | MountFlags::RDONLY, c"umask=0077");
    }
}

/// The boot partition of the disk this system was started from.
fn device() -> PathBuf {
    Path::new(spoke_sys::slots::RUN).join("dev/boot")
}

#[cfg(test)]
mod tests;
