//! A kernel without WireGuard: what is said where the tunnel cannot come up at all. `scripts/test-kernel` boots one for it.
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
fn without_wireguard_it_says_what_to_load() {
    assert!(std::env::var_os("SPOKE_TEST_KERNEL_KIND").is_some(), "not in a test kernel: run scripts/test-kernel");
    let plain = Command::new("ip").args(["link", "add", "wg7", "type", "wireguard"]).output().expect("ip");
    assert!(
        !plain.status.success(),
        "this kernel has WireGuard: run scripts/test-kernel, which boots one that has not"
    );
    let dir = tempfile::tempdir().expect("a directory");
    let (code, said) = spoke(dir.path(), "run");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("this kernel has no WireGuard") && said.contains("modprobe wireguard"), "{said}");

    let (code, said) = spoke(dir.path(), "doctor --json");
    assert_eq!(code, Some(1), "{said}");
    let findings: Vec<serde_json::Value> = serde_json::from_str(&said).expect("JSON");
    let found = findings.iter().find(|f| f["what"] == "WireGuard").expect("it is looked at");
    assert_eq!(found["level"], "fail", "{found}");
    assert!(found["remedy"].as_str().is_some_and(|r| r.contains("kernel")), "{found}");

    // What can be said without it is said.
    let (code, said) = spoke(dir.path(), "plan");
    assert!(code == Some(0) && said.contains("wg0: create interface"), "{said}");
}
