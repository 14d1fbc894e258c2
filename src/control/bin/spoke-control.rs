//! `spoke-control`, the control plane.
fn main() -> std::process::ExitCode {
    spoke_control::cli::main(std::env::args_os())
}
