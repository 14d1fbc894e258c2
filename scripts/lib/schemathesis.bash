# shellcheck shell=bash
# Installs schemathesis, which generates requests from an OpenAPI document; sourced by the scripts that need it.
. "$(dirname "${BASH_SOURCE[0]}")/debian.bash"

# Exports SPOKE_TEST_SCHEMATHESIS, its program, in a virtual environment in the cache.
need_schemathesis() {
  local version=4.32.5 home
  home=${XDG_CACHE_HOME:-$HOME/.cache}/spoke/schemathesis-$version
  export SPOKE_TEST_SCHEMATHESIS=$home/bin/schemathesis
  [ ! -e "$home/.complete" ] || return 0
  need_packages python3-venv
  rm -rf "$home"
  /usr/bin/python3 -m venv "$home"
  "$home/bin/pip" install --quiet "schemathesis==$version" >&2
  touch "$home/.complete"
}
