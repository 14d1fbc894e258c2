//! What other programs of the field make of our output: `promtool` and wireguard-tools. Run by scripts/test-host, which
//! installs them.
#![allow(clippy::unwrap_used, clippy::panic)]
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

#[path = "monitoring/metrics.rs"]
mod monitoring;

fn run(program: &str, args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program} is missing ({e}): run scripts/test-host, which installs it"));
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn public_keys_are_those_of_wireguard_tools() {
    let spoke = env!("CARGO_BIN_EXE_spoke");
    let private = run(spoke, &["key", "generate"], "");
    let ours = run(spoke, &["key", "public"], text(&private.stdout));
    let theirs = run("wg", &["pubkey"], text(&private.stdout));
    assert!(ours.status.success() && theirs.status.success(), "{ours:?} {theirs:?}");
    assert_eq!(text(&ours.stdout), text(&theirs.stdout));
}
