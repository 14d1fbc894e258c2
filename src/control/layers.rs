//! The direction inside this crate, held by a table: which module may use which, no circle of files, and no runtime,
//! database or web framework in the pure ones.
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What each module of the crate may use of the others. A module comes after all that it uses, so there is no circle.
const EDGES: [(&str, &[&str]); 20] = [
    ("clock", &[]),
    ("ipam", &[]),
    ("limits", &[]),
    ("selector", &[]),
    ("version", &[]),
    ("connections", &[]),
    ("proxies", &[]),
    ("config", &["limits", "proxies"]),
    ("tls", &[]),
    ("store", &["ipam", "selector", "version"]),
    ("signing", &["store"]),
    ("duplicate", &["store"]),
    ("report_queue", &["duplicate", "store"]),
    ("nonce_queue", &["store"]),
    ("chain", &["clock", "store"]),
    ("registry", &["ipam", "selector", "store"]),
    (
        "api",
        &[
            "clock",
            "limits",
            "selector",
            "version",
            "connections",
            "store",
            "signing",
            "report_queue",
            "nonce_queue",
            "chain",
            "registry",
        ],
    ),
    ("server", &["limits", "connections", "proxies"]),
    ("metrics", &["clock", "store", "api"]),
    (
        "cli",
        &[
            "clock",
            "limits",
            "selector",
            "config",
            "tls",
            "store",
            "signing",
            "report_queue",
            "nonce_queue",
            "chain",
            "registry",
            "api",
            "server",
            "metrics",
        ],
    ),
];

/// Files that decide and do nothing.
const PURE: [&str; 12] = [
    "api/error_code.rs",
    "connections.rs",
    "ipam.rs",
    "limits.rs",
    "proxies.rs",
    "registry/decide.rs",
    "registry/network_change.rs",
    "registry/node_change.rs",
    "selector.rs",
    "store/precondition.rs",
    "store/probe.rs",
    "version.rs",
];

/// What gives a file an effect. `store/probe.rs` uses tokio's synchronisation and clock only.
const EFFECTS: [&str; 8] = ["async", "tokio::net", "tokio::spawn", "sqlx", "axum", "Store", "Tx", "std::fs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Every source file by its path below the crate.
fn sources() -> BTreeMap<String, String> {
    fn walk(dir: &Path, out: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                out.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(&root(), &mut out);
    out
}

/// The code of a file without comments and unit tests.
fn code(text: &str) -> String {
    let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
    shipped.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn identifiers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty())
}

/// The names of `use PREFIX…` and `PREFIX…` paths: the first segment of each, also inside of braces.
fn used(text: &str, prefix: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in text.split(prefix).skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => {
                let (mut depth, mut top) = (0, String::new());
                for c in group.chars() {
                    depth += match c {
                        '{' => 1,
                        '}' => -1,
                        _ => 0,
                    };
                    match depth {
                        ..0 => break,
                        0 => top.push(c),
                        _ => {}
                    }
                }
                found.extend(top.split(',').filter_map(|item| identifiers(item).next()).map(str::to_owned));
            }
            None => found.extend(identifiers(rest).next().map(str::to_owned)),
        }
    }
    found
}

/// The module of the crate that a file belongs to; `None`: the crate's root, its binary and this test.
fn module(file: &str) -> Option<&str> {
    let name = file.split(['/', '.']).next().unwrap();
    (!matches!(name, "lib" | "bin" | "layers")).then_some(name)
}

#[test]
fn modules_point_downward() {
    let mut seen = BTreeSet::new();
    for (name, allowed) in EDGES {
        assert!(allowed.iter().all(|a| seen.contains(a)), "{name} is listed before something it uses");
        seen.insert(name);
    }
    let mut uses: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let sources = sources();
    for (file, text) in &sources {
        let Some(name) = module(file) else { continue };
        assert!(seen.contains(name), "{file}: its module has no row in the table of edges");
        let code = code(text);
        assert!(file.contains('/') || !code.contains("super::"), "{file}: write crate:: instead of super::");
        uses.entry(name).or_default().extend(used(&code, "crate::"));
    }
    for (name, allowed) in EDGES {
        let uses = &uses[name];
        let extra: Vec<_> =
            uses.iter().filter(|u| seen.contains(u.as_str()) && *u != name && !allowed.contains(&u.as_str())).collect();
        assert!(extra.is_empty(), "{name} may not use {extra:?}");
        let unused: Vec<_> = allowed.iter().filter(|a| !uses.contains(**a)).collect();
        assert!(unused.is_empty(), "{name} does not use {unused:?}: take it out of the table");
    }
}

#[test]
fn files_of_a_module_have_no_circle() {
    let sources = sources();
    for module in ["store", "registry", "api"] {
        let mut uses: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for (file, text) in &sources {
            let Some(name) = file.strip_prefix(module).and_then(|f| f.strip_prefix('/')) else { continue };
            let name = name.trim_end_matches(".rs");
            uses.insert(name, used(&code(text), "super::"));
        }
        // Files that use nothing of the rest leave, until none can: what is left is a circle.
        while !uses.is_empty() {
            let free: Vec<&str> = uses
                .iter()
                .filter(|(name, of)| of.iter().all(|u| u == *name || !uses.contains_key(u.as_str())))
                .map(|(name, _)| *name)
                .collect();
            assert!(!free.is_empty(), "{module}: a circle among {uses:?}");
            uses.retain(|name, _| !free.contains(name));
        }
    }
}

#[test]
fn pure_files_have_no_effects() {
    let sources = sources();
    for file in PURE {
        let code = code(&sources[file]);
        let words: BTreeSet<&str> = identifiers(&code).collect();
        let found: Vec<_> = EFFECTS
            .iter()
            .filter(|e| if e.contains("::") { code.contains(**e) } else { words.contains(**e) })
            .collect();
        assert!(found.is_empty(), "{file} is pure and has {found:?}");
    }
}
