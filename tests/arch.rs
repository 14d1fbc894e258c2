//! The architecture: dependencies between crates by `cargo metadata`, what pure crates and the device must not depend on, files
//! without circles, a doc comment at the head of every file, and the tests that docs/faults.md names.
#![allow(clippy::unwrap_used, clippy::panic)]
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Allowed dependencies between our crates; see `docs/architecture.md`.
const EDGES: [(&str, &[&str]); 16] = [
    ("model", &[]),
    ("config", &["model"]),
    ("net", &["model", "config"]),
    ("update", &["model", "config"]),
    ("uplink", &["model", "config", "net"]),
    ("grants", &["model", "config", "net"]),
    ("enroll", &["model", "config", "net", "update"]),
    ("change", &["model", "config", "net"]),
    ("api", &["model", "config", "net", "update", "uplink", "grants", "enroll", "change"]),
    ("sys", &["model", "config", "net", "update", "uplink", "grants", "enroll", "api"]),
    ("chain", &["model", "config", "net", "grants", "sys"]),
    ("command", &[]),
    (
        "node",
        &["model", "config", "net", "update", "uplink", "grants", "enroll", "change", "api", "sys", "chain", "command"],
    ),
    ("imager", &["model", "config", "update", "sys", "command"]),
    ("control", &["model", "config", "grants", "enroll", "api", "sys", "chain", "command"]),
    ("manuals", &["node", "imager", "control", "command"]),
];

/// Crates without effects: no clock, thread, file or socket. `config` reads the file it is given.
const PURE: [&str; 9] = ["model", "config", "net", "update", "uplink", "grants", "enroll", "change", "api"];

/// Crates with effects.
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

/// Databases: half a megabyte, and a parser of foreign input on the device.
const SQL: [&str; 7] = ["sqlx", "sqlx-core", "libsqlite3-sys", "rusqlite", "tokio-postgres", "postgres", "diesel"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The dependency graph of the workspace.
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
        self.names.iter().find(|(_, n)| *n == name).unwrap_or_else(|| panic!("no package {name}")).0
    }

    /// Names of the direct dependencies of `name`.
    fn direct(&self, name: &str) -> BTreeSet<&str> {
        self.needs[self.id(name)].iter().map(|id| self.names[id].as_str()).collect()
    }

    /// Names of all dependencies of `name`, itself included.
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
    assert_eq!(ours, listed, "crates of the workspace and rows of EDGES");
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
fn pure_crates_have_no_effects() {
    let graph = Graph::read();
    for name in PURE {
        let all = graph.all(&format!("spoke-{name}"));
        let found: Vec<_> = EFFECTS.iter().filter(|e| all.contains(**e)).collect();
        assert!(found.is_empty(), "src/{name} is pure and depends on {found:?}");
    }
    // Control: the query finds them in a crate that has them.
    assert!(graph.all("spoke-sys").contains("tokio"));
}

#[test]
fn a_device_links_no_sql() {
    let graph = Graph::read();
    for name in ["spoke-node", "spoke-imager"] {
        let all = graph.all(name);
        let found: Vec<_> = SQL.iter().filter(|s| all.contains(**s)).collect();
        assert!(found.is_empty(), "{name} depends on {found:?}");
    }
    assert!(graph.all("spoke-control").contains("sqlx"));
}

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

/// The files of a crate by module path, and the modules whose items each names outside its tests.
fn file_graph(dir: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut files = Vec::new();
    sources(dir, &mut files);
    files.retain(|f| !f.strip_prefix(dir).unwrap().display().to_string().contains("tests"));
    let module = |file: &Path| {
        let name = file.strip_prefix(dir).unwrap().with_extension("").display().to_string().replace('/', "::");
        if name == "lib" { String::new() } else { name }
    };
    let modules: BTreeSet<String> = files.iter().map(|f| module(f)).collect();
    let mut graph = BTreeMap::new();
    for file in &files {
        let own = module(file);
        let text = std::fs::read_to_string(file).unwrap();
        let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let code: Vec<&str> = product.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
        let mut named = BTreeSet::new();
        for path in paths(&code.join("\n")) {
            let mut segments: Vec<&str> = own.split("::").filter(|s| !s.is_empty()).collect();
            for segment in path.split("::") {
                match segment {
                    "crate" => segments.clear(),
                    "super" => drop(segments.pop()),
                    other => segments.push(other),
                }
            }
            while !segments.is_empty() && !modules.contains(&segments.join("::")) {
                segments.pop();
            }
            named.insert(segments.join("::"));
        }
        named.remove(&own);
        graph.insert(own, named);
    }
    graph
}

