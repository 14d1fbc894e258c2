# shellcheck shell=bash
# Finds the user-mode-linux test kernel and boots it; sourced by the scripts that run something inside.

spoke_cache=${XDG_CACHE_HOME:-$HOME/.cache}/spoke
uml_source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../tests/kernel/uml" && pwd)
# The kernel series whose source Debian has and the patch is made for.
uml_series=6.12

# Where scripts/build-test-kernel puts its result: another configuration or patch is another kernel.
uml_cached() {
  local digest
  digest=$(cat "$uml_source"/*.patch "$uml_source"/kernel.config | sha256sum)
  echo "$spoke_cache/test-kernel/linux-$uml_series-${digest:0:12}"
}

# Fresh namespaces for a program on the host's own kernel; a user namespace too when we are not root: root inside of them.
native_namespaces=(unshare --net --mount --propagation private)
[ "$(id -u)" = 0 ] || native_namespaces+=(--map-root-user)

# Where SPOKE_TEST_ON (native, uml, or auto: the first of the two that works) says a program is to run.
choose_test_kernel() {
  case ${SPOKE_TEST_ON:-auto} in
    native | uml) echo "$SPOKE_TEST_ON" ;;
    auto)
      if "${native_namespaces[@]}" ip link add wg0 type wireguard 2>/dev/null; then
        echo native
      else
        echo uml
      fi
      ;;
    *)
      echo "SPOKE_TEST_ON is '$SPOKE_TEST_ON': native, uml or auto" >&2
      return 125
      ;;
  esac
}

# Builds the user-mode-linux kernel if it will be needed and nobody named one; for the scripts that run a whole tier.
prepare_test_kernel() {
  if [ -z "${SPOKE_TEST_KERNEL:-}" ] && [ "$(choose_test_kernel)" = uml ]; then
    "$(dirname "${BASH_SOURCE[0]}")/../build-test-kernel" >/dev/null
  fi
}

# Prints the path of the kernel to boot; 125 and the remedy when there is none.
find_test_kernel() {
  local kernel=${SPOKE_TEST_KERNEL:-$(uml_cached)}
  if [ ! -x "$kernel" ]; then
    echo "no test kernel at $kernel: run scripts/build-test-kernel (once, about 13 CPU minutes)," \
      "or let SPOKE_TEST_KERNEL name a user-mode-linux kernel with WireGuard" >&2
    return 125
  fi
  realpath "$kernel"
}

# Directory the kernel maps its memory in: must be a tmpfs that may hold executable mappings.
uml_memory_directory() {
  local directory=${SPOKE_TEST_MEMORY_DIR:-/dev/shm}
  if [ "$(stat -f -c %T "$directory" 2>/dev/null)" != tmpfs ] \
    || findmnt -n -o OPTIONS --target "$directory" | grep -qw noexec; then
    echo "$directory is not a tmpfs that allows executing: let SPOKE_TEST_MEMORY_DIR name one" >&2
    return 125
  fi
  echo "$directory"
}

# end_guest JOB PID: kills what is left of a guest, its kernel (a session of its own) and the timeout above it.
end_guest() {
  local session
  session=$(cat "$1/guest/pid" 2>/dev/null) && kill -KILL -- "-$session" 2>/dev/null
  kill -KILL "$2" 2>/dev/null
  return 0
}

# boot_test_kernel JOB [KERNEL-OPTION…]: boots with the host's / as read-only root and JOB/init as PID 1. What is written to the guest's
# /dev/tty1 and /dev/tty2 becomes stdout and stderr; the kernel's own messages and /dev/console go to JOB/console.
# Returns the number found in JOB/status, 124 after SPOKE_TEST_TIMEOUT seconds, 125 when the guest died without a status.
boot_test_kernel() {
  local job=$1 kernel memory guest watchdog=0 timeout=${SPOKE_TEST_TIMEOUT:-600}
  kernel=$(find_test_kernel) || return
  if [ "${SPOKE_TEST_TIME:-real}" = skip ]; then
    set -- "$@" time-travel
  fi
  memory=$(uml_memory_directory) || return
  # rseq off: the C library registers it in the kernel's host process, whose copies for guest processes die of it.
  GLIBC_TUNABLES=glibc.pthread.rseq=0 TMPDIR=$memory timeout --signal=KILL "$timeout" "$kernel" \
    mem="${SPOKE_TEST_MEMORY:-512M}" rootfstype=hostfs rootflags=/ ro init="$job/init" \
    umid=guest uml_dir="$job" con=null con0=null,fd:3 con1=null,fd:1 con2=null,fd:2 \
    quiet loglevel=6 panic=-1 "${@:2}" </dev/null 3>"$job/console" &
  guest=$!
  # shellcheck disable=SC2064 # this guest, not a later one
  trap "end_guest '$job' $guest; exit 130" INT TERM HUP
  # (The shell would announce a killed guest; what happened to it is said below.)
  { wait "$guest" || watchdog=$?; } 2>/dev/null
  trap - INT TERM HUP
  end_guest "$job" "$guest"
  if [ -s "$job/status" ]; then
    return "$(cat "$job/status")"
  fi
  if [ "$watchdog" = 137 ] || [ "$watchdog" = 124 ]; then
    echo "the guest was still running after $timeout s (SPOKE_TEST_TIMEOUT) and was killed" >&2
    return 124
  fi
  echo "the guest ended without a status; its console:" >&2
  tail -30 "$job/console" >&2
  return 125
}
