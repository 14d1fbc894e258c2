//! Text of others in output for people: what could hide, reorder or forge a part of a line is escaped.
use std::borrow::Cow;

/// Whether a character is shown as something else than itself: controls, line ends, bidirectional and zero-width characters.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// `text` with such characters escaped, as in `\u{202e}`.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_invisible) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_invisible(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// Lines of output for people. `writeln!` adds one line: whatever its values hold, it stays one, and [`visible`].
#[derive(Clone, Debug, Default)]
pub struct Lines(String);

impl Lines {
    /// For `write!` and `writeln!`.
    ///
    /// # Errors
    /// As the values' own formatting.
    pub fn write_fmt(&mut self, values: std::fmt::Arguments<'_>) -> std::fmt::Result {
        let mut text = String::new();
        std::fmt::Write::write_fmt(&mut text, values)?;
        match text.strip_suffix('\n') {
            Some(line) => {
                self.0.push_str(&visible(line));
                self.0.push('\n');
            }
            None => self.0.push_str(&visible(&text)),
        }
        Ok(())
    }

    /// Whether nothing was written.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// An empty line.
    pub fn blank(&mut self) {
        self.0.push('\n');
    }
}

impl From<Lines> for String {
    fn from(lines: Lines) -> Self {
        lines.0
    }
}

#[cfg(test)]
mod tests {
    use super::{Lines, visible};

    #[test]
    fn value_cannot_forge_a_line_of_output() {
        let (hub, error) = ("a\nb", "gone\nall well\u{202e}\n");
        let mut out = Lines::default();
        let _ = write!(out, "hub {hub}");
        let _ = writeln!(out, ", {error}");
        out.blank();
        assert_eq!(String::from(out), "hub a\\nb, gone\\nall well\\u{202e}\\n\n\n");
    }

    #[test]
    fn invisible_characters_are_escaped() {
        assert_eq!(visible("Grüße, 10.8.0.1 ✓"), "Grüße, 10.8.0.1 ✓");
        assert_eq!(visible("a\nb\x1b[2J\u{202e}gpj\u{200b}\u{2066}"), "a\\nb\\u{1b}[2J\\u{202e}gpj\\u{200b}\\u{2066}");
        assert_eq!(visible("\u{7f}\u{85}\u{feff}\u{e0041}"), "\\u{7f}\\u{85}\\u{feff}\\u{e0041}");
    }
}
