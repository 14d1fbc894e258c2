//! Counts the responses of a server by status.
use crate::exposition::{Exposition, Kind, number};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The statuses that are counted, as they are named; any other is the last.
const STATUSES: [(u16, &str); 15] = [
    (200, "200"),
    (204, "204"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (408, "408"),
    (409, "409"),
    (413, "413"),
    (421, "421"),
    (422, "422"),
    (429, "429"),
    (503, "503"),
    (0, "other"),
];

/// The counts since the process started. They wrap around where a machine word has 32 bits, as counters may.
#[derive(Debug, Default)]
pub struct ResponseCounts([AtomicUsize; STATUSES.len()]);

impl ResponseCounts {
    /// Counts a response.
    pub fn count(&self, status: u16) {
        let at = STATUSES.iter().position(|(s, _)| *s == status).unwrap_or(STATUSES.len() - 1);
        if let Some(n) = self.0.get(at) {
            n.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Their family, every status from the start.
    pub fn write(&self, out: &mut Exposition, name: &'static str, help: &str) {
        out.family(Kind::Counter, name, help);
        for ((_, code), n) in STATUSES.iter().zip(&self.0) {
            out.sample(&[("code", code)], number(n.load(Ordering::Relaxed) as u64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_counted_once() {
        let counts = ResponseCounts::default();
        for status in [200, 401, 401, 500, 302] {
            counts.count(status);
        }
        let mut out = Exposition::default();
        counts.write(&mut out, "x_total", "Responses");
        let text = out.into_text();
        for line in ["{code=\"200\"} 1", "{code=\"401\"} 2", "{code=\"429\"} 0", "{code=\"other\"} 2"] {
            assert!(text.contains(&format!("x_total{line}\n")), "{line}: {text}");
        }
    }
}
