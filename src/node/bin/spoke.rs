//! The device's binary: `spoke`.
fn main() -> std::process::ExitCode {
    spoke_node::cli::main(std::env::args_os())
}
