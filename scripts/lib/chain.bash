# shellcheck shell=bash
# Installs the local EVM chain of the tests; sourced by the scripts that need one.
. "$(dirname "${BASH_SOURCE[0]}")/npm.bash"

# Exports SPOKE_ANVIL, the chain's program, and installs it unless SPOKE_ANVIL is set.
need_anvil() {
  [ -z "${SPOKE_ANVIL:-}" ] || return 0
  local cpu
  case $(uname -m) in
    x86_64) cpu=amd64 ;;
    aarch64) cpu=arm64 ;;
    *) echo "no prebuilt anvil for $(uname -m): let SPOKE_ANVIL name one" >&2; return 1 ;;
  esac
  need_npm @foundry-rs/anvil@1.7.1
  export SPOKE_ANVIL=$spoke_npm/node_modules/@foundry-rs/anvil-linux-$cpu/bin/anvil
  [ -x "$SPOKE_ANVIL" ] || { echo "npm did not bring $SPOKE_ANVIL" >&2; return 1; }
}
