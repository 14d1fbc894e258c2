# shellcheck shell=bash
# Steps of a scenario: timed, bounded, printed as a table at the end, and appended to the file $SPOKE_TEST_STEPS where that is
# set, for a table over several scenarios.

declare -a step_what=() step_result=() step_time=()
failures=0

# now: milliseconds of the monotonic clock.
now() {
  local up
  read -r up _ </proc/uptime
  # 10#: leading zeros are not octal.
  echo "$((10#${up/./} * 10))"
}

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

# record WHAT yes|NO MILLISECONDS: one row of the table.
record() {
  step_what+=("$1") step_result+=("$2") step_time+=("$3")
  [ "$2" = yes ] || failures=$((failures + 1))
  [ -z "${SPOKE_TEST_STEPS:-}" ] || printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$SPOKE_TEST_STEPS"
  printf '   %s: %s (%s ms)\n' "$1" "$2" "$3"
}

# await SECONDS WHAT COMMAND…: runs COMMAND every $SPOKE_TEST_POLL seconds (default 0.1) until it succeeds, and records how long
# that took.
await() {
  local limit=$(($1 * 1000)) what=$2 start
  shift 2
  start=$(now)
  until "$@" >/dev/null 2>&1; do
    if [ $(($(now) - start)) -gt "$limit" ]; then
      record "$what" NO "$(($(now) - start))"
      return 1
    fi
    read -rt "${SPOKE_TEST_POLL:-0.1}" <> <(:) || true
  done
  record "$what" yes "$(($(now) - start))"
}

# check WHAT COMMAND…: records whether COMMAND succeeds; prints its output if not.
check() {
  local what=$1 start output
  shift
  start=$(now)
  if output=$("$@" 2>&1); then
    record "$what" yes "$(($(now) - start))"
  else
    record "$what" NO "$(($(now) - start))"
    printf '   %s\n' "$output"
    return 1
  fi
}

# pause SECONDS: for intervals without an event to wait for.
pause() { read -rt "$1" <> <(:) || true; }

# table: prints all rows; status 0 only if every step succeeded.
table() {
  local i
  say "summary"
  printf '%-66s %-5s %9s\n' step ok time
  for i in "${!step_what[@]}"; do
    printf '%-66s %-5s %6d ms\n' "${step_what[i]}" "${step_result[i]}" "${step_time[i]}"
  done
  [ "$failures" = 0 ]
}
