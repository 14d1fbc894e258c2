//! Task that checks the wall clock once a minute, publishes whether it is trusted, and stores the stamp.
//!
//! Waits for: the timer, a confirmed time.
use spoke_model::clock::{
    Anchor, BUILD, BootStamp, Floor, JumpWatch, Occasion, Reading, Stamp, anchor_at_start, assess, due,
};
use spoke_model::error_chain::ErrorChain;
use spoke_model::log_text::Word;
use spoke_model::time::{Boot, Wall};
use spoke_sys::clock::{Clock, SystemClock, boot_id, set_wall, synchronised};
use spoke_sys::disk::{DiskError, Document};
use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;

/// The stamp's file in the state directory.
pub const FILE: &str = "clock.json";
/// The file with the latest time that a handshake may carry, there only if that is ahead of the right time.
const STAMPED: &str = "stamped-until.json";
/// The file with the clock at the begin of this boot.
const AT_BOOT: &str = "clock-boot.json";
/// Interval of the checks; a check writes only if a stamp is due.
const CHECK_EVERY: Duration = Duration::from_secs(60);

/// Reads the floor. A stamp that cannot be read counts as none: the build's time remains.
pub fn floor(state_dir: &Path) -> (Floor, Document<Stamp>) {
    let mut document = Document::new(state_dir.join(FILE), 1);
    let stamp = document.load().unwrap_or_else(|e| {
        tracing::warn!(error = %ErrorChain(&e), "cannot read clock stamp; restoring the clock may set it further back");
        None
    });
    (Floor { build: BUILD, stamp }, document)
}

/// Sets the clock if it is behind its lower bound, and records it for [`Keeper::new`]: jumps are measured from here.
/// Returns a description. For `spoke clock restore`, which spoke-clock.service runs; no other command sets the clock.
///
/// # Errors
/// The process lacks CAP_SYS_TIME.
pub fn restore(state_dir: &Path) -> Result<String, std::io::Error> {
    let (floor, _) = floor(state_dir);
    let wall = SystemClock.wall();
    let set = floor.restore(wall);
    let done = set.map_or(Ok(()), set_wall);
    record_boot(&SystemClock, state_dir, true);
    done?;
    Ok(match set {
        Some(least) => format!("the clock said {wall}; it was set to {least}"),
        None => format!("the clock says {wall}, which is not before {}", floor.least()),
    })
}

/// Records the clock at the start of the supervisor, unless it was recorded in this boot already: a time server may have
/// set it since. Returns the clock's lower bound if it is behind.
pub fn record_start(state_dir: &Path) -> Option<Wall> {
    let (floor, _) = floor(state_dir);
    record_boot(&SystemClock, state_dir, false);
    floor.restore(SystemClock.wall())
}

fn at_boot(state_dir: &Path) -> Document<BootStamp> {
    Document::new(state_dir.join(AT_BOOT), 1)
}

fn record_boot(clock: &impl Clock, state_dir: &Path, restored: bool) {
    let Some(boot) = boot_id() else { return };
    let mut document = at_boot(state_dir);
    let known = document.load().unwrap_or_default();
    if !restored && known.is_some_and(|k| k.boot == boot) {
        return;
    }
    let (at, wall) = (clock.now(), clock.wall());
    let start = BootStamp { boot, at, wall, restored };
    if let Err(e) = document.store(&start) {
        tracing::debug!(error = %ErrorChain(&e), "clock at boot not recorded");
    }
}

/// Whether the clock has jumped since it was last known, as the supervisor would see it.
pub fn has_jumped(state_dir: &Path, now: Boot, wall: Wall, floor: &Floor) -> bool {
    let stamped = Document::<Wall>::new(state_dir.join(STAMPED), 1).peek();
    let (boot, start) = (boot_id().unwrap_or_default(), at_boot(state_dir).peek());
    let anchor = anchor_at_start(&boot, wall, floor.stamp.as_ref(), start.as_ref(), stamped.is_some());
    JumpWatch::new(anchor, stamped).observe(now, wall, None)
}

/// Checks the clock and stores the stamp.
#[derive(Debug)]
pub struct Keeper<C> {
    clock: C,
    boot: String,
    every: Duration,
    floor: Floor,
    document: Document<Stamp>,
    trusted: watch::Sender<Option<Anchor>>,
    confirmed: watch::Receiver<Option<Anchor>>,
    watch: JumpWatch,
    stamped: Document<Wall>,
    /// Written by the session as well, when a new key is in use.
    stamped_until: watch::Sender<Option<Wall>>,
    jumped: bool,
    /// The last write failed, which is logged once; it is tried again at every check.
    write_failed: bool,
}

