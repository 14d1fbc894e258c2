//! `spoke-manuals DIR`: shell completions and man pages of `spoke`, `spoke-control` and `spoke-image`, from the definitions
//! their parsers use and the configuration files they ship with. A package carries the files; the programs carry no renderer
//! (67 KB on a device).
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

mod file_page;
mod sections;

use anyhow::Context as _;
use clap::{Command, CommandFactory as _, Parser};
use clap_complete::Shell;
use file_page::FilePage;
use spoke_command::{Outcome, exit_code, usage};
use std::ffi::OsString;
use std::fs::create_dir_all;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Renders shell completions and man pages of all programs.
#[derive(Debug, Parser)]
#[command(name = "spoke-manuals", version, max_term_width = 100)]
pub struct Cli {
    /// The directory they go into, laid out as in /usr/share: man/man1, man/man5, bash-completion/completions,
    /// zsh/site-functions, fish/vendor_completions.d
    directory: PathBuf,
}

/// Parses the arguments and writes the files.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match Cli::try_parse_from(args) {
        Ok(cli) => exit_code("spoke-manuals", false, render(&cli.directory)),
        Err(e) => usage(false, &e),
    }
}

/// Writes all files below `share`, replacing existing ones.
///
/// # Errors
/// A directory or file cannot be written.
pub fn render(share: &Path) -> Outcome {
    let shells = [
        (Shell::Bash, "bash-completion/completions"),
        (Shell::Zsh, "zsh/site-functions"),
        (Shell::Fish, "fish/vendor_completions.d"),
    ];
    let (commands, files) = (share.join("man/man1"), share.join("man/man5"));
    let shells = shells.map(|(shell, below)| (shell, share.join(below)));
    for directory in shells.iter().map(|(_, d)| d).chain([&commands, &files]) {
        create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }
    for mut command in
        [spoke_node::cli::Cli::command(), spoke_control::cli::Cli::command(), spoke_imager::Cli::command()]
    {
        let name = command.get_name().to_owned();
        for (shell, directory) in &shells {
            // Bash looks the file up by the command's name alone.
            let written = if matches!(shell, Shell::Bash) {
                let mut script = Vec::new();
                clap_complete::generate(*shell, &mut command, &name, &mut script);
                std::fs::write(directory.join(&name), script).map(|()| directory.join(&name))
            } else {
                clap_complete::generate_to(*shell, &mut command, &name, directory)
            };
            written.with_context(|| {
                format!("cannot write the {shell} completions of {name} to {}", directory.display())
            })?;
        }
        let mut command = command.disable_help_subcommand(true);
        command.build();
        pages(&name, &command, &commands)
            .with_context(|| format!("cannot write the man pages of {name} to {}", commands.display()))?;
    }
    for page in [
        FilePage { name: "spoke.toml", program: "spoke", text: include_str!("../../systemd/spoke.toml") },
        FilePage {
            name: "spoke-control.toml",
            program: "spoke-control",
            text: include_str!("../../systemd/spoke-control.toml"),
        },
    ] {
        let path = files.join(format!("{}.5", page.name));
        std::fs::write(&path, page.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// One page for a command and each of its subcommands.
fn pages(program: &str, command: &Command, directory: &Path) -> std::io::Result<()> {
    for below in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        pages(program, below, directory)?;
    }
    let man = clap_mangen::Man::new(command.clone());
    let mut text = Vec::new();
    man.render(&mut text)?;
    text.extend(sections::after(program, command).into_bytes());
    std::fs::write(directory.join(man.get_filename()), text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::read_to_string;

    fn rendered() -> (tempfile::TempDir, impl Fn(&str) -> String) {
        let share = tempfile::tempdir().unwrap();
        assert!(render(share.path()).is_ok());
        let root = share.path().to_owned();
        (share, move |file: &str| read_to_string(root.join(file)).expect(file))
    }

    #[test]
    fn every_program_has_completions_and_man_pages() {
        let (_share, text) = rendered();
        for (program, command) in [("spoke", "doctor"), ("spoke-control", "serve"), ("spoke-image", "flash")] {
            for file in [
                format!("bash-completion/completions/{program}"),
                format!("zsh/site-functions/_{program}"),
                format!("fish/vendor_completions.d/{program}.fish"),
                format!("man/man1/{program}.1"),
            ] {
                assert!(text(&file).contains(command), "{file} lacks {command}");
            }
        }
        let man = text("man/man1/spoke.1");
        assert!(man.contains(".TH spoke 1") && man.contains("Exit codes"), "{man}");
        let page = text("man/man1/spoke-status.1");
        assert!(page.contains("watch") && page.contains("json"), "{page}");
    }

    #[test]
    fn man_pages_have_files_examples_and_see_also() {
        let (_share, text) = rendered();
        for program in ["spoke", "spoke-control"] {
            let page = text(&format!("man/man1/{program}.1"));
            for section in ["FILES", "ENVIRONMENT", "EXAMPLES", "SEE ALSO"] {
                assert_eq!(page.matches(&format!(".SH \"{section}\"")).count(), 1, "{program}: {section}");
            }
            assert!(page.contains(&format!("\\fB{}.toml\\fR(5)", program.replace('-', "\\-"))), "{page}");
        }
        let page = text("man/man1/spoke-control-node-show.1");
        assert!(page.contains("\\fBspoke\\-control\\fR(1)"), "{page}");
    }

    #[test]
    fn every_key_of_a_shipped_file_is_in_its_page() {
        let (_share, text) = rendered();
        for (name, shipped) in [
            ("spoke.toml", include_str!("../../systemd/spoke.toml")),
            ("spoke-control.toml", include_str!("../../systemd/spoke-control.toml")),
        ] {
            let page = text(&format!("man/man5/{name}.5"));
            let keys = shipped.lines().filter_map(|l| {
                let (key, _) = l.trim_start_matches(['#', ' ']).split_once(" = ")?;
                key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_').then_some(key)
            });
            let keys: Vec<&str> = keys.collect();
            assert!(keys.len() > 15, "{name}: {keys:?}");
            for key in keys {
                assert!(page.contains(&format!("\\fB{key}\\fR = ")), "{name}: {key}\n{page}");
            }
            let sections = |l: &&str| l.trim_start_matches(['#', ' ']).starts_with('[');
            let sections = shipped.lines().filter(sections).count();
            assert_eq!(page.matches(".SH \"[").count(), sections, "{page}");
        }
        let page = text("man/man5/spoke.toml.5");
        assert!(page.contains(".SH \"[[uplink.hub]]\"\nOne table per hub, in order of preference."), "{page}");
        assert!(page.contains("A host name is resolved for every attempt"), "{page}");
    }
}
