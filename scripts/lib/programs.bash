# Builds the programs that tests start; sourced. They come with the tests of the packages that make them, so that every tier has
# one set of features and nothing is compiled twice.

# need_programs: sets programs to the directory that has spoke, spoke-init, spoke-control and spoke-image.
need_programs() {
  cargo test --quiet --workspace --no-run --test cli --test control --test imager
  # shellcheck disable=SC2034 # for the caller
  programs=$(realpath "${CARGO_TARGET_DIR:-target}/debug")
}
