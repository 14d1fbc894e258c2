//! What the man pages have beside what the parsers know: files, environment, examples, related pages.
use clap::Command;
use std::fmt::Write as _;

/// A paragraph with a heading: what is meant, and what it is for.
type Entry = (&'static str, &'static str);

struct Program {
    files: &'static [Entry],
    environment: &'static [Entry],
    examples: &'static [Entry],
    related: &'static [(&'static str, u8)],
}

const SPOKE: Program = Program {
    files: &[
        ("/etc/spoke/spoke.toml", "The configuration, spoke.toml(5)."),
        (
            "/var/lib/spoke",
            "Keys, enrolment, the last good state, grants and the audit trail; mode 0700. A backup is of this directory.",
        ),
        ("/run/spoke/spoke.sock", "The socket of the running supervisor, for the other commands."),
    ],
    environment: &[
        ("SPOKE__SECTION__KEY", "Overrides a key of the configuration, as in SPOKE__UPLINK__BACKOFF_MAX=2m."),
        (
            "SPOKE_LOG",
            "What is logged: error, warn, info (the default), debug, or target=level and more of them separated by commas.",
        ),
        ("CREDENTIALS_DIRECTORY", "Where a key given as credential:NAME is read from; set by systemd."),
    ],
    examples: &[
        ("spoke check && spoke plan", "Check an edited configuration and show what it would change in the kernel."),
        ("spoke reload", "Take it into force; the tunnel stays up."),
        ("spoke doctor", "Find what keeps the tunnel from coming up, with a remedy for each finding."),
        ("spoke status --json | jq .uplink.state", "Use the status in a script."),
        ("spoke drift --exit-code", "Exit with 2 if the kernel has something else than wanted."),
    ],
    related: &[("spoke.toml", 5), ("spoke-control", 1), ("wg", 8), ("wg-quick", 8), ("journalctl", 1)],
};

const CONTROL: Program = Program {
    files: &[
        ("/etc/spoke-control/spoke-control.toml", "The configuration, spoke-control.toml(5)."),
        (
            "/var/lib/spoke-control/master.key",
            "Seals the signing keys in the database: keep a copy on another machine.",
        ),
        ("/var/lib/spoke-control/fleet.db", "The database, unless store.url names another one."),
    ],
    environment: &[
        (
            "SPOKE_CONTROL__SECTION__KEY",
            "Overrides a key of the configuration, as in SPOKE_CONTROL__LIMITS__PER_NODE=9.",
        ),
        (
            "SPOKE_LOG",
            "What is logged: error, warn, info (the default), debug, or target=level and more of them separated by commas.",
        ),
        ("CREDENTIALS_DIRECTORY", "Where a secret given as credential:NAME is read from; set by systemd."),
    ],
    examples: &[
        ("spoke-control token create --network home", "Make an invitation for one device."),
        ("spoke-control --json node list | jq -r '.items[].id'", "Use the fleet in a script."),
        ("spoke-control backup fleet.backup", "Write the database to a file; the master key is copied apart from it."),
    ],
    related: &[("spoke-control.toml", 5), ("spoke", 1), ("spoke-image", 1)],
};

const IMAGE: Program =
    Program { files: &[], environment: &[], examples: &[], related: &[("spoke", 1), ("spoke-control", 1)] };

/// The sections after those of the parser: all of them on the page of the program, related pages on those of its commands.
pub(crate) fn after(program: &str, command: &Command) -> String {
    let known = match program {
        "spoke" => SPOKE,
        "spoke-control" => CONTROL,
        _ => IMAGE,
    };
    let mut out = String::new();
    if command.get_name() != program {
        let files = known.related.iter().filter(|(_, section)| *section == 5).copied();
        return see_also(&[(program, 1)].into_iter().chain(files).collect::<Vec<_>>());
    }
    for (title, entries) in [("FILES", known.files), ("ENVIRONMENT", known.environment), ("EXAMPLES", known.examples)] {
        if !entries.is_empty() {
            let _ = writeln!(out, ".SH \"{title}\"");
        }
        for (what, purpose) in entries {
            let _ = writeln!(out, ".TP\n{}\n{}", bold(what), escape(purpose));
        }
    }
    out + &see_also(known.related)
}

/// The section of related pages.
pub(crate) fn see_also(pages: &[(&str, u8)]) -> String {
    let pages: Vec<String> = pages.iter().map(|(name, section)| format!("{}({section})", bold(name))).collect();
    format!(".SH \"SEE ALSO\"\n{}\n", pages.join(", "))
}

pub(crate) fn bold(text: &str) -> String {
    format!("\\fB{}\\fR", escape(text))
}

/// For roff(7): a backslash, a hyphen that is to be copied, and a request at the beginning of a line.
pub(crate) fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}
