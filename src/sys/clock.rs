//! The clocks of the machine.
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use spoke_model::time::{Boot, Wall};
use std::time::Duration;

/// Reads the clocks.
pub trait Clock: Clone + Send + Sync + 'static {
    /// Time since boot.
    fn now(&self) -> Boot;
    /// Wall time as the machine has it, right or wrong; `clock` in the supervisor decides whether to trust it.
    fn wall(&self) -> Wall;
}

/// The machine's own clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Boot {
        let t = clock_gettime(ClockId::Boottime);
        let (secs, nanos) = (u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0));
        Boot::from_duration(Duration::new(secs, nanos))
    }

    fn wall(&self) -> Wall {
        Wall(u64::try_from(clock_gettime(ClockId::Realtime).tv_sec).unwrap_or(0))
    }
}

/// The id of this boot (`/proc/sys/kernel/random/boot_id`), kept beside every stored [`Boot`] moment.
pub fn boot_id() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|s| s.trim().to_owned())
}

/// Sets the wall clock; needs CAP_SYS_TIME.
pub fn set_wall(to: Wall) -> std::io::Result<()> {
    let tv_sec = to.0.try_into().map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
    clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec: 0 }).map_err(Into::into)
}

/// Whether systemd-timesyncd has set the clock from a server in this boot.
pub fn synchronised() -> bool {
    std::path::Path::new("/run/systemd/timesync/synchronized").exists()
}
