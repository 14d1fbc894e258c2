#!/usr/bin/env bash
# Measures a device and prints a table; told inside of the test kernel. device.bash IDLE-SECONDS
set -euo pipefail
idle=$1
spoke=${SPOKE_BIN:?names the spoke binary}
work=$(mktemp -d)
runs=7

on() { ip netns exec "$@"; }
now() { local up; read -r up _ </proc/uptime; echo "$((10#${up/./} * 10))"; }
median() { sort -n | sed -n "$(((runs + 1) / 2))p"; }
row() { printf '%-58s %14s  %s\n' "$1" "$2" "$3"; }

ip netns add hub
ip netns add device
ip link add eth0 netns hub type veth peer name eth0 netns device
for n in hub device; do ip -n $n link set lo up && ip -n $n link set eth0 up; done
ip -n hub addr add 192.0.2.1/24 dev eth0
ip -n device addr add 192.0.2.2/24 dev eth0
umask 077
wg genkey >"$work/hub.key"
wg genkey >"$work/device.key"
hub_key=$(wg pubkey <"$work/hub.key")
device_key=$(wg pubkey <"$work/device.key")
ip -n hub link add wg0 type wireguard
on hub wg set wg0 listen-port 51820 private-key "$work/hub.key" peer "$device_key" allowed-ips 10.8.0.2/32
ip -n hub addr add 10.8.0.1/24 dev wg0
ip -n hub link set wg0 up
mkdir "$work/state" && cp "$work/device.key" "$work/state/wg0.key"
cat >"$work/spoke.toml" <<TOML
[node]
state_dir = "$work/state"
runtime_dir = "$work/run"
[[interface]]
name = "wg0"
addresses = ["10.8.0.2/24"]
[uplink]
interface = "wg0"
[[uplink.hub]]
public_key = "$hub_key"
endpoint = "192.0.2.1:51820"
address = "10.8.0.1"
allowed_ips = ["10.8.0.0/24"]
TOML

shaken() { [[ $(on device wg show wg0 latest-handshakes 2>/dev/null) == *[1-9]* ]]; }
await_handshake() { until shaken; do read -rt 0.01 <> <(:) || true; done; }
# The hub forgets the session and the time stamp it saw, so that each run is a first one.
forget() {
  ip -n device link del wg0 2>/dev/null || true
  on hub wg set wg0 peer "$device_key" remove
  on hub wg set wg0 peer "$device_key" allowed-ips 10.8.0.2/32
}

by_spoke() {
  local start pid
  forget
  start=$(now)
  ip netns exec device "$spoke" --config "$work/spoke.toml" run 2>/dev/null &
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
  on device wg set wg0 private-key "$work/device.key" peer "$hub_key" endpoint 192.0.2.1:51820 allowed-ips 10.8.0.0/24 persistent-keepalive 25
  ip -n device addr add 10.8.0.2/24 dev wg0
  ip -n device link set wg0 up
  await_handshake
  echo $(($(now) - start))
}
ours=$(for ((i = 0; i < runs; i++)); do by_spoke; done | median)
theirs=$(for ((i = 0; i < runs; i++)); do by_wg; done | median)

forget
ip netns exec device "$spoke" --config "$work/spoke.toml" run 2>/dev/null &
device=$!
await_handshake
# Past start-up, where there is most to do.
on hub ping -q -c 5 -i 1 10.8.0.2 >/dev/null
field() { sed -n "s/^$1:[[:space:]]*\([0-9]*\).*/\1/p" "/proc/$device/status"; }
ticks() { local s; s=$(<"/proc/$device/stat"); s=${s##*) }; read -ra f <<<"$s"; echo $((f[11] + f[12])); }
before=$(ticks) files=$(find "$work/state" -printf '%T@ %p\n' | sort)
on hub ping -q -c "$idle" -i 1 192.0.2.2 >/dev/null
after=$(ticks)

row "what" "measured" "how"
row "release binary" "$(($(stat -c %s "$spoke") / 1024)) KiB" "stat, stripped"
row "process start → handshake, median of $runs" "$ours ms" "wg show latest-handshakes, polled every 10 ms"
row "… the same by ip and wg" "$theirs ms" "in the same run"
row "resident memory, idle" "$(field VmRSS) KiB" "VmRSS of /proc/PID/status"
row "… of it anonymous" "$(field RssAnon) KiB" "RssAnon"
row "CPU in $idle s idle" "$(((after - before) * 1000 / $(getconf CLK_TCK))) ms" "utime+stime of /proc/PID/stat"
row "state files changed in $idle s idle" "$([ "$files" = "$(find "$work/state" -printf '%T@ %p\n' | sort)" ] && echo none || echo SOME)" "modification times"
kill "$device"
