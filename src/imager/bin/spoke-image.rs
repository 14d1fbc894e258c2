//! `spoke-image`: writes images to disks, inspects them, adds settings, signs updates.
fn main() -> std::process::ExitCode {
    spoke_imager::main(std::env::args_os())
}
