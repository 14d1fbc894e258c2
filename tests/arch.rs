//! The architecture as a test over `cargo metadata`: which crate may depend on which, what the pure ones and the device never
//! link, and that every file says what it is for.
#![allow(clippy::unwrap_used, clippy::panic)]
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What each crate may depend on, of ours. `docs/architecture.md` draws it.
const EDGES: [(&str, &[&str]); 16] = [
    ("model", &[]),
    ("config", &["model"]),
    ("net", &["model", "config"]),
    ("update", &["model", "config"]),
    ("uplink", &["model", "config", "net"]),
    ("grants", &["model", "config", "net"]),
    ("enroll", &["model", "config", "net", "update"]),
    ("change", &["model", "config", "net"]),
    ("api", &["model", "config", "net", "update", "grants", "change"]),
    ("sys", &["model", "config", "net", "update", "uplink", "grants", "enroll", "api"]),
    ("chain", &["model", "config", "net", "grants", "sys"]),
    ("command", &[]),
    (
        "node",
        &["model", "config", "net", "update", "uplink", "grants", "enroll", "change", "api", "sys", "chain", "command"],
    ),
    ("imager", &["model", "config", "update", "sys", "command"]),
    ("control", &["model", "config", "grants", "enroll", "sys", "chain", "command"]),
    ("manuals", &["node", "imager", "control", "command"]),
];

/// Crates that decide and do nothing: no clock, no thread, no file, no socket. `config` reads the one file it is given.
const PURE: [&str; 9] = ["model", "config", "net", "update", "uplink", "grants", "enroll", "change", "api"];

/// What would give a pure crate an effect.
const EFFECTS: [&str; 16] = [
    "tokio",
    "mio",
    "hyper",
    "hyper-util",
    "axum",
    "tower",
    "ureq",
    "rustls",
    "rustix",
    "nix",
    "rtnetlink",
    "netlink-sys",
    "netlink-packet-core",
    "socket2",
    "sqlx",
    "sqlx-core",
];

/// Databases: half a megabyte and a parser of foreign input, which no device carries.
const SQL: [&str; 7] = ["sqlx", "sqlx-core", "libsqlite3-sys", "rusqlite", "tokio-postgres", "postgres", "diesel"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The packages of the workspace and all they are built with, from cargo itself.
struct Graph {
    /// Package id to name.
    names: BTreeMap<String, String>,
    /// Package id to the ids of its dependencies in a build without tests.
    needs: BTreeMap<String, Vec<String>>,
}

impl Graph {
    fn read() -> Self {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let out =
            Command::new(cargo).args(["metadata", "--format-version", "1", "--locked"]).current_dir(root()).output();
        let out = out.unwrap();
        assert!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
        let data: Value = serde_json::from_slice(&out.stdout).unwrap();
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let names = data["packages"].as_array().unwrap().iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
        let shipped = |dep: &Value| dep["dep_kinds"].as_array().unwrap().iter().any(|k| k["kind"].is_null());
        let needs = data["resolve"]["nodes"].as_array().unwrap().iter();
        let needs = needs.map(|n| {
            let deps = n["deps"].as_array().unwrap().iter().filter(|d| shipped(d)).map(|d| text(&d["pkg"])).collect();
            (text(&n["id"]), deps)
        });
        Self { names, needs: needs.collect() }
    }

    fn id(&self, name: &str) -> &str {
        self.names.iter().find(|(_, n)| *n == name).unwrap_or_else(|| panic!("there is no package {name}")).0
    }

    /// Names of what `name` depends on directly.
    fn direct(&self, name: &str) -> BTreeSet<&str> {
        self.needs[self.id(name)].iter().map(|id| self.names[id].as_str()).collect()
    }

    /// Names of everything `name` is built with.
    fn all(&self, name: &str) -> BTreeSet<&str> {
        let (mut seen, mut next) = (BTreeSet::new(), vec![self.id(name)]);
        while let Some(id) = next.pop() {
            if seen.insert(id) {
                next.extend(self.needs[id].iter().map(String::as_str));
            }
        }
        seen.iter().map(|id| self.names[*id].as_str()).collect()
    }
}

#[test]
fn dependencies_point_downward() {
    let graph = Graph::read();
    let ours: BTreeSet<&str> = graph.names.values().filter_map(|n| n.strip_prefix("spoke-")).collect();
    let listed: BTreeSet<&str> = EDGES.iter().map(|(name, _)| *name).chain(["tests"]).collect();
    assert_eq!(ours, listed, "every crate of the workspace has a row in the table of edges");
    for (name, allowed) in EDGES {
        let direct = graph.direct(&format!("spoke-{name}"));
        let direct: BTreeSet<&str> = direct.iter().filter_map(|d| d.strip_prefix("spoke-")).collect();
        let extra: Vec<_> = direct.iter().filter(|d| !allowed.contains(d)).collect();
        assert!(extra.is_empty(), "src/{name} may not depend on {extra:?}");
        let unused: Vec<_> = allowed.iter().filter(|d| !direct.contains(*d)).collect();
        assert!(unused.is_empty(), "src/{name} does not depend on {unused:?}: take it out of the table");
    }
}

#[test]
fn pure_crates_are_built_with_nothing_that_acts() {
    let graph = Graph::read();
    for name in PURE {
        let all = graph.all(&format!("spoke-{name}"));
        let found: Vec<_> = EFFECTS.iter().filter(|e| all.contains(**e)).collect();
        assert!(found.is_empty(), "src/{name} is pure and is built with {found:?}");
    }
    // The same question finds them where they belong.
    assert!(graph.all("spoke-sys").contains("tokio"));
}

#[test]
fn a_device_links_no_sql() {
    let graph = Graph::read();
    for name in ["spoke-node", "spoke-imager"] {
        let all = graph.all(name);
        let found: Vec<_> = SQL.iter().filter(|s| all.contains(**s)).collect();
        assert!(found.is_empty(), "{name} is built with {found:?}");
    }
    assert!(graph.all("spoke-control").contains("sqlx"));
}

#[test]
fn every_file_says_what_it_is_for() {
    fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, out);
            } else if path.extension().is_some_and(|x| x == "rs") {
                out.push(path);
            }
        }
    }
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    assert!(files.len() > 200, "the sources are found");
    let without: Vec<_> = files.iter().filter(|f| !std::fs::read_to_string(f).unwrap().starts_with("//! ")).collect();
    assert!(without.is_empty(), "files without an opening sentence: {without:?}");
}
