//! Shared by the command lines of all programs: outcomes and exit codes, output, log, runtime, protection of secrets.
//!
//! Exit codes: 0 fine, 1 failed, 2 bad input.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

mod logging;
pub mod text;

pub use logging::start_log;

use std::ffi::OsString;
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
    /// The input is wrong, and the faults were printed already: exit code 2.
    Invalid,
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

/// Whether the arguments ask for JSON: errors are JSON then, too, also those of the arguments.
pub fn wants_json(args: &[OsString]) -> bool {
    args.iter().take_while(|a| *a != "--").any(|a| a == "--json")
}

/// Reports a failure on standard error, after the program's name or as a line of JSON, and returns the exit code.
pub fn exit_code(program: &str, json: bool, outcome: Outcome) -> ExitCode {
    let (text, code) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::BadInput(text)) => (text, 2),
        Err(Failure::Failed(e)) => (format!("{e:#}"), 1),
        Err(Failure::Silent) => return ExitCode::from(1),
        Err(Failure::Differs | Failure::Invalid) => return ExitCode::from(2),
    };
    if json {
        complain_in_json(&text, code)
    } else {
        complain(program, &text)
    }
    ExitCode::from(code)
}

/// `{"schema":1,"error":TEXT,"exit_code":N}` in one line on standard error.
fn complain_in_json(text: &str, code: u8) {
    let text = serde_json::Value::from(text);
    let _ = writeln!(std::io::stderr().lock(), "{{\"schema\":1,\"error\":{text},\"exit_code\":{code}}}");
}

/// Writes to standard error after the program's name. Text of others may be a part of it.
pub fn complain(program: &str, text: &str) {
    let lines: Vec<_> = text.split('\n').map(text::visible).collect();
    // journald's priority of an error: `journalctl -p err` finds the reason of an exit.
    let priority = if logging::is_journal() { "<3>" } else { "" };
    let _ = writeln!(std::io::stderr().lock(), "{priority}{program}: {}", lines.join("\n"));
}

/// Prints the argument parser's answer and returns the exit code: 0 for help and version, 2 for errors.
pub fn usage(json: bool, answer: &clap::Error) -> ExitCode {
    if json && answer.use_stderr() {
        complain_in_json(answer.to_string().trim_end(), 2);
    } else {
        let _ = answer.print();
    }
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
