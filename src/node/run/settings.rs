//! Waits for a configuration that can be loaded, for `spoke run --wait-for-settings`: a restart would not help, and on an image
//! many of them end in a reboot.
use crate::config_file::load;
use spoke_command::Failure;
use spoke_config::Config;
use spoke_sys::clock::Clock;
use spoke_sys::notify::Notify;
use std::path::Path;
use std::time::Duration;

/// Time between two attempts: the file is small, and an editor or a mount makes no event that is certain to be seen.
const RETRY: Duration = Duration::from_secs(5);

/// The configuration, once it can be loaded; each fault is logged once. The service counts as started meanwhile, so that what
/// is ordered after it goes on.
pub(super) async fn wait(file: &Path, clock: &impl Clock, notify: &mut impl Notify) -> Config {
    let mut known = None;
    loop {
        let fault = match load(file) {
            Ok(config) => return config,
            Err(Failure::BadInput(fault)) => fault,
            Err(Failure::Failed(e)) => format!("{e:#}"),
            Err(Failure::Silent | Failure::Differs | Failure::Invalid) => String::new(),
        };
        if known.as_ref() != Some(&fault) {
            tracing::error!(file = %file.display(), error = fault, "settings unusable; waiting for a change of them");
            notify.ready();
            notify.status("waiting for settings: see the log for their faults");
            known = Some(fault);
        }
        notify.alive();
        clock.sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_model::time::Wall;
    use spoke_sys::sim::clock::SimClock;

    #[derive(Default)]
    struct Watched {
        started: bool,
        longest: Duration,
        last: Option<tokio::time::Instant>,
        alive: u32,
    }

    impl Notify for Watched {
        fn ready(&mut self) {
            self.started = true;
        }
        fn alive(&mut self) {
            let now = tokio::time::Instant::now();
            self.longest = self.longest.max(self.last.map_or(Duration::ZERO, |last| now - last));
            (self.last, self.alive) = (Some(now), self.alive + 1);
        }
        fn status(&mut self, _: &str) {}
        fn stopping(&mut self) {}
        fn watchdog(&self) -> Option<Duration> {
            None
        }
    }

    #[tokio::test(start_paused = true)]
    async fn faulty_settings_cause_no_restart_in_an_hour() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("spoke.toml");
        let good = "[[interface]]\nname = \"wg0\"\n";
        // Missing, emptied by a power cut, cut in the middle, with an unknown key, not UTF-8, a directory.
        let faults: [Option<&[u8]>; 5] =
            [None, Some(b""), Some(b"[[interf"), Some(b"[node]\nnope = 1\n"), Some(b"\xff\xfe")];
        for fault in faults {
            let _ = std::fs::remove_file(&file);
            if let Some(bytes) = fault {
                std::fs::write(&file, bytes).unwrap();
            }
            let mut watched = Watched::default();
            let clock = SimClock::new(Wall(0));
            let hour = tokio::time::timeout(Duration::from_secs(3600), wait(&file, &clock, &mut watched)).await;
            assert!(hour.is_err(), "{fault:?}: it ended");
            // WatchdogSec=90; the first pass, or the wait, ends the start.
            assert!(watched.started && watched.alive > 100 && watched.longest < Duration::from_secs(30), "{fault:?}");
            std::fs::write(&file, good).unwrap();
            let config =
                tokio::time::timeout(Duration::from_secs(10), wait(&file, &clock, &mut watched)).await.unwrap();
            assert_eq!(config.interfaces.len(), 1);
        }
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        let mut watched = Watched::default();
        let clock = SimClock::new(Wall(0));
        let hour = wait(&file, &clock, &mut watched);
        assert!(tokio::time::timeout(Duration::from_secs(3600), hour).await.is_err());
    }
}
