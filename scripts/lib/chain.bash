# shellcheck shell=bash
# Installs the local EVM chain and the sender of transactions; sourced by the scripts that need one.
. "$(dirname "${BASH_SOURCE[0]}")/npm.bash"

# need_foundry PROGRAM: installs it from npm; sets $foundry, its path.
need_foundry() {
  local cpu
  case $(uname -m) in
    x86_64) cpu=amd64 ;;
    aarch64) cpu=arm64 ;;
    *) echo "no prebuilt $1 for $(uname -m): let SPOKE_${1^^} name one" >&2; return 1 ;;
  esac
  need_npm "@foundry-rs/$1@1.7.1"
  foundry=$spoke_npm/node_modules/@foundry-rs/$1-linux-$cpu/bin/$1
  [ -x "$foundry" ] || { echo "npm did not bring $foundry" >&2; return 1; }
}

# Exports SPOKE_ANVIL, the chain's program, and installs it unless SPOKE_ANVIL is set.
need_anvil() {
  [ -z "${SPOKE_ANVIL:-}" ] || return 0
  need_foundry anvil
  export SPOKE_ANVIL=$foundry
}

# Exports SPOKE_CAST, which signs and sends transactions, and installs it unless SPOKE_CAST is set.
need_cast() {
  [ -z "${SPOKE_CAST:-}" ] || return 0
  need_foundry cast
  export SPOKE_CAST=$foundry
}
