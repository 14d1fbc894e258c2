//! The control plane's binary: `spoke-control`.
fn main() -> std::process::ExitCode {
    spoke::control::cli::main(std::env::args_os())
}
