# shellcheck shell=bash
# Finds and boots the user-mode-linux test kernel; sourced by the scripts that run programs in it.

spoke_cache=${XDG_CACHE_HOME:-$HOME/.cache}/spoke
uml_source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../tests/kernel/uml" && pwd)
# The kernel series whose source Debian has and the patch is made for.
uml_series=6.12

# Where scripts/build-test-kernel puts its result; the name depends on configuration and patches.
uml_cached() {
  local digest
  digest=$(cat "$uml_source"/*.patch "$uml_source"/kernel.config | sha256sum)
  echo "$spoke_cache/test-kernel/linux-$uml_series-${digest:0:12}"
}

# Namespaces for a program on the host's own kernel; without root a user namespace too, in which it is root.
native_namespaces=(unshare --net --mount --propagation private)
[ "$(id -u)" = 0 ] || native_namespaces+=(--map-root-user)

# Prints native or uml, as SPOKE_TEST_ON asks; auto is native where that works.
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

# Builds the user-mode-linux kernel where it is needed and SPOKE_TEST_KERNEL does not name one.
prepare_test_kernel() {
  if [ -z "${SPOKE_TEST_KERNEL:-}" ] && [ "$(choose_test_kernel)" = uml ]; then
    "$(dirname "${BASH_SOURCE[0]}")/../build-test-kernel" >/dev/null
  fi
}

# Prints the path of the kernel to boot; returns 125 and prints the remedy if it is missing.
find_test_kernel() {
  local kernel=${SPOKE_TEST_KERNEL:-$(uml_cached)}
  if [ ! -x "$kernel" ]; then
    echo "no test kernel at $kernel: run scripts/build-test-kernel (once, about 13 CPU minutes)," \
      "or let SPOKE_TEST_KERNEL name a user-mode-linux kernel with WireGuard" >&2
    return 125
  fi
  realpath "$kernel"
}

# Directory of the kernel's memory file: a tmpfs mounted without noexec.
uml_memory_directory() {
  local directory=${SPOKE_TEST_MEMORY_DIR:-/dev/shm}
  if [ "$(stat -f -c %T "$directory" 2>/dev/null)" != tmpfs ] \
    || findmnt -n -o OPTIONS --target "$directory" | grep -qw noexec; then
    echo "$directory is not a tmpfs that allows executing: let SPOKE_TEST_MEMORY_DIR name one" >&2
    return 125
  fi
  echo "$directory"
}

# end_guest JOB PID: kills a guest's kernel (a session of its own) and the timeout process above it.
end_guest() {
  local session
  session=$(cat "$1/guest/pid" 2>/dev/null) && kill -KILL -- "-$session" 2>/dev/null
  kill -KILL "$2" 2>/dev/null
  return 0
}

# boot_test_kernel JOB [KERNEL-OPTION…]: boots with the host's / as read-only root and JOB/init as PID 1. The guest's /dev/tty1
# and /dev/tty2 are stdout and stderr; kernel messages and /dev/console go to JOB/console.
# Returns the number in JOB/status, 124 after SPOKE_TEST_TIMEOUT seconds, 125 if the guest died without a status.
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
  # stderr: the shell would report the killed job.
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
