//! The clocks of the machine.
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, clock_settime,
    timerfd_create, timerfd_settime,
};
use spoke_model::time::{Boot, Wall};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Reads the clocks.
pub trait Clock: Clone + Send + Sync + 'static {
    /// Time since boot.
    fn now(&self) -> Boot;
    /// Wall time as the machine has it, right or wrong; `clock` in the supervisor decides whether to trust it.
    fn wall(&self) -> Wall;
    /// Waits on the boot clock, which a suspended machine does not stop: a wait that ended meanwhile ends at resume.
    fn sleep(&self, wait: Duration) -> impl Future<Output = ()> + Send;
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

    async fn sleep(&self, wait: Duration) {
        // The runtime's own timers are on CLOCK_MONOTONIC, which stands still in suspend; without a descriptor they serve.
        match boot_timer(wait) {
            Ok(timer) if timer.readable().await.is_ok() => {}
            Ok(_) | Err(_) => tokio::time::sleep(wait).await,
        }
    }
}

/// The output of `work`; `None`: it took longer than `limit` on the boot clock. Long timeouts need it: a connection that died in
/// suspend is given up at resume.
pub async fn timeout<F: Future>(limit: Duration, work: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        out = work => Some(out),
        () = SystemClock.sleep(limit) => None,
    }
}

/// A descriptor that is readable after `wait` on CLOCK_BOOTTIME.
#[expect(deprecated, reason = "its successor needs unsafe code; an owned descriptor is all it asks for")]
fn boot_timer(wait: Duration) -> std::io::Result<AsyncFd<OwnedFd>> {
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    // Zero would disarm it.
    let wait = wait.max(Duration::from_nanos(1));
    // The width of its fields differs between architectures.
    let it_value = Timespec::try_from(wait).map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
    AsyncFd::with_interest(timer, Interest::READABLE)
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
