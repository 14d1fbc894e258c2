//! `spoke clock`: sets a clock that is behind to its lower bound, or shows its state.
use crate::clock::{floor, has_jumped, restore};
use crate::config_file::state_directory;
use anyhow::Context as _;
use spoke_command::Outcome;
use spoke_model::clock::{Reading, assess};
use spoke_model::log_text::Word;
use spoke_sys::clock::{Clock as _, SystemClock, boot_id, synchronised};
use std::path::Path;

/// `spoke clock …`.
#[derive(Clone, Copy, Debug, clap::Subcommand)]
pub enum Command {
    /// Set a clock that is behind the last stamp or this build to the later of the two (needs CAP_SYS_TIME)
    Restore,
    /// Show the clock, below what it never goes, and whether it is believed
    Show,
}

/// Runs it.
pub fn run(command: Command, config: &Path, json: bool) -> Outcome {
    // Also of a faulty configuration: the clock must be restored nevertheless.
    let state_dir = state_directory(config);
    match command {
        Command::Restore => {
            let done = restore(&state_dir)
                .context("cannot set the clock: run as root, or by spoke-clock.service, which has CAP_SYS_TIME")?;
            let done = done.to_string();
            super::answer(json, &[("result", &done)], &format!("{done}\n"))
        }
        Command::Show => show(&state_dir, json),
    }
}

fn show(state_dir: &Path, json: bool) -> Outcome {
    let (floor, _) = floor(state_dir);
    let boot = boot_id().unwrap_or_default();
    let (now, wall) = (SystemClock.now(), SystemClock.wall());
    let jumped = has_jumped(state_dir, now, wall, &floor);
    let reading = Reading { now, wall, boot: &boot, synchronised: synchronised(), confirmed: None, jumped };
    let (believed, reason) = match assess(reading, &floor) {
        Ok((_, source)) => ("yes", Word(&source).to_string()),
        Err(doubt) => ("no", Word(&doubt).to_string()),
    };
    let stamp = floor.stamp.as_ref().map_or_else(|| "none".to_owned(), |s| s.wall.to_string());
    let (clock, build) = (wall.to_string(), floor.build.to_string());
    let values =
        [("clock", clock.as_str()), ("build", &build), ("stamp", &stamp), ("believed", believed), ("reason", &reason)];
    let text = format!("clock    {clock}\nbuild    {build}\nstamp    {stamp}\nbelieved {believed} ({reason})\n");
    super::answer(json, &values, &text)
}
