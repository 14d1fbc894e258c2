//! Looks at the clock once a minute: publishes whether it is believed, and keeps the stamp.
use spoke_model::clock::{Anchor, BUILD, Floor, Occasion, Reading, Stamp, due, judge};
use spoke_sys::clock::{Clock, boot_id, synchronised};
use spoke_sys::disk::{DiskError, Document};
use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;

/// The stamp's file in the state directory.
pub const FILE: &str = "clock.json";
/// How often the clock is looked at. No look writes anything unless a stamp is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Reads the floor. A stamp that cannot be read counts as none: the build's time is a floor too, and the log says what to do.
pub fn floor(state_dir: &Path) -> (Floor, Document<Stamp>) {
    let mut document = Document::new(state_dir.join(FILE), 1);
    let stamp = document.load().unwrap_or_else(|e| {
        tracing::warn!(error = %e, "clock stamp not read; the clock may start further back");
        None
    });
    (Floor { build: BUILD, stamp }, document)
}

/// Keeps the stamp.
#[derive(Debug)]
pub struct Keeper<C> {
    clock: C,
    boot: String,
    every: Duration,
    floor: Floor,
    document: Document<Stamp>,
    trusted: watch::Sender<Option<Anchor>>,
    confirmed: watch::Receiver<Option<Anchor>>,
    /// The last stamp could not be written and the log says so: it is tried again at every look, and said once.
    complained: bool,
}

impl<C: Clock> Keeper<C> {
    /// A keeper of the stamp in `state_dir`. What it believes goes to `trusted`; what authenticated messages say comes from
    /// `confirmed`.
    pub fn new(
        clock: C,
        state_dir: &Path,
        every: Duration,
        trusted: watch::Sender<Option<Anchor>>,
        confirmed: watch::Receiver<Option<Anchor>>,
    ) -> Self {
        let (floor, document) = floor(state_dir);
        Self {
            clock,
            boot: boot_id().unwrap_or_default(),
            every,
            floor,
            document,
            trusted,
            confirmed,
            complained: false,
        }
    }

    /// Looks once a minute, for ever.
    pub async fn run(mut self) -> Result<(), Infallible> {
        loop {
            self.look_and_tell(Occasion::Running);
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = heard(&mut self.confirmed) => {}
            }
        }
    }

    /// Writes the last stamp of a clean stop.
    pub fn stop(mut self) {
        self.look_and_tell(Occasion::Stopping);
    }

    fn look_and_tell(&mut self, occasion: Occasion) {
        match self.look(occasion) {
            Ok(()) => self.complained = false,
            Err(e) if !self.complained => {
                let cause = std::error::Error::source(&e).map(ToString::to_string);
                tracing::warn!(error = %e, ?cause, "clock stamp not kept");
                self.complained = true;
            }
            Err(_) => {}
        }
    }

    fn look(&mut self, occasion: Occasion) -> Result<(), DiskError> {
        let now = self.clock.now();
        let reading = Reading {
            now,
            wall: self.clock.wall(),
            boot: &self.boot,
            synchronised: synchronised(),
            confirmed: *self.confirmed.borrow_and_update(),
        };
        let verdict = judge(reading, &self.floor);
        let stamp = due(reading, &self.floor, self.every, occasion);
        let anchor = verdict.ok().map(|(wall, _)| Anchor { at: now, wall });
        self.trusted.send_if_modified(|was| {
            // The same clock a minute later is no news.
            let same = match (*was, anchor) {
                (Some(a), Some(b)) => a.wall(now).0.abs_diff(b.wall.0) <= 1,
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            if !same {
                tracing::info!(wall = %reading.wall, verdict = ?verdict.map(|(_, source)| source), "clock");
                *was = anchor;
            }
            !same
        });
        let Some(stamp) = stamp else { return Ok(()) };
        self.document.store(&stamp)?;
        tracing::debug!(wall = %stamp.wall, trusted = stamp.trusted, "clock stamp written");
        self.floor.stamp = Some(stamp);
        Ok(())
    }
}

async fn heard(confirmed: &mut watch::Receiver<Option<Anchor>>) {
    if confirmed.changed().await.is_err() {
        std::future::pending().await
    }
}
