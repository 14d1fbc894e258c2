//! Gives the build its time: the clock of a device never goes below it.
//!
//! Reproducible: `SOURCE_DATE_EPOCH` if it is set, else the time of the commit, else (a source archive without git) a day in
//! the past that is good enough as a lower bound. The machine's clock is never asked.
use std::process::Command;

/// 2026-01-01T00:00:00Z, before the first line of this program.
const LOWER_BOUND: u64 = 1_767_225_600;

fn main() {
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    // Not at every commit: a lower bound that is some commits old is still one, and a clean build has it exact.
    println!("cargo::rerun-if-changed=build.rs");
    let time = given().or_else(commit).unwrap_or(LOWER_BOUND).max(LOWER_BOUND);
    println!("cargo::rustc-env=SPOKE_BUILD_TIME={time}");
}

fn given() -> Option<u64> {
    std::env::var("SOURCE_DATE_EPOCH").ok()?.trim().parse().ok()
}

fn commit() -> Option<u64> {
    let dir = std::env::var_os("CARGO_MANIFEST_DIR")?;
    let said = Command::new("git").arg("-C").arg(dir).args(["log", "-1", "--format=%ct"]).output().ok()?;
    String::from_utf8(said.stdout).ok()?.trim().parse().ok()
}
