# shellcheck shell=bash
# Installs the pinned npm packages of tests and contract build into the cache; sourced by the scripts.
. "$(dirname "${BASH_SOURCE[0]}")/debian.bash"

spoke_npm=${XDG_CACHE_HOME:-$HOME/.cache}/spoke/npm

# need_npm NAME@VERSION…: installs them below $spoke_npm/node_modules.
need_npm() {
  local missing=() spec name version
  for spec in "$@"; do
    name=${spec%@*} version=${spec##*@}
    grep -qs "\"version\": \"$version\"" "$spoke_npm/node_modules/$name/package.json" || missing+=("$spec")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  need_command npm npm
  mkdir -p "$spoke_npm"
  # Locked: two tiers may run at the same time.
  (
    flock 9
    [ -e "$spoke_npm/package.json" ] || echo '{"private":true}' >"$spoke_npm/package.json"
    echo "installing ${missing[*]}" >&2
    npm install --prefix "$spoke_npm" --no-audit --no-fund --ignore-scripts --loglevel=error "${missing[@]}" >&2
  ) 9>"$spoke_npm.lock"
}
