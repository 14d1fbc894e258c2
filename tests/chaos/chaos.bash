#!/usr/bin/env bash
# Random acts in the world of world.bash, drawn from CHAOS_SEED, for CHAOS_SECONDS of the guest's time and at most CHAOS_ACTS of
# them; CHAOS_ONLY names one act. After each act: every device is connected within the limit, what belongs to others is as it was, and every process
# lives. Prints the times to recover by cause.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../demo/steps.bash"
. "$here/../fleet/lab.bash"
. "$here/world.bash"
. "$here/acts.bash"

# Limits in seconds: from the act, or from its end where it lasts, until packets pass every tunnel.
hub_limit=60 device_limit=120
# A new key goes through the control plane, at most one in half an hour, after the hub has refused the old one for a while.
declare -A limits=([clock_stepped]=2400)
RANDOM=${CHAOS_SEED:?}
seconds=${CHAOS_SECONDS:?}

say "the world"
world

declare -A count=() worst=() total=()
# timed CAUSE SECONDS COMMAND…: records a step and keeps its time for the table.
timed() {
  local cause=$1 limit=$2 start took
  shift 2
  start=$(now)
  await "$limit" "$cause" "$@" || return 1
  took=$(($(now) - start))
  count[$cause]=$((${count[$cause]:-0} + 1))
  total[$cause]=$((${total[$cause]:-0} + took))
  [ "${worst[$cause]:-0}" -ge "$took" ] || worst[$cause]=$took
}
pick() { local -n list=$1; echo "${list[RANDOM % ${#list[@]}]}"; }
alive() {
  local n
  for n in "${!running[@]}"; do kill -0 "${running[$n]}" 2>/dev/null || { echo "the process in $n has ended"; return 1; }; done
}

# Counts each act once before any is drawn again, so that a short run knows them all.
deal() {
  mapfile -t deck < <(
    for a in "${hub_acts[@]}"; do echo "hub $a"; done
    for a in "${device_acts[@]}"; do echo "device $a"; done
    for a in "${world_acts[@]}"; do echo "world $a"; done
  )
  if [ -n "${CHAOS_ONLY:-}" ]; then
    mapfile -t deck < <(printf '%s\n' "${deck[@]}" | grep -E " $CHAOS_ONLY\$")
    [ ${#deck[@]} -gt 0 ] || { echo "no act $CHAOS_ONLY" >&2; exit 2; }
  fi
}
deal
end=$(($(now) + seconds * 1000)) acts=0
while [ "$(now)" -lt "$end" ] && [ "$acts" -lt "${CHAOS_ACTS:-1000000}" ]; do
  [ ${#deck[@]} -gt 0 ] || deal
  i=$((RANDOM % ${#deck[@]}))
  read -r kind name <<<"${deck[i]}"
  deck=("${deck[@]:0:i}" "${deck[@]:i+1}")
  acts=$((acts + 1))
  case $kind in
    hub)
      hub=$(hub_of device1)
      at=${hub_namespace[$hub]}
      say "act $acts: $name at $hub"
      "act_$name" "$at"
      if declare -F "undo_$name" >/dev/null; then
        timed "hub: $name" "$hub_limit" all elsewhere "$hub" || true
        "undo_$name" "$at"
      else
        timed "hub: $name" "$hub_limit" all connected || true
      fi
      timed "after hub: $name" "$device_limit" all connected || true
      # Half of the time the next act meets devices that have gone back to the best hub.
      [ $((RANDOM % 2)) = 0 ] || pause 420
      ;;
    device)
      device=$(pick devices)
      say "act $acts: $name at $device"
      "act_$name" "$device"
      timed "device: $name" "$device_limit" all connected || true
      if [ -z "${interface[$device]}" ]; then
        plant_interface "$device"
        remember "$device"
      fi
      ;;
    world)
      say "act $acts: $name"
      "act_$name"
      timed "world: $name" "${limits[$name]:-$device_limit}" all connected || true
      if declare -F "undo_$name" >/dev/null; then "undo_$name"; fi
      ;;
  esac
  for device in "${devices[@]}"; do check "$name: what others put on $device is as it was" kept "$device" || true; done
  check "$name: every process lives" alive || true
done

say "seed $CHAOS_SEED: $acts acts, times to recover in seconds"
printf '%-34s %6s %8s %8s\n' cause acts mean worst
for cause in "${!count[@]}"; do
  awk -v c="$cause" -v n="${count[$cause]}" -v t="${total[$cause]}" -v w="${worst[$cause]}" \
    'BEGIN { printf "%-34s %6d %8.1f %8.1f\n", c, n, t / n / 1000, w / 1000 }'
done | sort
table | grep -v ' yes ' || true
if [ "$failures" != 0 ]; then
  for log in "$work"/*.log; do say "$log" && grep -v ' step applied ' "$log" | tail -80; done
  exit 1
fi
