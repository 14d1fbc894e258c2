//! The device's binary: `spoke`.
fn main() -> std::process::ExitCode {
    spoke::cli::main(std::env::args_os())
}
