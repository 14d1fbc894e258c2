# shellcheck shell=bash
# Runs the blocks of a page in their order and prints a line for each; sourced by every script that pages.py makes.
set -euo pipefail
exec 3>&1
said=$(mktemp) current='' finished=no
left=()
to_run() { left+=("$1"); }
begin() { current=$1; }
passed() {
  echo "ok - $current"
  left=("${left[@]:1}")
}
prepared() { :; }
ended() {
  local status=$? block
  exec 1>&3
  [ "$finished" = yes ] && return
  echo "not ok - $current (status $status)"
  sed 's/^/    /' "$said"
  for block in "${left[@]}"; do
    [ "$block" = "$current" ] || echo "not ok - $block: not reached"
  done
  exit 1
}
trap ended EXIT
