//! The command line of `spoke-image`: exit codes and messages for bad input.
#![allow(clippy::unwrap_used)]
use std::process::{Command, Output};

fn spoke_image(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spoke-image")).args(args).output().unwrap()
}

#[test]
fn bad_input_exits_with_2_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("disk.img");
    std::fs::write(&empty, [0; 4096]).unwrap();
    let out = spoke_image(&["inspect", empty.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("disk.img"), "{out:?}");
    assert_eq!(spoke_image(&["no-such-command"]).status.code(), Some(2));
    assert_eq!(spoke_image(&["--version"]).status.code(), Some(0));
}

#[test]
fn settings_with_faults_are_refused_before_the_disk_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, settings) = (dir.path().join("disk.img"), dir.path().join("spoke.toml"));
    std::fs::write(&disk, [0; 4096]).unwrap();
    std::fs::write(&settings, "[node]\nstate_dri = \"/x\"\n").unwrap();
    let out = spoke_image(&["provision", disk.to_str().unwrap(), settings.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("state_dri"), "{out:?}");
}
