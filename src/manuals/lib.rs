//! `spoke-manuals DIR`: shell completions and man pages of `spoke`, `spoke-control` and `spoke-image`, from the definitions
//! their parsers use. A package carries the files; the programs carry no renderer (67 KB on a device).
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser};
use clap_complete::Shell;
use spoke_command::{Outcome, exit_code, usage};
use std::ffi::OsString;
use std::fs::create_dir_all;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Renders shell completions and man pages of all programs.
#[derive(Debug, Parser)]
#[command(name = "spoke-manuals", version, max_term_width = 100)]
pub struct Cli {
    /// The directory they go into, laid out as in /usr/share: man/man1, bash-completion/completions, zsh/site-functions,
    /// fish/vendor_completions.d
    directory: PathBuf,
}

/// Parses the arguments and writes the files.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match Cli::try_parse_from(args) {
        Ok(cli) => exit_code("spoke-manuals", render(&cli.directory)),
        Err(e) => usage(&e),
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
    let (man, shells) = (share.join("man/man1"), shells.map(|(shell, below)| (shell, share.join(below))));
    for directory in shells.iter().map(|(_, d)| d).chain([&man]) {
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
        clap_mangen::generate_to(command, &man)
            .with_context(|| format!("cannot write the man pages of {name} to {}", man.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::read_to_string;

    #[test]
    fn every_program_has_completions_and_man_pages() {
        let share = tempfile::tempdir().unwrap();
        assert!(render(share.path()).is_ok());
        for (program, command) in [("spoke", "doctor"), ("spoke-control", "serve"), ("spoke-image", "flash")] {
            for file in [
                format!("bash-completion/completions/{program}"),
                format!("zsh/site-functions/_{program}"),
                format!("fish/vendor_completions.d/{program}.fish"),
                format!("man/man1/{program}.1"),
            ] {
                let text = read_to_string(share.path().join(&file)).expect(&file);
                assert!(text.contains(command), "{file} lacks {command}");
            }
        }
        let man = read_to_string(share.path().join("man/man1/spoke.1")).unwrap();
        assert!(man.contains(".TH spoke 1") && man.contains("Exit codes"), "{man}");
        let page = read_to_string(share.path().join("man/man1/spoke-status.1")).unwrap();
        assert!(page.contains("watch") && page.contains("json"), "{page}");
    }
}
