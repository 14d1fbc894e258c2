//! The packager's binary: `spoke-manuals`.
fn main() -> std::process::ExitCode {
    spoke_manuals::main(std::env::args_os())
}
