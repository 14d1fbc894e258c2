# Builds the programs that tests start; sourced. They are built with the tests of their packages, so that every tier uses one set
# of features and compiles nothing twice.

# need_programs: sets $programs, the directory of spoke, spoke-init, spoke-control and spoke-image.
need_programs() {
  cargo test --quiet --workspace --no-run --test cli --test control --test imager
  # shellcheck disable=SC2034 # for the caller
  programs=$(realpath "${CARGO_TARGET_DIR:-target}/debug")
}

# need_shipped PROGRAM…: sets $shipped, the directory of the static release programs of this CPU, and builds those (spoke,
# spoke-control) that are missing or older than the sources. SPOKE_SHIPPED names another directory to measure.
need_shipped() {
  local program target
  shipped=${SPOKE_SHIPPED:-}
  [ -z "$shipped" ] || return 0
  target=$(uname -m)-unknown-linux-musl
  shipped=$PWD/dist/static/$target
  for program in "$@"; do
    if [ ! -x "$shipped/$program" ] || [ -n "$(find src Cargo.toml Cargo.lock -newer "$shipped/$program" -print -quit)" ]; then
      local control=()
      [ "$program" != spoke-control ] || control=(--control)
      scripts/build-static "${control[@]}" "$target" >&2
    fi
  done
}
