//! `spoke provision`: moves settings from the boot partition to the state partition. The image runs it at each boot.
use crate::health;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use spoke_api::health::summary::Components;
use spoke_command::{Failure, Outcome, print};
use spoke_config::Config;
use spoke_config::appliance::{SETTINGS, Settings, parse_on_device};
use spoke_config::on_image::KEPT;
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::disk::{Owner, write_atomic, write_atomic_for};
use spoke_sys::vault::Vault;
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The file with the faults of the settings, on the boot partition.
const FAULTS: &str = "spoke-faults.txt";
/// Directory of the secrets on the state partition; `/var/lib/spoke/secrets` for the supervisor.
const SECRETS: &str = "spoke/secrets";
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
    let deps = health::Deps { clock, started: clock.now(), config: Arc::new(config), net, components, stop };
    match health::run(deps).await {
        Ok(()) => {}
    }
}

async fn store_settings(args: &Args, components: &watch::Sender<Components>) -> Outcome {
    let directory = args.state.join("config");
    let config = directory.join(SETTINGS);
    restore(args)?;
    if config.exists() {
        // An operator on the board edits the file as root.
        Owner::of(&directory)?.take(&config)?;
    }
    let mut reported = String::new();
    loop {
        match std::fs::read(args.boot.join(SETTINGS)) {
            Ok(bytes) => match parse_on_device(&bytes, &|path| present(args, path)) {
                Ok(settings) => {
                    store(args, &config, &settings)?;
                    print("spoke: settings taken from the boot partition\n");
                    return Ok(());
                }
                Err(faults) => {
                    let text = faults.iter().map(|f| format!("{f}\n")).collect::<String>();
                    if text != reported {
                        print(&format!(
                            "spoke: {SETTINGS} on the boot partition has faults; correct it there:\n{text}"
                        ));
                        write_faults(args, &text)?;
                        reported = text;
                    }
                    // Existing settings stay in force while new ones are faulty.
                    if args.once || config.exists() {
                        return if config.exists() { Ok(()) } else { Err(Failure::BadInput("no settings".into())) };
                    }
                    let list = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                    report_unprovisioned(components, format!("{SETTINGS} on the boot partition has faults: {list}"));
                }
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if config.exists() {
                    return Ok(());
                }
                if args.once {
                    return Err(Failure::BadInput(format!("there is no {SETTINGS} on the boot partition")));
                }
                let message = format!("spoke: no settings yet: put {SETTINGS} on the boot partition\n");
                if reported != message {
                    print(&message);
                    reported = message;
                }
                report_unprovisioned(components, format!("there is no {SETTINGS} on the boot partition: put it there"));
            }
            Err(e) => return Err(anyhow::Error::from(e).context("cannot read the boot partition").into()),
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
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

fn report_unprovisioned(components: &watch::Sender<Components>, what: String) {
    components.send_if_modified(|v| {
        let changed = v.unprovisioned.as_ref() != Some(&what);
        v.unprovisioned = Some(what);
        changed
    });
}

/// Restores the identity from its second copy if the state partition lost it.
fn restore(args: &Args) -> Result<(), Failure> {
    let vault = Path::new(spoke_sys::slots::RUN).join("dev/vault");
    if !vault.exists() {
        return Ok(());
    }
    match Vault::at(vault).restore(&args.state) {
        Ok(names) if names.is_empty() => Ok(()),
        Ok(names) => {
            print(&format!("spoke: brought back from the second copy: {}\n", names.join(", ")));
            Ok(())
        }
        // Continue as a new device.
        Err(e) => {
            print(&format!("spoke: {e}\n"));
            Ok(())
        }
    }
}

/// Stores the settings, then wipes them from the boot partition. If interrupted, the next boot repeats it.
fn store(args: &Args, config: &Path, settings: &Settings) -> Result<(), Failure> {
    // The supervisor runs as the owner of the directory.
    let reader = Owner::of(config.parent().unwrap_or(config))?;
    // Secrets first, since the settings refer to them.
    if !settings.appliance.secrets.is_empty() {
        let secrets = args.state.join(SECRETS);
        std::fs::create_dir_all(&secrets)?;
        std::fs::set_permissions(&secrets, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        reader.take(&secrets)?;
        std::fs::File::open(&secrets)?.sync_all()?;
        for (name, secret) in &settings.appliance.secrets {
            write_atomic_for(reader, &secrets.join(name), secret.as_bytes(), true)?;
        }
    }
    write_atomic_for(reader, config, settings.config.as_bytes(), true)?;
    if !settings.appliance.ssh_keys.is_empty() {
        let keys = settings.appliance.ssh_keys.join("\n") + "\n";
        write_atomic(&args.state.join("ssh/authorized_keys"), keys.as_bytes(), true)?;
    }
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
        Ok(())
    };
    with_writable_boot(&args.boot, wipe)
        .map_err(|e| anyhow::Error::from(e).context("cannot wipe the settings from the boot partition"))?;
    Ok(())
}

fn write_faults(args: &Args, faults: &str) -> Result<(), Failure> {
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
    Ok(())
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

/// Remounts: files written from outside (a card reader, a gadget port) appear only then.
fn remount(boot: &Path) {
    let device = Path::new(spoke_sys::slots::RUN).join("dev/boot");
    if is_mount(boot) && device.exists() && unmount(boot, UnmountFlags::empty()).is_ok() {
        let _ = mount(&device, boot, "vfat", BOOT_FLAGS | MountFlags::RDONLY, c"umask=0077");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[node]\nid = \"n1\"\n[control]\nurl = \"https://c.example.net\"\n";

    fn args() -> (tempfile::TempDir, Args) {
        let dir = tempfile::tempdir().unwrap();
        let (boot, state) = (dir.path().join("boot"), dir.path().join("state"));
        for d in [&boot, &state.join("config"), &state.join("ssh")] {
            std::fs::create_dir_all(d).unwrap();
        }
        (dir, Args { boot, state, once: true })
    }

    #[test]
    fn settings_are_stored_once_and_wiped() {
        let (_dir, args) = args();
        let key = format!("ssh-ed25519 {} me", "A".repeat(68));
        std::fs::write(args.boot.join(SETTINGS), format!("{GOOD}[appliance]\nssh_keys = [\"{key}\"]\n")).unwrap();
        run(&args).unwrap();
        assert!(!args.boot.join(SETTINGS).exists());
        let config = std::fs::read_to_string(args.state.join("config/spoke.toml")).unwrap();
        assert!(config.contains("n1") && !config.contains("appliance"), "{config}");
        assert_eq!(std::fs::read_to_string(args.state.join("ssh/authorized_keys")).unwrap(), format!("{key}\n"));
        run(&args).unwrap();
    }

    #[test]
    fn secrets_are_stored_apart_from_settings() {
        let (_dir, args) = args();
        let text = format!("{GOOD}[appliance.secrets]\ntoken = \"spk_abc\"\n");
        std::fs::write(args.boot.join(SETTINGS), text).unwrap();
        run(&args).unwrap();
        let secret = args.state.join("spoke/secrets/token");
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "spk_abc");
        assert_eq!(std::fs::metadata(&secret).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::metadata(secret.parent().unwrap()).unwrap().mode() & 0o7777, 0o700);
        assert!(!std::fs::read_to_string(args.state.join("config/spoke.toml")).unwrap().contains("spk_abc"));
    }

    #[test]
    fn supervisor_owns_its_settings() {
        let (_dir, args) = args();
        let (directory, owner) = (args.state.join("config"), spoke_sys::sim::another_user());
        owner.take(&directory).unwrap();
        let text = format!("{GOOD}[appliance.secrets]\ntoken = \"spk_abc\"\n");
        std::fs::write(args.boot.join(SETTINGS), text).unwrap();
        run(&args).unwrap();
        let config = directory.join(SETTINGS);
        for path in [config.clone(), args.state.join(SECRETS), args.state.join(SECRETS).join("token")] {
            assert_eq!(Owner::of(&path).unwrap(), owner, "{}", path.display());
        }
        // An editor creates a new file, owned by root.
        std::fs::remove_file(&config).unwrap();
        std::fs::write(&config, GOOD).unwrap();
        run(&args).unwrap();
        assert_eq!(Owner::of(&config).unwrap(), owner);
    }

    #[test]
    fn settings_that_cannot_run_are_not_taken() {
        let (_dir, args) = args();
        let text = format!(
            "{GOOD}[[interface]]\nname = \"wg0\"\n[agent]\nenabled = true\nsecret = \"file:/var/lib/spoke/agent.secret\"\n"
        );
        std::fs::write(args.boot.join(SETTINGS), &text).unwrap();
        assert!(matches!(run(&args), Err(Failure::BadInput(_))));
        let faults = std::fs::read_to_string(args.boot.join(FAULTS)).unwrap();
        assert!(faults.contains("agent.secret"), "{faults}");
        // The secret is on the device from earlier settings.
        std::fs::create_dir_all(args.state.join("spoke")).unwrap();
        std::fs::write(args.state.join("spoke/agent.secret"), "x").unwrap();
        run(&args).unwrap();
    }

    #[test]
    fn faults_are_written_to_the_partition() {
        let (_dir, args) = args();
        std::fs::write(
            args.boot.join(SETTINGS),
            "[node]\nid = \"bad id\"\nstate_dri = \"/x\"\n[appliance]\npassword = \"x\"\n",
        )
        .unwrap();
        assert!(matches!(run(&args), Err(Failure::BadInput(_))));
        let text = std::fs::read_to_string(args.boot.join(FAULTS)).unwrap();
        for key in ["node.id", "state_dri", "appliance.password"] {
            assert!(text.contains(key), "{key}: {text}");
        }
        assert!(args.boot.join(SETTINGS).exists(), "a file with faults stays");
        std::fs::write(args.state.join("config/spoke.toml"), GOOD).unwrap();
        run(&args).unwrap();
        assert_eq!(std::fs::read_to_string(args.state.join("config/spoke.toml")).unwrap(), GOOD);
    }
}
