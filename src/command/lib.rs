//! Shared by the command lines of all programs: outcomes and exit codes, output, log, runtime, protection of secrets.
//!
//! Exit codes: 0 fine, 1 failed, 2 bad input.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

mod logging;
pub mod text;

pub use logging::start_log;

use std::io::Write as _;
use std::process::ExitCode;

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// The input is wrong: exit code 2.
    BadInput(String),
    /// Something else went wrong: exit code 1.
    Failed(anyhow::Error),
    /// The reason was printed already: exit code 1.
    Silent,
    /// What was compared differs, as printed: exit code 2.
    Differs,
}

impl Failure {
    /// The same failure with exit code 1, where 2 means that something differs.
    #[must_use]
    pub fn not_2(self) -> Self {
        match self {
            Self::BadInput(text) => Self::Failed(anyhow::Error::msg(text)),
            other => other,
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(e: E) -> Self {
        Self::Failed(e.into())
    }
}

/// What a command returns.
pub type Outcome = Result<(), Failure>;

/// Reports a failure on standard error after the program's name, and returns the exit code.
pub fn exit_code(program: &str, outcome: Outcome) -> ExitCode {
    let (text, code) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::BadInput(text)) => (text, 2),
        Err(Failure::Failed(e)) => (format!("{e:#}"), 1),
        Err(Failure::Silent) => return ExitCode::from(1),
        Err(Failure::Differs) => return ExitCode::from(2),
    };
    complain(program, &text);
    ExitCode::from(code)
}

/// Writes to standard error after the program's name. Text of others may be a part of it.
pub fn complain(program: &str, text: &str) {
    let lines: Vec<_> = text.split('\n').map(text::visible).collect();
    // journald's priority of an error: `journalctl -p err` finds the reason of an exit.
    let priority = if logging::is_journal() { "<3>" } else { "" };
    let _ = writeln!(std::io::stderr().lock(), "{priority}{program}: {}", lines.join("\n"));
}

/// Prints the argument parser's answer and returns the exit code: 0 for help and version, 2 for errors.
pub fn usage(answer: &clap::Error) -> ExitCode {
    let _ = answer.print();
    ExitCode::from(if answer.use_stderr() { 2 } else { 0 })
}

/// Writes to standard output. A closed pipe is no error.
pub fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Keeps the memory of this process, which holds keys, from core dumps and from debuggers of the same user.
pub fn harden() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
}

/// Runs a future to completion on a runtime of this thread.
///
/// # Errors
/// No runtime can be created: see [`runtime`].
pub fn block_on<F: std::future::Future>(future: F) -> Result<F::Output, std::io::Error> {
    let runtime = runtime()?;
    let output = runtime.block_on(future);
    // A name look-up that is still under way must not delay the exit.
    runtime.shutdown_background();
    Ok(output)
}

/// A runtime of one thread. Its blocking pool is for DNS, HTTP and files, so it stays small, like its stacks.
///
/// # Errors
/// The process may open no more files or start no thread.
pub fn runtime() -> Result<tokio::runtime::Runtime, std::io::Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(10)
        .thread_stack_size(512 * 1024)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .build()
}
