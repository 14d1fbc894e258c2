//! The control plane's binary: `spoke-control`.
fn main() -> std::process::ExitCode {
    spoke_control::cli::main(std::env::args_os())
}
