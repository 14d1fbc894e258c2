//! `spoke check`: reports all faults of the configuration and of the files it names, or prints the effective one, with its risks on
//! standard error.
use crate::config_file::{load, read};
use crate::doctor::finding::Finding;
use crate::named_files;
use spoke_command::{Failure, Outcome, complain, print};
use spoke_config::fault::{ConfigFault, ConfigFaults};
use spoke_model::tree::Tree;
use std::path::Path;

/// `spoke check`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Args {
    /// Check the text alone, not the keys, secrets and certificates it names: for a file of another machine
    #[arg(long)]
    pub text_only: bool,
}

/// Prints the effective configuration as TOML, secrets redacted.
pub fn run(file: &Path, args: Args, json: bool) -> Outcome {
    if json {
        return in_json(file, args);
    }
    let config = load(file)?;
    for risk in config.risks() {
        complain("spoke", &format!("warning: {risk}"));
    }
    let faults = if args.text_only { Vec::new() } else { named_files::faults(&config) };
    if !faults.is_empty() {
        return Err(Failure::BadInput(named_files::report(&faults)));
    }
    print(&config.to_toml());
    Ok(())
}

/// `valid`, `faults` with file, key, element, problem and remedy, `warnings`, and the effective `config`.
fn in_json(file: &Path, args: Args) -> Outcome {
    let texts = |faults: Vec<Tree>| ("faults", Tree::List(faults));
    let valid = |is| ("valid", Tree::Bool(is));
    let config = match read(file)? {
        Ok(config) => config,
        Err(ConfigFaults(faults)) => {
            let fault = |f: &ConfigFault| {
                Tree::of_texts(&[
                    ("file", &f.file),
                    ("key", &f.key),
                    ("element", &f.element),
                    ("problem", &f.problem),
                    ("remedy", &f.remedy),
                ])
            };
            let faults = faults.iter().map(fault).collect();
            print(&super::document(super::object(vec![valid(false), texts(faults)]))?);
            return Err(Failure::Invalid);
        }
    };
    let found = if args.text_only { Vec::new() } else { named_files::faults(&config) };
    let fault = |f: &Finding| {
        let remedy = f.remedy.as_deref().unwrap_or_default();
        Tree::of_texts(&[("file", ""), ("key", &f.what), ("element", ""), ("problem", &f.detail), ("remedy", remedy)])
    };
    let mut entries = vec![valid(found.is_empty()), texts(found.iter().map(fault).collect())];
    entries.push(("warnings", Tree::of_lines(config.risks().iter().map(ToString::to_string))));
    entries.push(("config", config.to_tree()?));
    print(&super::document(super::object(entries))?);
    if found.is_empty() { Ok(()) } else { Err(Failure::Invalid) }
}
