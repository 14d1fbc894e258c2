//! Arguments and questions shared by the subcommands.
use spoke_command::{Failure, Outcome};
use spoke_model::duration::parse_duration;
use std::io::{IsTerminal as _, Write as _};

/// Seconds of text such as `12h`.
pub(super) fn seconds(text: &str) -> Result<u64, Failure> {
    let bad = || Failure::BadInput(format!("{text:?} is not a duration such as 30s, 12h or 7d"));
    Ok(parse_duration(text).ok_or_else(bad)?.as_secs())
}

/// Asks before something irreversible; without a terminal, `--yes` is required.
pub(super) fn confirm(what: &str, yes: bool) -> Outcome {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::BadInput(format!("{what}: confirm with --yes")));
    }
    let _ = write!(std::io::stderr().lock(), "{what}? Type yes: ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() == "yes" { Ok(()) } else { Err(Failure::BadInput("nothing was done".into())) }
}
