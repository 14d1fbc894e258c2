//! HTML as text. Markup is constant; everything else is escaped.
use crate::health::fold::Moment;
use spoke_model::time::Boot;
use std::fmt::{self, Display, Write};
use std::time::Duration;

/// A document that is being written at one moment.
#[derive(Debug)]
pub struct Html<'a> {
    text: String,
    /// Now.
    pub at: &'a Moment,
}

/// What a figure or an object is, as class: colour and symbol are those of `look.css`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It works.
    Ok,
    /// It works with a restriction.
    Warn,
    /// It does not work.
    Bad,
    /// It is not known yet.
    Wait,
    /// There is nothing to say about it.
    None,
    /// On trial.
    New,
}

impl State {
    /// The class.
    pub const fn class(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Bad => "bad",
            Self::Wait => "wait",
            Self::None => "none",
            Self::New => "new",
        }
    }

    /// The symbol, for a title.
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::Ok => "●",
            Self::Warn => "▲",
            Self::Bad => "■",
            Self::Wait => "◔",
            Self::None => "○",
            Self::New => "↻",
        }
    }
}

struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // Marks that change the direction of the text after them.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => self.0.push('\u{fffd}'),
                c if c.is_control() && c != '\n' => self.0.push('\u{fffd}'),
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

impl<'a> Html<'a> {
    /// An empty document.
    pub const fn new(at: &'a Moment) -> Self {
        Self { text: String::new(), at }
    }

    /// The document.
    pub fn finish(self) -> String {
        self.text
    }

    /// Markup or text that needs no escape.
    pub fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.text.push_str(markup);
        self
    }

    /// Text, escaped.
    pub fn text(&mut self, value: &dyn Display) -> &mut Self {
        let _ = write!(Escaped(&mut self.text), "{value}");
        self
    }

    /// Text in which back quotes enclose code.
    pub fn prose(&mut self, text: &str) -> &mut Self {
        for (i, part) in text.split('`').enumerate() {
            let code = i % 2 == 1;
            self.raw(if code { "<code>" } else { "" }).text(&part).raw(if code { "</code>" } else { "" });
        }
        self
    }

    /// `<b class="s STATE">TEXT</b>`.
    pub fn chip(&mut self, state: State, text: &dyn Display) -> &mut Self {
        self.raw("<b class=\"s ").raw(state.class()).raw("\">").text(text).raw("</b>")
    }

    /// The time since a moment.
    pub fn age(&mut self, since: Boot) -> &mut Self {
        let age = self.at.now.since(since).as_secs();
        self.raw("<time data-a=").text(&age);
        if let Some(time) = self.at.wall_at(since) {
            self.raw(" title=").text(&time);
        }
        self.raw(">").text(&Span(age)).raw("</time>")
    }

    /// A wait, which the page counts down.
    pub fn wait(&mut self, wait: Duration) -> &mut Self {
        self.raw("<span data-c=").text(&wait.as_secs()).raw(">").text(&Span(wait.as_secs())).raw("</span>")
    }

    /// A dot, unless this is the first of its kind.
    pub fn dot(&mut self, first: &mut bool) -> &mut Self {
        if std::mem::replace(first, false) { self } else { self.raw(" · ") }
    }
}

/// Seconds, in the largest unit that keeps two digits.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub u64);

impl Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, unit) = match self.0 {
            s @ ..120 => (s, " s"),
            s @ ..7200 => (s / 60, " min"),
            s @ ..172_800 => (s / 3600, " h"),
            s => (s / 86_400, " d"),
        };
        n.fmt(f)?;
        f.write_str(unit)
    }
}

/// A quantity with a decimal prefix and one decimal.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub u64, pub &'static str);

impl Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut n, mut prefix) = (self.0.saturating_mul(10), 0);
        while n >= 10_000 && prefix < 5 {
            n /= 1000;
            prefix += 1;
        }
        (n / 10).fmt(f)?;
        if prefix > 0 && n < 1000 {
            f.write_str(".")?;
            (n % 10).fmt(f)?;
        }
        f.write_str(
            ["\u{a0}", "\u{a0}k", "\u{a0}M", "\u{a0}G", "\u{a0}T", "\u{a0}P"].get(prefix).copied().unwrap_or_default(),
        )?;
        f.write_str(self.1)
    }
}
