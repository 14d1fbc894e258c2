//! The log: standard error, where the journal reads it. `SPOKE_LOG` chooses what is written.
use crate::complain;
use crate::text::visible;
use std::io::IsTerminal as _;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, Layer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// A level, or `target=level` and more of them separated by commas.
const VARIABLE: &str = "SPOKE_LOG";

/// One event as one line: time, level, text, fields. No spans: the product opens none.
struct Line {
    /// Standard error is the journal: it has time stamps of its own, and takes a priority at the beginning of a line.
    journal: bool,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        let (dim, colour, end) = match (out.has_ansi_escapes(), *event.metadata().level()) {
            (false, _) => ("", "", ""),
            (true, Level::ERROR) => ("\x1b[2m", "\x1b[31m", "\x1b[0m"),
            (true, Level::WARN) => ("\x1b[2m", "\x1b[33m", "\x1b[0m"),
            (true, Level::INFO) => ("\x1b[2m", "\x1b[32m", "\x1b[0m"),
            (true, Level::DEBUG) => ("\x1b[2m", "\x1b[34m", "\x1b[0m"),
            (true, Level::TRACE) => ("\x1b[2m", "\x1b[35m", "\x1b[0m"),
        };
        if self.journal {
            // sd-daemon(3)
            out.write_str(match *event.metadata().level() {
                Level::ERROR => "<3>",
                Level::WARN => "<4>",
                Level::INFO => "<6>",
                Level::DEBUG | Level::TRACE => "<7>",
            })?;
        } else {
            out.write_str(dim)?;
            SystemTime.format_time(&mut out)?;
            write!(out, "{end} ")?;
        }
        write!(out, "{colour}{:>5}{end} ", event.metadata().level().as_str())?;
        // Fields hold text of others, which must not forge a line or a part of one.
        let mut fields = String::new();
        context.format_fields(Writer::new(&mut fields), event)?;
        writeln!(out, "{}", visible(&fields))
    }
}

/// Whether standard error is the journal's stream, and not only inherited from a service (systemd.exec(5), `$JOURNAL_STREAM`).
pub(crate) fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(std::io::stderr()).is_ok_and(|s| stream == format!("{}:{}", s.st_dev, s.st_ino))
}

/// Starts the log of `program`. A filter that cannot be read is reported and replaced by `info`.
pub fn start_log(program: &str) {
    let journal = is_journal();
    let wanted = std::env::var(VARIABLE).ok();
    let (filter, fault) = filter(wanted.as_deref());
    let lines = Layer::new()
        .with_ansi(!journal && std::io::stderr().is_terminal())
        .event_format(Line { journal })
        .with_writer(std::io::stderr);
    if let Err(e) = tracing_subscriber::registry().with(lines).with(filter).try_init() {
        complain(program, &format!("logging: {e}"));
    }
    if let Some(error) = fault {
        tracing::warn!(variable = VARIABLE, error, "log filter not understood, info is used");
    }
}

/// The filter, and the fault of the text if it has one. An empty text counts as none.
fn filter(text: Option<&str>) -> (Targets, Option<String>) {
    let info = Targets::new().with_default(LevelFilter::INFO);
    match text.map(str::trim).filter(|t| !t.is_empty()).map(str::parse) {
        None => (info, None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(e)) => (info, Some(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_targets_are_filters() {
        let level = |text| filter(Some(text)).0.default_level();
        assert_eq!(level("debug"), Some(LevelFilter::DEBUG));
        assert_eq!(level(" "), Some(LevelFilter::INFO));
        assert_eq!(filter(None).0.default_level(), Some(LevelFilter::INFO));
        let (both, refused) = filter(Some("warn,spoke_sys=trace"));
        assert_eq!(refused, None);
        assert!(both.would_enable("spoke_sys::kernel", &tracing::Level::TRACE));
        assert!(!both.would_enable("spoke_node", &tracing::Level::INFO));
    }

    /// What `log` writes.
    fn lines(journal: bool, log: impl FnOnce()) -> String {
        use std::sync::{Arc, Mutex};
        #[derive(Clone, Default)]
        struct Buffer(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Buffer {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let lines = Layer::new().with_ansi(false).event_format(Line { journal }).with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), log);
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn field_cannot_forge_a_line() {
        let text = lines(true, || {
            tracing::warn!(reason = %"lost\nERROR all keys deleted \u{202e}\x1b[31m", "state reverted");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("lost\\nERROR") && !text.contains('\u{202e}') && !text.contains('\x1b'), "{text}");
    }

    #[test]
    fn journal_gets_a_priority_and_no_time() {
        let text = lines(true, || {
            tracing::error!("a");
            tracing::warn!("b");
            tracing::info!("c");
        });
        assert_eq!(text, "<3>ERROR a\n<4> WARN b\n<6> INFO c\n");
        let text = lines(false, || tracing::error!("a"));
        assert!(text.contains("Z ERROR a") && !text.contains('<'), "{text}");
    }

    #[test]
    fn span_filters_are_reported_and_replaced_by_info() {
        for text in ["spoke[request{id=1}]=debug", "spoke=loud"] {
            let (used, refused) = filter(Some(text));
            assert!(refused.is_some(), "{text}");
            assert_eq!(used.default_level(), Some(LevelFilter::INFO), "{text}");
        }
    }
}
