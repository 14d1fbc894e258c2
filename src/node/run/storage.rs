//! Reports a disk that takes no writes, a boot partition that cannot be read, and what has an end: space and certificates.
use rustix::fs::StatVfsMountFlags;
use spoke_api::health::summary::{Component, ComponentStatus, Components};
use spoke_sys::clock::Clock;
use spoke_sys::slots::RUN;
use spoke_sys::tls::expiry;
use std::convert::Infallible;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;

/// Time between two checks. A card turns read-only at the kernel's first failed write, without an event.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Checks all while the process runs.
pub(super) async fn watch<C: Clock>(
    clock: C,
    state_dir: PathBuf,
    certificate: Option<PathBuf>,
    components: watch::Sender<Components>,
) -> Result<(), Infallible> {
    loop {
        publish(&components, Component::Storage, storage_fault(Path::new(RUN), &state_dir), &clock);
        if Path::new(RUN).exists() {
            publish(&components, Component::BootPartition, boot_fault(Path::new("/boot")), &clock);
        }
        let space = rustix::fs::statvfs(&state_dir).ok().map(|s| (s.f_blocks * s.f_frsize, s.f_bavail * s.f_frsize));
        let expiry = certificate.as_deref().and_then(expiry).map(|at| ("agent", at));
        components.send_if_modified(|v| {
            let (space, certificates) = (space, expiry.into_iter().collect());
            let changed = v.space != space || v.certificates != certificates;
            (v.space, v.certificates) = (space, certificates);
            changed
        });
        clock.sleep(CHECK_INTERVAL).await;
    }
}

fn publish<C: Clock>(components: &watch::Sender<Components>, component: Component, detail: Option<String>, clock: &C) {
    components.send_if_modified(|v| {
        if v.status.get(&component).is_some_and(|s| s.detail == detail) {
            return false;
        }
        match &detail {
            Some(detail) => tracing::error!(component = component.as_str(), detail, "disk degraded"),
            None if v.status.contains_key(&component) => {
                tracing::info!(component = component.as_str(), "disk works again");
            }
            None => {}
        }
        let status = ComponentStatus { healthy: detail.is_none(), since: clock.now(), detail };
        v.status.insert(component, status);
        true
    });
}

/// Why changes are lost: what the start of an image wrote into `run`, or a file system that is read-only.
fn storage_fault(run: &Path, state_dir: &Path) -> Option<String> {
    if let Ok(text) = std::fs::read_to_string(run.join("state"))
        && !text.trim().is_empty()
    {
        return Some(text.trim().to_owned());
    }
    let read_only = rustix::fs::statvfs(state_dir).is_ok_and(|s| s.f_flag.contains(StatVfsMountFlags::RDONLY));
    read_only.then(|| format!("{} is read-only: changes are lost at the next start", state_dir.display()))
}

/// Nothing is mounted at `boot`, although the image has a boot partition.
fn boot_fault(boot: &Path) -> Option<String> {
    let device = |p: &Path| std::fs::metadata(p).map(|m| m.dev()).ok();
    (device(boot) == boot.parent().and_then(device)).then(|| "the boot partition cannot be mounted".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_of_the_start_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(storage_fault(dir.path(), dir.path()), None);
        std::fs::write(dir.path().join("state"), "there is no state partition\n").unwrap();
        assert_eq!(storage_fault(dir.path(), dir.path()).as_deref(), Some("there is no state partition"));
    }

    #[test]
    fn read_only_file_system_is_reported() {
        // /sys is read-only in a container and has no files of ours anywhere else.
        let dir = tempfile::tempdir().unwrap();
        let read_only = rustix::fs::statvfs("/sys").unwrap().f_flag.contains(StatVfsMountFlags::RDONLY);
        assert_eq!(storage_fault(dir.path(), Path::new("/sys")).is_some(), read_only);
    }

    #[test]
    fn boot_directory_without_a_mount_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let boot = dir.path().join("boot");
        std::fs::create_dir(&boot).unwrap();
        assert!(boot_fault(&boot).is_some());
        assert_eq!(boot_fault(Path::new("/proc")), None);
    }
}