impl<C: Clock> Keeper<C> {
    /// Stores the stamp in `state_dir`; publishes the trusted time to `trusted` and takes times from authenticated messages
    /// from `confirmed`. `stamped_until`: what the hub may take our handshakes to be of, where that is in the future.
    pub fn new(
        clock: C,
        state_dir: &Path,
        every: Duration,
        trusted: watch::Sender<Option<Anchor>>,
        confirmed: watch::Receiver<Option<Anchor>>,
        stamped_until: watch::Sender<Option<Wall>>,
    ) -> Self {
        let (floor, document) = floor(state_dir);
        let mut stamped = Document::new(state_dir.join(STAMPED), 1);
        let known = stamped.load().unwrap_or_else(|e| {
            tracing::warn!(error = %ErrorChain(&e), "record of handshakes in the future not readable");
            None
        });
        stamped_until.send_replace(known);
        let (boot, start) = (boot_id().unwrap_or_default(), at_boot(state_dir).peek());
        let anchor = anchor_at_start(&boot, clock.wall(), floor.stamp.as_ref(), start.as_ref(), known.is_some());
        Self {
            clock,
            boot,
            every,
            floor,
            document,
            trusted,
            confirmed,
            watch: JumpWatch::new(anchor, known),
            stamped,
            stamped_until,
            jumped: false,
            write_failed: false,
        }
    }

    /// Checks once a minute until dropped.
    pub async fn run(mut self) -> Result<(), Infallible> {
        loop {
            self.check_and_log(Occasion::Running);
            tokio::select! {
                () = self.clock.sleep(CHECK_EVERY) => {}
                () = changed(&mut self.confirmed) => {}
            }
        }
    }

    /// Writes the last stamp of a clean stop.
    pub fn stop(mut self) {
        self.check_and_log(Occasion::Stopping);
    }

    fn check_and_log(&mut self, occasion: Occasion) {
        match self.check(occasion) {
            Ok(()) => self.write_failed = false,
            Err(e) if !self.write_failed => {
                tracing::warn!(error = %ErrorChain(&e), "cannot store clock stamp");
                self.write_failed = true;
            }
            Err(_) => {}
        }
    }

    fn watch_jumps(&mut self, wall: Wall, confirmed: Option<Anchor>, occasion: Occasion) {
        let before = *self.stamped_until.borrow();
        if before.is_none() {
            self.watch.forget_stamps();
        }
        let jumped = self.watch.observe(self.clock.now(), wall, confirmed);
        if jumped && !self.jumped && occasion == Occasion::Running {
            tracing::error!(%wall, "clock jumped by more than a day and nothing authenticated confirms it: not trusted");
        }
        self.jumped = jumped;
        let stamped = self.watch.stamped();
        if stamped == before && (stamped.is_some() || !self.stamped.path().exists()) {
            return;
        }
        // Before it is used: the handshakes outlive a power cut in the hub's memory.
        let done = match stamped {
            Some(until) => self.stamped.store(&until).map(drop),
            None => self.stamped.remove(),
        };
        if let Err(e) = done {
            tracing::warn!(error = %ErrorChain(&e), "time of handshakes in the future not recorded");
        }
        self.stamped_until.send_if_modified(|s| std::mem::replace(s, stamped) != stamped);
    }

    fn check(&mut self, occasion: Occasion) -> Result<(), DiskError> {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let confirmed = *self.confirmed.borrow_and_update();
        self.watch_jumps(wall, confirmed, occasion);
        let (boot, jumped) = (&self.boot, self.jumped);
        let reading = Reading { now, wall, boot, synchronised: synchronised(), confirmed, jumped };
        let verdict = assess(reading, &self.floor);
        let stamp = due(reading, &self.floor, self.every, occasion);
        let anchor = verdict.ok().map(|(wall, _)| Anchor { at: now, wall });
        self.trusted.send_if_modified(|was| {
            // The same clock a minute later is no change.
            let same = match (*was, anchor) {
                (Some(a), Some(b)) => a.wall(now).0.abs_diff(b.wall.0) <= 1,
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            if !same {
                let wall = reading.wall;
                match verdict {
                    Ok((_, source)) => tracing::info!(%wall, source = %Word(&source), "clock trusted"),
                    Err(doubt) => tracing::info!(%wall, reason = %Word(&doubt), "clock not trusted"),
                }
                *was = anchor;
            }
            !same
        });
        let Some(stamp) = stamp else { return Ok(()) };
        self.document.store(&stamp)?;
        tracing::debug!(wall = %stamp.wall, trusted = stamp.trusted, "clock stamp stored");
        self.floor.stamp = Some(stamp);
        Ok(())
    }
}

async fn changed(confirmed: &mut watch::Receiver<Option<Anchor>>) {
    if confirmed.changed().await.is_err() {
        std::future::pending().await
    }
}
