#!/usr/bin/env bash
# The hub: forwarding between its peers, by nftables rules in a table of its own, and its health.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../demo/steps.bash"
. "$here/lab.bash"

say "a hub with ip_forward on, and three devices"
lay_wire control hub device-1 device-2 device-3
# With the machine forwarding, only the hub's rules decide which peers reach each other.
on hub sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
on hub nft -f - <<'NFT'
table inet mine {
  chain forward { type filter hook forward priority 10; policy accept; counter comment "of the machine's owner"; }
}
NFT
control_plane ""
one_network open
for n in 1 2 3; do start "device-$n" "edge-$n" node device; done
for n in 1 2 3; do await 60 "device $n: tunnel up" is "device-$n" healthy; done
declare -A address=()
for n in 1 2 3; do address[$n]=$(address_of "edge-$n"); done
await 20 "the hub reports healthy" is hub healthy
check "and ready" on hub curl -fsS -m 2 http://127.0.0.1:8080/ready
peers_of_hub() { [ "$(on hub wg show wg0 peers | wc -l)" = 3 ]; }
await 20 "it has three peers" peers_of_hub

say "forwarding is off unless asked for"
# Routes on the devices, so that only the hub can stop the packets.
for n in 1 2 3; do on "device-$n" ip route replace 10.80.0.0/16 dev wg0; done
table_of_hub() { on hub nft list table inet spoke-wg0; }
await 10 "the hub has a table of its own" table_of_hub
check "a device does not reach another" reaches_not device-1 "${address[2]}"

say "forwarding is on"
fleet network set field --forwarding true
await 30 "device 1 reaches device 2" reaches device-1 "${address[2]}"
await 30 "device 2 reaches device 3" reaches device-2 "${address[3]}"

say "device 2 is isolated"
fleet node isolate edge-2
await 30 "device 1 does not reach it" reaches_not device-1 "${address[2]}"
await 30 "it does not reach device 3" reaches_not device-2 "${address[3]}"
check "device 1 reaches device 3 as before" reaches device-1 "${address[3]}"
check "device 2 reaches the hub as before" reaches device-2 "$(address_of hub-1)"

say "another process flushes the rules"
on hub nft flush chain inet spoke-wg0 forward
await 60 "they are repaired" reaches_not device-1 "${address[2]}"
drift_reported() { command_of hub status | grep -q 'forwarding between peers modified by another process'; }
await 10 "and the drift is reported" drift_reported

say "forwarding is off again"
fleet node isolate edge-2 --off
await 30 "device 1 reaches device 2 again" reaches device-1 "${address[2]}"
fleet network set field --forwarding false
await 30 "no device reaches another" reaches_not device-1 "${address[3]}"
check "the rules of the machine's owner are as they were" on hub nft list table inet mine

say "a peer is changed"
index() { on hub cat /sys/class/net/wg0/ifindex; }
before=$(index)
stamps() { on hub wg show wg0 latest-handshakes | grep -v "$(tunnel_key device-3)" | sort; }
kept=$(stamps)
fleet node remove edge-3 --yes
two_peers() { [ "$(on hub wg show wg0 peers | wc -l)" = 2 ]; }
await 20 "the hub removes a removed device" two_peers
check "the hub's interface is the same" test "$(index)" = "$before"
check "no other session was dropped" test "$(on hub wg show wg0 latest-handshakes | sort)" = "$kept"
say "spoke status" && command_of hub status
table
