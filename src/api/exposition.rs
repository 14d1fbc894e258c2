//! Prometheus text format, version 0.0.4, and the metrics of a process under the names that every dashboard knows.
use spoke_model::time::Boot;
use std::fmt::Write as _;

/// `Content-Type` of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether a value only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It goes up and down.
    Gauge,
    /// It grows until the process starts again.
    Counter,
}

/// The text under way. A family without a sample leaves nothing.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    name: &'static str,
}

impl Exposition {
    /// Begins a family: its samples follow.
    pub fn family(&mut self, kind: Kind, name: &'static str, help: &str) {
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        self.name = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample of the family.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(self.name);
        for (n, (label, value)) in labels.iter().enumerate() {
            self.text.push_str(if n == 0 { "{" } else { "," });
            self.text.push_str(label);
            self.text.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' | '"' => self.text.extend(['\\', c]),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        self.text.push_str(if labels.is_empty() { " " } else { "} " });
        let _ = writeln!(self.text, "{value}");
    }

    /// A family of one sample without labels.
    pub fn single(&mut self, kind: Kind, name: &'static str, help: &str, value: f64) {
        self.family(kind, name, help);
        self.sample(&[], value);
    }

    /// A family with a sample for each value of one label; without any it is left out.
    pub fn by(&mut self, kind: Kind, name: &'static str, help: &str, label: &str, samples: &[(&str, f64)]) {
        if samples.is_empty() {
            return;
        }
        self.family(kind, name, help);
        for (of, value) in samples {
            self.sample(&[(label, of)], *value);
        }
    }

    /// The text.
    pub fn into_text(self) -> String {
        self.text
    }
}

/// A count as a sample's value; exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
pub const fn number(n: u64) -> f64 {
    n as f64
}

/// A truth as a sample's value.
pub const fn flag(holds: bool) -> f64 {
    if holds { 1.0 } else { 0.0 }
}

/// What a process takes. What could not be read is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// Time of the boot, by the wall clock of this moment, in seconds since 1970.
    pub booted: f64,
    /// Processor time of all its threads, in seconds.
    pub cpu_seconds: f64,
    /// Memory in use, in bytes.
    pub resident_bytes: Option<u64>,
    /// Address space, in bytes.
    pub virtual_bytes: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// Open file descriptors.
    pub open_fds: Option<u64>,
    /// The most it may have open; `None`: no limit.
    pub max_fds: Option<u64>,
    /// Files written whole and records appended, by this process.
    pub writes: u64,
    /// Bytes of both.
    pub written_bytes: u64,
}

impl Process {
    /// Its metrics; it was started at `started`. Two scrapes show the same start, unless the wall clock was set between them.
    pub fn write(&self, out: &mut Exposition, started: Boot) {
        out.single(
            Kind::Counter,
            "process_cpu_seconds_total",
            "Processor time of the process in seconds",
            self.cpu_seconds,
        );
        let start = (self.booted + started.since_boot().as_secs_f64()).round();
        out.single(Kind::Gauge, "process_start_time_seconds", "Start of the process in seconds since 1970", start);
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Memory the process uses", self.resident_bytes),
            ("process_virtual_memory_bytes", "Address space of the process", self.virtual_bytes),
            ("process_threads", "Threads of the process", self.threads),
            ("process_open_fds", "Open file descriptors", self.open_fds),
            ("process_max_fds", "Most file descriptors the process may open", self.max_fds),
        ] {
            if let Some(value) = value {
                out.single(Kind::Gauge, name, help, number(value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_empty_families_left_out() {
        let mut out = Exposition::default();
        out.by(Kind::Gauge, "empty", "None", "x", &[]);
        out.by(Kind::Counter, "a_total", "Some", "x", &[("q\"b\\n\nl", 1.5), ("", number(u64::from(u32::MAX)))]);
        out.single(Kind::Gauge, "b", "One", flag(true));
        let expected = "# HELP a_total Some\n# TYPE a_total counter\na_total{x=\"q\\\"b\\\\n\\nl\"} 1.5\n\
                        a_total{x=\"\"} 4294967295\n# HELP b One\n# TYPE b gauge\nb 1\n";
        assert_eq!(out.into_text(), expected);
    }
}
