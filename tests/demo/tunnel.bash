#!/usr/bin/env bash
# The tunnel, in the test kernel: a hub made with wireguard-tools, a device run by spoke, three outages.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/steps.bash"
work=$(mktemp -d)
spoke=${SPOKE_BIN:?names the spoke binary}

on() { ip netns exec "$@"; }
health() { on device curl -fsS -m 2 http://127.0.0.1:8080/health; }
is() { [[ $(health) == "{\"status\":\"$1\""* ]]; }
not_healthy() { ! is healthy; }

say "two machines and a wire between them"
ip netns add hub
ip netns add device
ip link add eth0 netns hub type veth peer name eth0 netns device
for n in hub device; do ip -n $n link set lo up && ip -n $n link set eth0 up; done
ip -n hub addr add 192.0.2.1/24 dev eth0
ip -n device addr add 192.0.2.2/24 dev eth0

say "a hub, made with wireguard-tools"
(umask 077 && wg genkey >"$work/hub.key")
hub_up() {
  ip -n hub link add wg0 type wireguard
  on hub wg set wg0 listen-port 51820 private-key "$work/hub.key"
  ip -n hub addr add 10.8.0.1/24 dev wg0
  ip -n hub link set wg0 up
  [ -z "${device_key:-}" ] || on hub wg set wg0 peer "$device_key" allowed-ips 10.8.0.2/32
}
hub_up

say "a device, from its configuration alone"
cat >"$work/spoke.toml" <<TOML
[node]
id = "demo-1"
state_dir = "$work/state"
runtime_dir = "$work/run"
[[interface]]
name = "wg0"
addresses = ["10.8.0.2/24"]
[uplink]
interface = "wg0"
[[uplink.hub]]
name = "hub"
public_key = "$(wg pubkey <"$work/hub.key")"
endpoint = "192.0.2.1:51820"
address = "10.8.0.1"
allowed_ips = ["10.8.0.0/24"]
TOML
"$spoke" --config "$work/spoke.toml" check >/dev/null
ip netns exec device "$spoke" --config "$work/spoke.toml" run 2>"$work/log" &
device=$!
finish() {
  kill "$device" 2>/dev/null || true
  if [ "$failures" != 0 ]; then
    say "the device's log" && cat "$work/log"
  fi
}
trap finish EXIT
await 10 "the device made its key" test -s "$work/state/wg0.key"
device_key=$("$spoke" --config "$work/spoke.toml" key public --interface wg0)
on hub wg set wg0 peer "$device_key" allowed-ips 10.8.0.2/32

await 30 "tunnel up: handshake, and the hub answers through it" is healthy
await 5 "the health endpoint reports ready" on device curl -fsS -m 2 http://127.0.0.1:8080/ready
await 5 "a ping from the hub reaches the device" on hub ping -c1 -W2 10.8.0.2

say "the hub's interface is deleted"
ip -n hub link del wg0
await 60 "the device reports it" not_healthy
hub_up
await 120 "the tunnel is up again" is healthy

say "the link is down"
ip -n device link set eth0 down
await 60 "the device reports it" not_healthy
ip -n device link set eth0 up
await 120 "the tunnel is up again" is healthy

say "the device's interface is deleted"
ip -n device link del wg0
await 60 "the interface is recreated" ip -n device link show wg0
await 120 "the tunnel is up again" is healthy
await 5 "a ping from the hub reaches the device" on hub ping -c1 -W2 10.8.0.2

say "the supervisor is stopped: the tunnel stays"
kill "$device"
wait "$device" || true
await 5 "a ping passes without a running supervisor" on hub ping -c1 -W2 10.8.0.2
ip netns exec device "$spoke" --config "$work/spoke.toml" run 2>>"$work/log" &
device=$!
await 30 "healthy on the same tunnel after a restart" is healthy

say "spoke status"
"$spoke" --config "$work/spoke.toml" status
table
