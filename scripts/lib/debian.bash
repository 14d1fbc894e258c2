# shellcheck shell=bash
# Installs missing Debian packages; sourced by the other scripts.

# as_root COMMAND…: runs it as root, with sudo where needed.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo -- "$@"
  else
    echo "needs root or sudo: $*" >&2
    return 1
  fi
}

# need_packages PACKAGE…: returns when all of them are installed.
need_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if ! command -v apt-get >/dev/null; then
    echo "missing packages, and no apt-get to install them: ${missing[*]}" >&2
    return 1
  fi
  echo "installing ${missing[*]}" >&2
  local install=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${missing[@]}")
  # First with the package lists of this machine, then with fresh ones.
  as_root "${install[@]}" >/dev/null 2>&1 </dev/null && return 0
  as_root apt-get update -qq >&2 </dev/null
  as_root "${install[@]}" >&2 </dev/null
}

# need_command COMMAND PACKAGE: installs PACKAGE unless COMMAND can be run.
need_command() {
  command -v "$1" >/dev/null || need_packages "$2"
}
