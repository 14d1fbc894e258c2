//! Values in the log as a person writes them, instead of Rust's `Debug`: words and durations.
use std::fmt::{self, Debug, Display, Write as _};
use std::time::Duration;

/// The name of a variant without fields, in snake case: `NoHandshake` is `no_handshake`.
#[derive(Clone, Copy)]
pub struct Word<'a>(pub &'a dyn Debug);

impl Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Snake(f, true), "{:?}", self.0)
    }
}

/// Writes in snake case; whether nothing was written so far.
struct Snake<'a, 'b>(&'a mut fmt::Formatter<'b>, bool);

impl fmt::Write for Snake<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if c.is_ascii_uppercase() && !std::mem::replace(&mut self.1, false) {
                self.0.write_char('_')?;
            }
            self.1 = false;
            self.0.write_char(c.to_ascii_lowercase())?;
        }
        Ok(())
    }
}

/// A duration with at most one decimal: `250ms`, `4.5s`, `90s`, `2m`.
#[derive(Clone, Copy)]
pub struct Span(pub Duration);

impl Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = self.0.as_millis().saturating_add(50) / 100;
        let secs = tenths / 10;
        match (tenths % 10, secs) {
            (_, 0) => write!(f, "{}ms", self.0.as_millis()),
            (0, s) if s >= 120 && s % 3600 == 0 => write!(f, "{}h", s / 3600),
            (0, s) if s >= 120 && s % 60 == 0 => write!(f, "{}m", s / 60),
            (tenth, s) if tenth > 0 && s < 60 => write!(f, "{s}.{tenth}s"),
            (_, s) => write!(f, "{s}s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_words_are_a_persons() {
        let span = |ms| Span(Duration::from_millis(ms)).to_string();
        let shown = [250, 4_481, 4_000, 59_960, 90_400, 120_000, 3_600_000].map(span);
        assert_eq!(shown, ["250ms", "4.5s", "4s", "60s", "90s", "2m", "1h"]);
        #[derive(Debug)]
        enum Code {
            NoHandshake,
            Port,
        }
        assert_eq!(format!("{} {}", Word(&Code::NoHandshake), Word(&Code::Port)), "no_handshake port");
    }
}
