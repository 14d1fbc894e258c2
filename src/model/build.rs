//! Sets the build time: the lower bound of a device's clock.
//!
//! Reproducible: `SOURCE_DATE_EPOCH`, else the time of the commit, else (a source archive without git) a constant. The
//! machine's clock is not read.
use std::process::Command;

/// 2026-01-01T00:00:00Z.
const LOWER_BOUND: u64 = 1_767_225_600;

fn main() {
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    // Not at every commit: an older time is still a lower bound, and a clean build is exact.
    println!("cargo::rerun-if-changed=build.rs");
    let time = given().or_else(commit).unwrap_or(LOWER_BOUND).max(LOWER_BOUND);
    println!("cargo::rustc-env=SPOKE_BUILD_TIME={time}");
}

fn given() -> Option<u64> {
    std::env::var("SOURCE_DATE_EPOCH").ok()?.trim().parse().ok()
}

fn commit() -> Option<u64> {
    let dir = std::env::var_os("CARGO_MANIFEST_DIR")?;
    let output = Command::new("git").arg("-C").arg(dir).args(["log", "-1", "--format=%ct"]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}
