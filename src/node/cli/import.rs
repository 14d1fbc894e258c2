//! `spoke import`: a file of `wg-quick` becomes a configuration and key files.
use crate::config_file::variables;
use crate::wg_quick::convert;
use spoke_command::text::Lines;
use spoke_command::{Failure, Outcome, print};
use spoke_config::Config;
use spoke_model::interface_name::IfName;
use spoke_model::tree::Tree;
use spoke_sys::{disk, keys};
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Longest file read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// `spoke import`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file of wg-quick, also as WGDashboard and wg-easy write it; its name is that of the interface
    #[arg(value_name = "FILE.conf")]
    file: PathBuf,
    /// Name of the interface [default: the file's name]
    #[arg(long, value_name = "NAME")]
    interface: Option<IfName>,
    /// Where the key files go
    #[arg(long, value_name = "DIR", default_value = "/var/lib/spoke")]
    keys: PathBuf,
    /// Replace the configuration and key files that exist
    #[arg(long)]
    force: bool,
}

/// Runs the command: writes the file that --config names.
pub fn run(config: &Path, args: &Args, json: bool) -> Outcome {
    let from = args.file.display();
    let bad = |problem: String| Failure::BadInput(format!("{from}: {problem}"));
    let mut bytes = zeroize::Zeroizing::new(Vec::new());
    let read = std::fs::File::open(&args.file).and_then(|f| f.take(MAX_FILE).read_to_end(&mut bytes));
    read.map_err(|e| bad(e.to_string()))?;
    if bytes.first() == Some(&b'{') {
        return Err(bad("is JSON; give the .conf file of the interface".to_owned()));
    }
    let stem = || args.file.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok());
    let name = args.interface.clone().or_else(stem);
    let name = name.ok_or_else(|| bad("its name is not that of an interface: give --interface".to_owned()))?;
    let keys = std::path::absolute(&args.keys)?;
    let import = convert(&name, &bytes, &keys).map_err(|e| bad(e.to_string()))?;
    let target = config.display().to_string();
    let usable = Config::from_text(Some((&target, &import.toml)), variables()?);
    let files = import.secrets.iter().map(|(path, _)| path.as_path());
    if let Some(there) = files.chain([config]).find(|p| p.exists() && !args.force) {
        let there = there.display();
        return Err(Failure::BadInput(format!(
            "{there} exists, nothing is written: name another file with --config and directory with --keys, or replace them with --force"
        )));
    }
    keys::ensure_dir(&keys)?;
    if let Some(dir) = config.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir)?;
    }
    let mut out = Lines::default();
    for (path, secret) in &import.secrets {
        disk::write_state(path, secret.reveal().as_bytes(), args.force)?;
        let _ = writeln!(out, "{} written", path.display());
    }
    disk::write_settings(config, import.toml.as_bytes())?;
    let _ = writeln!(out, "{target} written");
    for note in &import.notes {
        let _ = writeln!(out, "- {note}");
    }
    let _ = writeln!(out, "before `spoke run`: wg-quick down {name}; systemctl disable wg-quick@{name}");
    if json {
        let written = import.secrets.iter().map(|(path, _)| path.display().to_string()).chain([target]);
        print(&super::document(super::object(vec![
            ("written", Tree::of_lines(written)),
            ("notes", Tree::of_lines(import.notes.iter().map(ToString::to_string))),
        ]))?);
    } else {
        print(&String::from(out));
    }
    usable.map(drop).map_err(|faults| Failure::BadInput(format!("to be corrected by hand:\n{faults}")))
}
