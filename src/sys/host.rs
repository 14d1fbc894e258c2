//! Load of the machine, from `/proc` and the root file system.
use spoke_api::agent::answer::HostLoad;

/// Shortest time that a CPU percentage is of, in ticks of one processor: 5 s at USER_HZ.
const WINDOW: u64 = 500;

/// Reads the load; keeps two samples of the CPU counters. A percentage is of the last 5 s at least, however many ask.
#[derive(Debug, Default)]
pub struct Host {
    cpu: CpuWindow,
}

#[derive(Debug, Default)]
struct CpuWindow {
    /// Busy and all ticks: at the start of the window, and the newest sample that can start the next one.
    base: (u64, u64),
    recent: (u64, u64),
}

impl CpuWindow {
    /// The percentage up to `sample`; the first ones are of the time since boot.
    fn percent(&mut self, sample: (u64, u64), processors: u64) -> f64 {
        if sample.1.saturating_sub(self.recent.1) >= WINDOW * processors {
            (self.base, self.recent) = (self.recent, sample);
        }
        let (busy, total) = (sample.0.saturating_sub(self.base.0), sample.1.saturating_sub(self.base.1));
        #[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
        let percent = busy as f64 / total.max(1) as f64 * 100.0;
        (percent * 10.0).round() / 10.0
    }
}

impl Host {
    /// The load. What cannot be read is 0. Reads memory-backed files only.
    pub fn load(&mut self) -> HostLoad {
        let mut out = HostLoad::default();
        if let Some(text) = read("/proc/stat")
            && let Some(sample) = cpu(&text)
        {
            let processors = text.lines().skip(1).take_while(|l| l.starts_with("cpu")).count().max(1);
            out.cpu_percent = self.cpu.percent(sample, processors as u64);
        }
        if let Some(text) = read("/proc/meminfo") {
            out.memory_total = meminfo(&text, "MemTotal:");
            out.memory_available = meminfo(&text, "MemAvailable:");
        }
        if let Ok(fs) = rustix::fs::statvfs("/") {
            out.disk_total = fs.f_blocks * fs.f_frsize;
            out.disk_free = fs.f_bavail * fs.f_frsize;
            out.disk_used = fs.f_blocks.saturating_sub(fs.f_bfree) * fs.f_frsize;
        }
        if let Some(text) = read("/proc/net/dev") {
            [out.bytes_recv, out.packets_recv, out.bytes_sent, out.packets_sent] = traffic(&text);
        }
        out
    }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// Busy and all ticks of all processors.
fn cpu(text: &str) -> Option<(u64, u64)> {
    let numbers: Vec<u64> =
        text.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest time is in user already.
    let total: u64 = numbers.iter().take(8).sum();
    let idle: u64 = numbers.get(3)? + numbers.get(4).copied().unwrap_or(0);
    Some((total - idle, total))
}

fn meminfo(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    line.and_then(|l| l.split_ascii_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Bytes and packets received, bytes and packets sent, the loopback left out.
fn traffic(text: &str) -> [u64; 4] {
    let mut sum = [0u64; 4];
    for line in text.lines() {
        let Some((name, counters)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let n: Vec<u64> = counters.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
        for (slot, at) in sum.iter_mut().zip([0, 1, 8, 9]) {
            *slot = slot.saturating_add(n.get(at).copied().unwrap_or(0));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_formats_are_parsed() {
        assert_eq!(cpu("cpu  10 0 5 80 5 0 0 0 3 0\ncpu0 1\n"), Some((15, 100)));
        assert_eq!(meminfo("MemTotal:  2048 kB\nMemAvailable: 1024 kB\n", "MemAvailable:"), 1 << 20);
        let dev = "Inter-|   Receive\n lo: 9 9 0 0 0 0 0 0 9 9 0\n eth0: 100 2 0 0 0 0 0 0 50 1 0 0\n wg0:1 1 0 0 0 0 0 0 1 1 0 0\n";
        assert_eq!(traffic(dev), [101, 3, 51, 2]);
    }

    #[test]
    fn several_askers_get_the_same_percentage() {
        let mut window = CpuWindow::default();
        assert_eq!(window.percent((10_000, 100_000), 1), 10.0, "since boot");
        // Busy for 50 of the next 600 ticks; a second asker in the same tick, and one a tick later that is all busy.
        assert_eq!(window.percent((10_050, 100_600), 1), 8.3);
        assert_eq!(window.percent((10_050, 100_600), 1), 8.3);
        assert_eq!(window.percent((10_051, 100_601), 1), 8.5);
    }

    #[test]
    fn load_of_this_machine_is_plausible() {
        let load = Host::default().load();
        assert!(load.memory_total > load.memory_available && load.disk_total >= load.disk_used && load.disk_used > 0);
        assert!((0.0..=100.0).contains(&load.cpu_percent));
    }
}
