#!/usr/bin/env bash
# The fleet's story, told inside of the test kernel: a control plane, a hub and two devices enrol, get addresses and a tunnel;
# the control plane goes away and comes back; a state that loses the hub is taken back.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/story.bash"
work=$(mktemp -d)
spoke=${SPOKE_BIN:?names the spoke binary}
control=${SPOKE_CONTROL_BIN:?names the spoke-control binary}
declare -A running

on() { ip netns exec "$@"; }
is() { [[ $(on "$1" curl -fsS -m 2 http://127.0.0.1:8080/health) == "{\"status\":\"$2\""* ]]; }
fleet() { on control "$control" --config "$work/control.toml" "$@"; }
shows() { fleet node list | grep -E "$1" >/dev/null; }
address_of() { fleet node show "$1" | grep -oE '10\.80\.[0-9]+\.[0-9]+' | head -1; }

say "a network with a control plane, a hub and two devices"
ip netns add net
ip -n net link add br0 type bridge
ip -n net link set br0 up
i=1
for n in control hub device-1 device-2; do
  ip netns add "$n"
  ip link add eth0 netns "$n" type veth peer name "to-$n" netns net
  ip -n net link set "to-$n" master br0 up
  ip -n "$n" link set lo up
  ip -n "$n" link set eth0 up
  ip -n "$n" addr add "192.0.2.$i/24" dev eth0
  i=$((i + 1))
done

cat >"$work/control.toml" <<TOML
[server]
listen = ["192.0.2.1:8443"]
public = "192.0.2.1:8443"
state_dir = "$work/control"
TOML
serve() {
  ip netns exec control "$control" --config "$work/control.toml" serve >"$work/serve.out" 2>>"$work/control.log" &
  running[control]=$!
}
serve
finish() {
  for pid in "${running[@]}"; do kill "$pid" 2>/dev/null || true; done
  if [ "$failures" != 0 ]; then
    for log in "$work"/*.log; do say "$log" && tail -60 "$log"; done
  fi
}
trap finish EXIT
await 20 "the control plane made its keys and says how to enrol" grep -q pin "$work/serve.out"
pin=$(grep -oE 'sha256:[0-9a-f]{64}' "$work/serve.out" | head -1)
fleet network create field --pool4 10.80.0.0/16
(umask 077 && fleet hub add hub-1 --network field --endpoint 192.0.2.2:51820 >"$work/hub.token")
(umask 077 && fleet token create --network field --uses 2 >"$work/device.token")

start() { # NAMESPACE ID ROLE TOKEN
  cat >"$work/$1.toml" <<TOML
[node]
id = "$2"
role = "$3"
state_dir = "$work/$1"
runtime_dir = "$work/$1/run"
[control]
url = "https://192.0.2.1:8443"
pin = "$pin"
token = "file:$work/$4.token"
report_every = "5s"
confirm_within = "10s"
spread = "2s"
TOML
  ip netns exec "$1" "$spoke" --config "$work/$1.toml" run 2>>"$work/$1.log" &
  running[$1]=$!
}
say "each starts with a token and nothing else"
start hub hub-1 hub hub
start device-1 edge-1 node device
start device-2 edge-2 node device
await 30 "the hub is in the fleet" shows 'hub-1 .*active'
await 30 "both devices have an address" shows 'edge-2 .*active .*10\.80\.'
await 60 "device 1: tunnel up" is device-1 healthy
await 60 "device 2: tunnel up" is device-2 healthy
hub_address=$(address_of hub-1)
await 10 "a ping through the tunnel" on device-1 ping -c1 -W2 "$hub_address"
await 30 "the node list agrees: edge-1 healthy" shows 'edge-1 .*healthy'
await 30 "the node list agrees: edge-2 healthy" shows 'edge-2 .*healthy'
other=$(address_of edge-2)
await 5 "without forwarding one device does not reach the other" bash -c "! ip netns exec device-1 ping -c1 -W1 $other"

say "a change at the control plane"
fleet node override edge-1 --mtu 1300
await 10 "is in the device's kernel" bash -c "ip -n device-1 link show wg0 | grep -q 'mtu 1300'"

say "the control plane goes away"
kill "${running[control]}"
wait "${running[control]}" || true
await 5 "the tunnel stays" on device-1 ping -c1 -W2 "$hub_address"
kill "${running[device-2]}"
wait "${running[device-2]}" || true
ip -n device-2 link del wg0
start device-2 edge-2 node device
await 60 "a device that restarts comes back without it" on device-2 ping -c1 -W2 "$hub_address"

say "the control plane comes back"
before=$(date +%s)
serve
seen_since() { # ID
  local at
  at=$(fleet node show "$1" --json | grep -oE '"last_seen": "[^"]+"' | cut -d'"' -f4)
  [ "$(date -d "$at" +%s)" -gt "$before" ]
}
await 60 "reports resume: edge-1" seen_since edge-1
await 60 "reports resume: edge-2" seen_since edge-2

say "a state that loses the hub"
on hub nft add table inet story
on hub nft add chain inet story in '{ type filter hook input priority 0; }'
fleet node override edge-1 --mtu 1290 --listen-port 40404
on hub nft add rule inet story in udp sport 40404 drop
await 10 "is tried" bash -c "ip -n device-1 link show wg0 | grep -q 'mtu 1290'"
await 40 "and taken back by itself" bash -c "ip -n device-1 link show wg0 | grep -q 'mtu 1300'"
await 60 "the control plane hears why" shows 'edge-1 .*reverted'
await 60 "and the tunnel is back" is device-1 healthy
await 5 "and it is not tried again" bash -c "sleep 3; ip -n device-1 link show wg0 | grep -q 'mtu 1300'"
fleet node override edge-1 --mtu 1320
await 30 "a better one is" bash -c "ip -n device-1 link show wg0 | grep -q 'mtu 1320'"

say "a device is removed"
fleet node remove edge-2 --yes
await 20 "the hub forgets it" bash -c "! ip netns exec hub wg show wg0 allowed-ips | grep -q '$other/'"

fleet node list
table
