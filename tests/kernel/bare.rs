//! Errors and their remedies on a kernel without WireGuard, which `scripts/test-kernel` boots.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
use std::process::{Command, Output};

const SPOKE: &str = env!("CARGO_BIN_EXE_spoke");

fn spoke(dir: &std::path::Path, arguments: &str) -> (Option<i32>, String) {
    let d = dir.display();
    let text = format!(
        "[node]\nstate_dir = \"{d}/state\"\nruntime_dir = \"{d}/run\"\n[[interface]]\nname = \"wg0\"\n[health]\nenabled = false\n"
    );
    let file = dir.join("spoke.toml");
    std::fs::write(&file, text).expect("the configuration");
    let Output { status, stdout, stderr } =
        Command::new(SPOKE).arg("--config").arg(file).args(arguments.split(' ')).output().expect("it runs");
    (status.code(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
}

#[test]
fn missing_wireguard_is_named_with_its_remedy() {
    assert!(std::env::var_os("SPOKE_TEST_KERNEL_KIND").is_some(), "not in a test kernel: run scripts/test-kernel");
    let plain = Command::new("ip").args(["link", "add", "wg7", "type", "wireguard"]).output().expect("ip");
    assert!(!plain.status.success(), "this kernel has WireGuard: run scripts/test-kernel, which boots one without");
    let dir = tempfile::tempdir().expect("a directory");
    let (code, printed) = spoke(dir.path(), "run");
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("this kernel has no WireGuard") && printed.contains("modprobe wireguard"), "{printed}");

    let (code, printed) = spoke(dir.path(), "doctor --json");
    assert_eq!(code, Some(1), "{printed}");
    let findings: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
    let found =
        findings["items"].as_array().expect("a list").iter().find(|f| f["what"] == "WireGuard").expect("a finding");
    assert_eq!(found["level"], "fail", "{found}");
    assert!(found["remedy"].as_str().is_some_and(|r| r.contains("kernel")), "{found}");

    // Planning does not need it.
    let (code, printed) = spoke(dir.path(), "plan");
    assert!(code == Some(0) && printed.contains("wg0: create interface"), "{printed}");
}
