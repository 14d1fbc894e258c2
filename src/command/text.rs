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

#[cfg(test)]
mod tests {
    use super::visible;

    #[test]
    fn invisible_characters_are_escaped() {
        assert_eq!(visible("Grüße, 10.8.0.1 ✓"), "Grüße, 10.8.0.1 ✓");
        assert_eq!(visible("a\nb\x1b[2J\u{202e}gpj\u{200b}\u{2066}"), "a\\nb\\u{1b}[2J\\u{202e}gpj\\u{200b}\\u{2066}");
        assert_eq!(visible("\u{7f}\u{85}\u{feff}\u{e0041}"), "\\u{7f}\\u{85}\\u{feff}\\u{e0041}");
    }
}
