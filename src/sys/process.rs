//! What this process takes, from `/proc/self` and its clock.
use crate::disk;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};
use spoke_api::exposition::Process;

/// Reads it. Reads memory-backed files only.
pub fn read() -> Process {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let (writes, written_bytes) = disk::written();
    Process {
        booted: seconds(ClockId::Realtime) - seconds(ClockId::Boottime),
        cpu_seconds: seconds(ClockId::ProcessCPUTime),
        resident_bytes: field(&status, "VmRSS:").map(|kib| kib * 1024),
        virtual_bytes: field(&status, "VmSize:").map(|kib| kib * 1024),
        threads: field(&status, "Threads:"),
        // The descriptor of the directory itself is one of them.
        open_fds: std::fs::read_dir("/proc/self/fd").ok().map(|all| (all.count() as u64).saturating_sub(1)),
        max_fds: getrlimit(Resource::Nofile).current,
        writes,
        written_bytes,
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact to a microsecond for centuries")]
fn seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The number in a line of `/proc/self/status`.
fn field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|l| l.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_memory_and_time_are_counted() {
        let before = read();
        let files: Vec<_> = (0..100).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let dir = tempfile::tempdir().unwrap();
        disk::write_atomic(&dir.path().join("x"), &[7; 1000], false).unwrap();
        while read().cpu_seconds <= before.cpu_seconds {}
        let after = read();
        // Other tests of this process open and close files too.
        assert!(after.open_fds.unwrap() + 50 > before.open_fds.unwrap() + files.len() as u64, "{before:?} {after:?}");
        assert!(after.written_bytes >= before.written_bytes + 1000 && after.writes > before.writes);
        assert!(after.virtual_bytes > after.resident_bytes && after.resident_bytes.unwrap() > 100_000, "{after:?}");
        assert!(after.threads.unwrap() >= 1 && after.max_fds.is_none_or(|most| most > 100));
    }
}
