#!/usr/bin/env bash
# Measures a device and prints a table; run in the test kernel. device.bash IDLE-SECONDS
set -euo pipefail
idle=$1
. "$(dirname "$0")/pair.bash"
spoke=$(realpath "${SPOKE_BIN:?names the spoke binary}")
work=$(mktemp -d)
runs=7

now() { local up; read -r up _ </proc/uptime; echo "$((10#${up/./} * 10))"; }
median() { sort -n | sed -n "$(((runs + 1) / 2))p"; }
row() { printf '%-46s %12s  %-11s %s\n' "$1" "$2" "$3" "$4"; }

cd "$work"
mkdir state
make_pair state

shaken() { [[ $(on device wg show wg0 latest-handshakes 2>/dev/null) == *[1-9]* ]]; }
await_handshake() { until shaken; do read -rt 0.01 <> <(:) || true; done; }
# Removes the hub's session and time stamp of the device, so that each run is a first handshake.
forget() {
  ip -n device link del wg0 2>/dev/null || true
  on hub wg set wg0 peer "$device_key" remove
  on hub wg set wg0 peer "$device_key" allowed-ips 10.8.0.2/32
}

by_spoke() {
  local start pid
  forget
  start=$(now)
  ip netns exec device "$spoke" --config spoke.toml run 2>/dev/null &
  pid=$!
  await_handshake
  echo $(($(now) - start))
  kill "$pid"
  wait "$pid" || true
}
by_wg() {
  local start
  forget
  start=$(now)
  ip -n device link add wg0 type wireguard
  on device wg set wg0 private-key state/wg0.key peer "$hub_key" endpoint 192.0.2.1:51820 allowed-ips 10.8.0.0/24 persistent-keepalive 25
  ip -n device addr add 10.8.0.2/24 dev wg0
  ip -n device link set wg0 up
  await_handshake
  echo $(($(now) - start))
}
ours=$(for ((i = 0; i < runs; i++)); do by_spoke; done | median)
theirs=$(for ((i = 0; i < runs; i++)); do by_wg; done | median)

forget
ip netns exec device "$spoke" --config spoke.toml run 2>/dev/null &
device=$!
await_handshake
# After start-up.
on hub ping -q -c 5 -i 1 10.8.0.2 >/dev/null
field() { sed -n "s/^$1:[[:space:]]*\([0-9]*\).*/\1/p" "/proc/$device/status"; }
ticks() { local s; s=$(<"/proc/$device/stat"); s=${s##*) }; read -ra f <<<"$s"; echo $((f[11] + f[12])); }
before=$(ticks) files=$(find state -printf '%T@ %p\n' | sort)
on hub ping -q -c "$idle" -i 1 192.0.2.2 >/dev/null
after=$(ticks)

# fetch PATH: microseconds of one request on an open connection (fd 5).
fetch() {
  local start=${EPOCHREALTIME/./} line length=0
  printf 'GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n' "$1" >&5
  while IFS= read -r line <&5 && [ "$line" != $'\r' ]; do
    [[ ${line,,} == content-length:* ]] && length=${line//[^0-9]/}
  done
  read -rN "$length" <&5
  echo $((${EPOCHREALTIME/./} - start))
}
# latencies PATH: of 200 requests, sorted, in microseconds.
latencies() {
  export -f fetch
  # shellcheck disable=SC2016 # expanded in the namespace
  on device bash -c 'exec 5<>/dev/tcp/127.0.0.1/8080; for ((i = 0; i < 200; i++)); do fetch "$1"; done' _ "$1" \
    | sort -n
}
mapfile -t health < <(latencies /health)
in_ms() { printf '%d.%03d ms' $(($1 / 1000)) $(($1 % 1000)); }

row "what" "measured" "aim" "how"
row "release binary" "$(($(stat -c %s "$spoke") / 1024)) KiB" "< 5120 KiB" "stat, stripped"
row "process start → handshake, median of $runs" "$ours ms" "< 300 ms" "wg show latest-handshakes, polled every 10 ms"
row "… the same by ip and wg" "$theirs ms" "" "in the same run"
row "resident memory, idle" "$(field VmRSS) KiB" "≤ 6144 KiB" "VmRSS of /proc/PID/status"
row "… of it anonymous" "$(field RssAnon) KiB" "" "RssAnon"
row "CPU in $idle s idle" "$(((after - before) * 1000 / $(getconf CLK_TCK))) ms" "" "utime+stime of /proc/PID/stat"
row "state files changed in $idle s idle" "$([ "$files" = "$(find state -printf '%T@ %p\n' | sort)" ] && echo none || echo SOME)" "none" "modification times; an idle hour in the systemd tier"
row "GET /health, median of 200" "$(in_ms "${health[99]}")" "" "one connection, by bash, including bash's own time"
row "GET /health, p99" "$(in_ms "${health[197]}")" "< 5 ms" "the same, natively"
kill "$device"
