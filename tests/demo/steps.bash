# shellcheck shell=bash
# What every scenario needs: steps that are timed, waited for with a bound, and listed in a table at the end. Each row is also
# appended to $SPOKE_TEST_STEPS, where that is set, so that several scenarios can end with one table.

declare -a seen_what=() seen_result=() seen_time=()
failures=0

# now: milliseconds on a clock that does not jump.
now() {
  local up
  read -r up _ </proc/uptime
  # Digits only, and not octal.
  echo "$((10#${up/./} * 10))"
}

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

# saw WHAT RESULT MILLISECONDS: one row of the table.
saw() {
  seen_what+=("$1") seen_result+=("$2") seen_time+=("$3")
  [ "$2" = yes ] || failures=$((failures + 1))
  [ -z "${SPOKE_TEST_STEPS:-}" ] || printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$SPOKE_TEST_STEPS"
  printf '   %s: %s (%s ms)\n' "$1" "$2" "$3"
}

# await SECONDS WHAT COMMAND…: runs COMMAND until it succeeds; a row of the table says how long that took. Between tries it
# waits $SPOKE_TEST_POLL seconds: where waiting costs nothing and trying does, more than the usual tenth.
await() {
  local limit=$(($1 * 1000)) what=$2 start
  shift 2
  start=$(now)
  until "$@" >/dev/null 2>&1; do
    if [ $(($(now) - start)) -gt "$limit" ]; then
      saw "$what" NO "$(($(now) - start))"
      return 1
    fi
    read -rt "${SPOKE_TEST_POLL:-0.1}" <> <(:) || true
  done
  saw "$what" yes "$(($(now) - start))"
}

# check WHAT COMMAND…: a row that says whether COMMAND succeeds now, and what it said if not.
check() {
  local what=$1 start said
  shift
  start=$(now)
  if said=$("$@" 2>&1); then
    saw "$what" yes "$(($(now) - start))"
  else
    saw "$what" NO "$(($(now) - start))"
    printf '   %s\n' "$said"
    return 1
  fi
}

# pause SECONDS: lets time pass where there is nothing to wait for.
pause() { read -rt "$1" <> <(:) || true; }

# table: prints all rows; status 0 only if every one is a yes.
table() {
  local i
  say "what was seen"
  printf '%-66s %-5s %9s\n' step seen time
  for i in "${!seen_what[@]}"; do
    printf '%-66s %-5s %6d ms\n' "${seen_what[i]}" "${seen_result[i]}" "${seen_time[i]}"
  done
  [ "$failures" = 0 ]
}