/// Every `crate::…` and `super::…` path in the code, groups in braces taken apart.
fn paths(code: &str) -> Vec<String> {
    fn word(c: char) -> bool {
        c.is_ascii_alphanumeric() || c == '_' || c == ':'
    }
    let mut found = Vec::new();
    for start in ["crate::", "super::"].iter().flat_map(|s| code.match_indices(s)).map(|(at, _)| at) {
        if code[..start].ends_with(word) {
            continue;
        }
        let rest = &code[start..];
        let head = &rest[..rest.find(|c| !word(c)).unwrap_or(rest.len())];
        match rest[head.len()..].strip_prefix('{').filter(|_| head.ends_with("::")) {
            None => found.push(head.trim_end_matches(':').to_owned()),
            Some(group) => {
                let group = &group[..group.find(';').unwrap_or(0)];
                found.extend(group.split([',', '{', '}']).map(|item| {
                    let item = item.trim();
                    format!("{head}{}", item[..item.find(|c| !word(c)).unwrap_or(item.len())].trim_end_matches(':'))
                }));
            }
        }
    }
    found
}

#[test]
fn files_form_no_circle() {
    for (name, _) in EDGES {
        let mut graph = file_graph(&root().join("src").join(name));
        // Removes the files that name no remaining file until none is left to remove: a circle remains, and what is above it.
        loop {
            let left: BTreeSet<String> = graph.keys().cloned().collect();
            graph.retain(|_, named| named.iter().any(|n| left.contains(n)));
            if graph.len() == left.len() {
                break;
            }
        }
        assert!(graph.is_empty(), "files of src/{name} in a circle, or above one: {graph:#?}");
    }
}

#[test]
fn paths_are_found_in_uses_and_in_code() {
    let found = paths("use crate::a::{b, c::{D, E}};\nuse super::f;\nlet x = crate::g::h(); spoke_crate::no::x();");
    for path in ["crate::a::b", "crate::a::c", "crate::g::h", "super::f"] {
        assert!(found.iter().any(|f| f == path), "{path} in {found:?}");
    }
    assert!(!found.iter().any(|f| f.contains("no")), "{found:?}");
}

#[test]
fn every_file_has_a_doc_comment() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    assert!(files.len() > 200, "sources not found");
    let without: Vec<_> = files.iter().filter(|f| !std::fs::read_to_string(f).unwrap().starts_with("//! ")).collect();
    assert!(without.is_empty(), "files without a doc comment: {without:?}");
}

/// `writeln!` to a `String` would not escape what others have sent; `spoke_command::text::Lines` does.
#[test]
fn commands_of_the_device_print_escaped_lines() {
    let mut files = Vec::new();
    sources(&root().join("src/node/cli"), &mut files);
    sources(&root().join("src/node/doctor"), &mut files);
    assert!(files.len() > 15, "sources not found");
    let raw: Vec<_> =
        files.iter().filter(|f| std::fs::read_to_string(f).unwrap().contains("use std::fmt::Write")).collect();
    assert!(raw.is_empty(), "write these tables with Lines: {raw:?}");
}

/// The tests named in docs/faults.md: the code spans of the fourth column, without a path before and arguments behind.
fn tests_of_faults(page: &str) -> Vec<String> {
    let rows = page.lines().filter(|l| l.starts_with("| ")).skip(1);
    let spans = rows.flat_map(|l| l.split('|').nth(4).unwrap_or_default().split('`').skip(1).step_by(2));
    spans
        .map(|s| s.split(' ').next().unwrap_or(s).rsplit("::").next().unwrap_or(s).trim_end_matches('…').to_owned())
        .collect()
}

