# Builds the programs that tests start; sourced. They are built with the tests of their packages, so that every tier uses one set
# of features and compiles nothing twice.

# need_programs: sets $programs, the directory of spoke, spoke-init, spoke-control and spoke-image.
need_programs() {
  cargo test --quiet --workspace --no-run --test cli --test control --test imager
  # shellcheck disable=SC2034 # for the caller
  programs=$(realpath "${CARGO_TARGET_DIR:-target}/debug")
}
