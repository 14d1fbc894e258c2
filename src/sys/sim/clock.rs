//! The clocks of the simulated world: boot time follows the runtime's time, wall time is set by the test.
use crate::clock::Clock;
use spoke_model::time::{Boot, Wall};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A clock whose wall time a test can set.
#[derive(Clone, Debug)]
pub struct SimClock {
    start: Instant,
    /// Wall time at `start`, in seconds since the epoch; negative after a jump to a time before `elapsed`.
    wall: Arc<AtomicI64>,
    /// Time spent in suspend, in seconds: on the boot clock, not on the runtime's.
    suspended: Arc<AtomicU64>,
    resumed: Arc<Notify>,
}

impl SimClock {
    /// A clock 60 s after boot, with the wall time `wall`.
    pub fn new(wall: Wall) -> Self {
        let clock =
            Self { start: Instant::now(), wall: Arc::default(), suspended: Arc::default(), resumed: Arc::default() };
        clock.jump_to(wall);
        clock
    }

    /// Time since the clock was created.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed() + Duration::from_secs(self.suspended.load(Ordering::Relaxed))
    }

    /// The machine was suspended for `time`, in whole seconds.
    pub fn suspend(&self, time: Duration) {
        self.suspended.fetch_add(time.as_secs(), Ordering::Relaxed);
        self.resumed.notify_waiters();
    }

    /// Sets the wall clock; boot time is unaffected.
    pub fn jump_to(&self, wall: Wall) {
        let elapsed = i64::try_from(self.elapsed().as_secs()).unwrap_or(i64::MAX);
        self.wall.store(i64::try_from(wall.0).unwrap_or(i64::MAX).saturating_sub(elapsed), Ordering::Relaxed);
    }

    /// Wall time with nanoseconds, the resolution of handshake timestamps.
    pub fn wall_exact(&self) -> Duration {
        let elapsed = self.elapsed();
        let secs =
            self.wall.load(Ordering::Relaxed).saturating_add(i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX));
        Duration::new(u64::try_from(secs).unwrap_or(0), elapsed.subsec_nanos())
    }
}

impl Clock for SimClock {
    fn now(&self) -> Boot {
        Boot::from_secs(60) + self.elapsed()
    }

    fn wall(&self) -> Wall {
        Wall(self.wall_exact().as_secs())
    }

    async fn sleep(&self, wait: Duration) {
        let end = self.elapsed() + wait;
        loop {
            let resumed = self.resumed.notified();
            tokio::select! {
                () = tokio::time::sleep(end.saturating_sub(self.elapsed())) => return,
                () = resumed => {}
            }
        }
    }
}
