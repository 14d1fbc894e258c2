# shellcheck shell=bash
# Installs what a script needs from Debian when it is missing; sourced by the other scripts.

# as_root COMMAND…: as root, through sudo when we are not root.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo -- "$@"
  else
    echo "this needs root, and there is no sudo: $*" >&2
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
    echo "missing, and no apt-get to install them with: ${missing[*]}" >&2
    return 1
  fi
  echo "installing ${missing[*]}" >&2
  local install=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${missing[@]}")
  # The package lists of this machine may do; when they do not, they are fetched and it is tried once more.
  as_root "${install[@]}" >/dev/null 2>&1 </dev/null && return 0
  as_root apt-get update -qq >&2 </dev/null
  as_root "${install[@]}" >&2 </dev/null
}

# need_command COMMAND PACKAGE: installs PACKAGE unless COMMAND can be run.
need_command() {
  command -v "$1" >/dev/null || need_packages "$2"
}
