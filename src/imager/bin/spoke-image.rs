//! The person's side of the image: write it to a disk, look into it, put settings in, sign updates.
fn main() -> std::process::ExitCode {
    spoke_imager::main(std::env::args_os())
}
