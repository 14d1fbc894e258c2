//! `spoke clock`: sets a clock that is behind to its lower bound, or shows its state.
use crate::clock::{floor, has_jumped, restore};
use crate::config_file::load;
use anyhow::Context as _;
use spoke_command::{Outcome, print};
use spoke_model::clock::{Reading, assess};
use spoke_sys::clock::{Clock as _, SystemClock, boot_id, synchronised};
use std::path::{Path, PathBuf};

/// `spoke clock …`.
#[derive(Clone, Copy, Debug, clap::Subcommand)]
pub enum Command {
    /// Set a clock that is behind the last stamp or this build to the later of the two (needs CAP_SYS_TIME)
    Restore,
    /// Show the clock, below what it never goes, and whether it is believed
    Show,
}

/// Runs it.
pub fn run(command: Command, config: &Path) -> Outcome {
    let state_dir = state_dir(config);
    match command {
        Command::Restore => {
            let done = restore(&state_dir)
                .context("cannot set the clock: run as root, or by spoke-clock.service, which has CAP_SYS_TIME")?;
            print(&format!("{done}\n"));
        }
        Command::Show => show(&state_dir),
    }
    Ok(())
}

/// The default directory if the configuration is faulty: the clock must be restored nevertheless.
fn state_dir(config: &Path) -> PathBuf {
    load(config).map_or_else(|_| PathBuf::from("/var/lib/spoke"), |c| c.node.state_dir)
}

fn show(state_dir: &Path) {
    let (floor, _) = floor(state_dir);
    let boot = boot_id().unwrap_or_default();
    let (now, wall) = (SystemClock.now(), SystemClock.wall());
    let jumped = has_jumped(state_dir, now, wall, &floor);
    let reading = Reading { now, wall, boot: &boot, synchronised: synchronised(), confirmed: None, jumped };
    let verdict = match assess(reading, &floor) {
        Ok((_, source)) => format!("yes ({source:?})").to_lowercase(),
        Err(doubt) => format!("no ({doubt:?})").to_lowercase(),
    };
    let stamp = floor.stamp.as_ref().map_or_else(|| "none".to_owned(), |s| s.wall.to_string());
    print(&format!("clock    {wall}\nbuild    {}\nstamp    {stamp}\nbelieved {verdict}\n", floor.build));
}
