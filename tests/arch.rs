//! The architecture as a test: a file's place is its layer, and a layer may only do what is its own.
#![allow(clippy::unwrap_used)]
use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|x| x == "rs") {
            out.push(path);
        }
    }
}

/// (path below `src`, code lines outside of comments and of the test module, numbered).
fn code() -> Vec<(String, Vec<(usize, String)>)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 10, "the sources are read");
    files
        .iter()
        .map(|f| {
            let text = fs::read_to_string(f).unwrap();
            let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let lines = product
                .lines()
                .enumerate()
                .filter(|(_, l)| !l.trim_start().starts_with("//"))
                .map(|(n, l)| (n + 1, l.to_owned()))
                .collect();
            (f.strip_prefix(&src).unwrap().display().to_string(), lines)
        })
        .filter(|(name, _)| !name.ends_with("tests.rs") && !name.contains("/tests/"))
        .collect()
}

fn is_wiring(name: &str) -> bool {
    name.starts_with("bin/") || name.starts_with("cli/") || matches!(name, "cli.rs" | "supervise.rs")
}

fn is_task(name: &str) -> bool {
    name.ends_with("task.rs")
}

fn is_effect(name: &str) -> bool {
    name.starts_with("sys/")
        || matches!(name, "sys.rs" | "sim.rs")
        || name.starts_with("sim/")
        // The control plane is a server: its own pure files are listed in `control_pure`.
        || (name.starts_with("control") && !control_pure(name))
}

/// The decisions of the control plane, as pure as those of the device.
fn control_pure(name: &str) -> bool {
    name.starts_with("control/ipam")
        || (name.starts_with("control/drift") && !is_task(name))
        || (name.starts_with("control/migrate") && !is_task(name))
}

fn offences(files: impl Fn(&str) -> bool, words: &[&str]) -> Vec<String> {
    let mut bad = Vec::new();
    for (name, lines) in code().iter().filter(|(name, _)| files(name)) {
        for (n, line) in lines {
            if let Some(word) = words.iter().find(|w| line.contains(**w)) {
                bad.push(format!("src/{name}:{n}: `{word}`: {}", line.trim()));
            }
        }
    }
    bad
}

#[test]
fn decisions_do_not_touch_the_world() {
    let words = [
        "tokio::",
        "std::fs",
        "std::env",
        "std::process",
        "std::thread",
        "TcpStream",
        "UdpSocket",
        "UnixStream",
        "TcpListener",
        "Instant::now",
        "SystemTime",
        "clock_gettime",
        "rtnetlink",
        "netlink_",
        "ureq",
        "rustix::",
        "sqlx",
        "hyper",
        "async fn",
        ".await",
        "crate::sys",
        "getrandom",
    ];
    // `config.rs` reads the file it is given: the one pure file that may, since nothing runs before it.
    let bad = offences(|n| !is_wiring(n) && !is_task(n) && !is_effect(n) && n != "config.rs", &words);
    assert!(bad.is_empty(), "pure files must stay pure:\n{}", bad.join("\n"));
}

#[test]
fn tasks_reach_the_world_only_through_seams() {
    let words = [
        "std::fs",
        "std::process",
        "TcpStream",
        "UdpSocket",
        "Instant::now",
        "SystemTime",
        "rtnetlink",
        "netlink_",
        "ureq",
        "sqlx",
    ];
    let bad = offences(|n| is_task(n) && !n.starts_with("control/"), &words);
    assert!(bad.is_empty(), "tasks go through sys:\n{}", bad.join("\n"));
}

#[test]
fn netlink_http_and_sql_types_stay_in_their_seams() {
    let netlink = ["rtnetlink", "netlink_packet", "netlink_sys"];
    let bad = offences(|n| !n.starts_with("sys/"), &netlink);
    assert!(bad.is_empty(), "netlink types stay in sys:\n{}", bad.join("\n"));
    let bad = offences(|n| !n.starts_with("sys/") && !n.starts_with("control/"), &["ureq::", "sqlx::", "axum::"]);
    assert!(bad.is_empty(), "HTTP and SQL types stay in their seams:\n{}", bad.join("\n"));
}

#[test]
fn the_device_builds_for_routers_without_64_bit_atomics() {
    // 32-bit MIPS has none: a Mutex, or AtomicUsize for a count.
    let bad = offences(|n| !n.starts_with("control") && !n.starts_with("sim"), &["AtomicU64", "AtomicI64"]);
    assert!(bad.is_empty(), "no such atomics on 32-bit MIPS:\n{}", bad.join("\n"));
}

#[test]
fn effects_and_decisions_do_not_know_the_wiring() {
    let bad = offences(|n| !is_wiring(n) && !n.starts_with("control"), &["crate::cli", "crate::supervise"]);
    assert!(bad.is_empty(), "imports go downward:\n{}", bad.join("\n"));
    let bad = offences(|n| !n.starts_with("control") && !n.starts_with("bin/") && n != "lib.rs", &["crate::control"]);
    assert!(bad.is_empty(), "the device does not know the control plane's code:\n{}", bad.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let silent: Vec<_> = files.iter().filter(|f| !fs::read_to_string(f).unwrap().starts_with("//! ")).collect();
    assert!(silent.is_empty(), "files without an opening sentence: {silent:?}");
}
