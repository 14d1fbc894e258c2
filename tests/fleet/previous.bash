#!/usr/bin/env bash
# Compatibility with the programs of an earlier commit (SPOKE_PREVIOUS names their directory): old and new devices at old and
# new control planes, and upgrades in place of a device, of a hub and of the control plane's store.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../demo/steps.bash"
. "$here/lab.bash"
previous=${SPOKE_PREVIOUS:?names the directory of the earlier programs}
new_control=$control

upgrade() { stop "$1"; program[$1]=$spoke; resume "$1"; }
index() { on "$1" cat /sys/class/net/wg0/ifindex; }
# api METHOD PATH BODY: a signed request to the agent API of device 1.
secret=k7GqP2vXc9LmR4tZw8BnY1sDf6HjA3eU
api() {
  local time signature
  time=$(date +%s)
  signature=$(printf '%s|%s|%s|%s' "$1" "$2" "$3" "$time" | openssl dgst -sha256 -hmac "$secret" -r)
  on device-1 curl -fsS -m 5 -X "$1" -d "$3" -H "X-Timestamp: $time" -H "X-Signature: ${signature%% *}" "http://127.0.0.1:8081$2"
}
api_peer() { on device-1 wg show wg1 peers | grep -qxF "$peer"; }

say "old programs only"
lay_wire control hub device-1 device-2 device-3 device-4
control=$previous/spoke-control
for n in hub device-1 device-2 device-4; do program[$n]=$previous/spoke; done
control_plane ""
one_network open
(umask 077 && printf %s "$secret" >"$work/secret")
sections="[agent]
enabled = true
secret = \"file:$work/secret\"
listen = [\"127.0.0.1:8081\"]
[[interface]]
name = \"wg1\"
listen_port = 51821
addresses = [\"10.90.0.1/24\"]" start device-1 edge-1 node device
start device-2 edge-2 node device
for n in 1 2; do await 60 "old device $n: tunnel up" is "device-$n" healthy; done
await 20 "the node list agrees" shows 'edge-1 .*healthy'
hub_address=$(address_of hub-1) address=$(address_of edge-1)
fleet node override edge-1 --mtu 1300
await 60 "a change arrives at device 1" mtu device-1 1300
peer=$(wg genkey | wg pubkey)
api POST /v1/wg/wg1/peers "{\"public_key\": \"$peer\", \"allowed_ips\": [\"10.90.0.2/32\"]}" >/dev/null
await 10 "a peer is set through the agent API" api_peer

say "a new device at the old control plane"
start device-3 edge-3 node device
await 60 "it enrols and its tunnel is up" is device-3 healthy
await 20 "the old control plane reads its reports" shows 'edge-3 .*healthy'
fleet node override edge-3 --mtu 1290
await 60 "it applies a state of the old control plane" mtu device-3 1290
check "spoke key rotate succeeds" command_of device-3 key rotate
rotated() { fleet --json node show edge-3 | grep -qF "$(tunnel_key device-3)"; }
await 20 "the old control plane has the new key" rotated

say "device 1 is upgraded in place"
key=$(tunnel_key device-1) link=$(index device-1) before=$(date +%s)
upgrade device-1
await 60 "the old control plane receives its reports" seen_since "$before" edge-1
await 30 "it is healthy" is device-1 healthy
check "the interface is the same" test "$(index device-1)" = "$link"
check "with the same key" test "$(tunnel_key device-1)" = "$key"
check "and the MTU of the control plane" mtu device-1 1300
check "the peer of the agent API is there" api_peer
history_has() { command_of device-1 config history | grep -q "$1"; }
check "the old history is read" history_has panel
check "the old audit trail is read" command_of device-1 audit list
check "and continued: a rollback to the state before" command_of device-1 config rollback
await 10 "the peer of the agent API is gone" not api_peer
stop device-1
ip -n device-1 link del wg0
ip -n device-1 link del wg1
resume device-1
await 60 "it comes back from its state directory alone" is device-1 healthy
check "with the same key" test "$(tunnel_key device-1)" = "$key"

say "the store of the control plane is upgraded"
stop control
control=$new_control before=$(date +%s)
serve
# A report that failed before waits up to 180 s for its next attempt.
await 200 "reports of the new device arrive" seen_since "$before" edge-1
await 200 "reports of the old device arrive" seen_since "$before" edge-2
await 200 "reports of the old hub arrive" seen_since "$before" hub-1
check "device 1 has its address" test "$(address_of edge-1)" = "$address"
check "and its override" mtu device-1 1300
await 20 "the node list agrees" shows 'edge-2 .*healthy'
fleet node override edge-1 --mtu 1310
await 60 "a change arrives at the new device" mtu device-1 1310

say "old devices at the new control plane"
fleet node override edge-2 --mtu 1320
await 60 "a change arrives at the old device" mtu device-2 1320
await 30 "the old device is healthy with it" is device-2 healthy
start device-4 edge-4 node device
await 60 "another old device enrols and its tunnel is up" is device-4 healthy
check "the old hub has it as a peer" reaches device-4 "$hub_address"
check "spoke key rotate succeeds on the old device" command_of device-2 key rotate
await 60 "the old device reaches the hub with its new key" reaches device-2 "$hub_address"

say "the hub is upgraded in place"
link=$(index hub) before=$(date +%s)
upgrade hub
await 200 "its reports arrive" seen_since "$before" hub-1
await 30 "it is healthy" is hub healthy
check "the interface is the same" test "$(index hub)" = "$link"
four_peers() { [ "$(on hub wg show wg0 peers | wc -l)" = 4 ]; }
check "with its four peers" four_peers
for n in 1 2 3 4; do check "device $n reaches it" reaches "device-$n" "$hub_address"; done
has_none() { [ "$(preshared "$1" "$(tunnel_key hub)")" = "(none)" ]; }
check "device 1 has no preshared key: its tunnel was made before" has_none device-1
check "spoke key rotate succeeds on device 1" command_of device-1 key rotate
await 30 "both ends have a preshared key with the new key" share_preshared device-1 hub
check "device 1 reaches the hub" reaches device-1 "$hub_address"
check "the old device has none" has_none device-2

say "device 1 falls back to the earlier program"
stop device-1
program[device-1]=$previous/spoke
resume device-1
withdrawn() { [ "$(preshared hub "$(tunnel_key device-1)")" = "(none)" ]; }
await 60 "the hub has no preshared key for it" withdrawn
await 60 "device 1 reaches the hub again" reaches device-1 "$hub_address"
upgrade device-1
await 60 "it is upgraded again and reaches the hub" reaches device-1 "$hub_address"
fleet node remove edge-4 --yes
not_edge_4() { [ "$(on hub wg show wg0 peers | wc -l)" = 3 ]; }
await 20 "a removed device is gone from it" not_edge_4
table