#[test]
fn faults_name_tests_that_exist() {
    let mut all = String::new();
    let mut dirs = vec![root().join("src"), root().join("tests"), root().join("scripts")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                // The name of a file counts as well: a scenario is a file of its own.
                all.push_str(&path.display().to_string());
                all.push_str(&std::fs::read_to_string(&path).unwrap_or_default());
            }
        }
    }
    let named = tests_of_faults(&std::fs::read_to_string(root().join("docs/faults.md")).unwrap());
    assert!(named.len() > 100, "the table was not found");
    let missing: Vec<_> = named.iter().filter(|n| !all.contains(n.as_str())).collect();
    assert!(missing.is_empty(), "docs/faults.md names tests that are not there: {missing:?}");
}

/// Sleeps that are not on the boot clock and whose length is no constant of at most [`SHORT`]: file, argument, and why it is short.
const OTHER_SLEEPS: [(&str, &str, &str); 4] = [
    ("sys/clock.rs", "wait", "without a descriptor for a timer"),
    ("sys/fetch.rs", "end.since(SystemClock.now()).min(STEP)", "steps of two seconds"),
    ("sys/connect.rs", "began + next.unwrap_or_default()", "the connection attempt delay of RFC 8305, 250 ms"),
    ("sys/http_server/stalling.rs", "Instant::now() + limit", "bounds a read that a client stalls"),
];

/// Longest sleep on CLOCK_MONOTONIC, which stands still in suspend; a longer one is `Clock::sleep`.
const SHORT: u64 = 5_000;

/// Milliseconds of `Duration::from_secs(N)` or `Duration::from_millis(N)`, directly or by a constant of the same file.
fn milliseconds(argument: &str, code: &str) -> Option<u64> {
    let direct = |text: &str| {
        let number = |unit: &str| text.split_once(unit)?.1.split_once(')')?.0.replace('_', "").parse::<u64>().ok();
        number("Duration::from_millis(").or_else(|| number("Duration::from_secs(").map(|s| s * 1_000))
    };
    direct(argument).or_else(|| {
        let constant = code.lines().find(|l| l.contains(&format!("const {argument}: Duration")))?;
        direct(constant)
    })
}

/// The arguments of calls of `sleep` and `sleep_until` that are not a clock's own.
fn sleeps(code: &str) -> Vec<&str> {
    let starts = code.match_indices("sleep(").chain(code.match_indices("sleep_until(")).filter_map(|(at, call)| {
        let before = &code[..at];
        let of_a_clock = ["lock.", "Clock.", "self.", "fn "].iter().any(|b| before.ends_with(b));
        let word = before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '&');
        (!of_a_clock && !word).then_some(at + call.len())
    });
    starts
        .map(|at| {
            let mut depth = 1;
            let end = code[at..].find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                depth == 0
            });
            &code[at..at + end.unwrap_or_default()]
        })
        .collect()
}

#[test]
fn long_waits_are_on_the_boot_clock() {
    let mut used = BTreeSet::new();
    for room in ["node", "sys", "chain"] {
        let top = root().join("src").join(room);
        let mut files = Vec::new();
        sources(&top, &mut files);
        for file in files {
            let name = file.strip_prefix(root().join("src")).unwrap().display().to_string();
            if name.contains("/tests") || name.contains("/sim") {
                continue;
            }
            let text = std::fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            // Those that take a clock are on it.
            for argument in sleeps(code).into_iter().filter(|a| !a.starts_with("&self.clock")) {
                let known = OTHER_SLEEPS.iter().position(|(f, a, _)| *f == name && *a == argument);
                used.extend(known);
                let short = milliseconds(argument, code).is_some_and(|ms| ms <= SHORT);
                assert!(
                    known.is_some() || short,
                    "{name}: sleep({argument}): take Clock::sleep, which goes on in suspend"
                );
            }
        }
    }
    assert_eq!(used.len(), OTHER_SLEEPS.len(), "an exception that is not needed");
}

#[test]
fn sleeps_are_found() {
    let code = "const A: Duration = Duration::from_secs(6);\ntokio::time::sleep(A).await; clock.sleep(x).await; sleep(f(1)).await;";
    assert_eq!(sleeps(code), ["A", "f(1)"]);
    assert_eq!((milliseconds("A", code), milliseconds("Duration::from_millis(1_500)", "")), (Some(6_000), Some(1_500)));
}
