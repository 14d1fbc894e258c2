//! `spoke completions` and `spoke man`: made from the same definition the parser uses.
use super::{Cli, Outcome, print};
use clap::CommandFactory as _;
use clap_complete::Shell;

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

/// Prints the man page.
pub fn man() -> Outcome {
    let mut text = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut text)?;
    print(&String::from_utf8_lossy(&text));
    Ok(())
}
