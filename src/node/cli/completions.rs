//! `spoke completions` and `spoke man`: made from the same definition the parser uses.
use super::Cli;
use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;
use spoke_command::{Outcome, print};

/// `spoke completions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    pub shell: Shell,
}

/// Prints the completion script.
pub fn run(args: &Args) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "spoke", &mut text);
    print(&String::from_utf8_lossy(&text));
    Ok(())
}

/// `spoke man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Write a page for each command into this directory instead, such as /usr/local/share/man/man1
    #[arg(long, value_name = "DIR")]
    pub into: Option<std::path::PathBuf>,
}

/// Prints the man page, or writes one for each command.
pub fn man(args: &ManArgs) -> Outcome {
    if let Some(dir) = &args.into {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        clap_mangen::generate_to(Cli::command(), dir)
            .with_context(|| format!("cannot write into {}", dir.display()))?;
        return Ok(());
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut text)?;
    print(&String::from_utf8_lossy(&text));
    Ok(())
}
