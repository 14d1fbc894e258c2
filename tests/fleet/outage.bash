#!/usr/bin/env bash
# The control plane is away for an hour, which is some thirty retries. Each of these once went wrong elsewhere: the interface was torn down after a while, what
# is needed to come back was cleaned away, memory grew with every retry, an interface that somebody deleted was not made
# again, and one changed peer dropped every session.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../demo/steps.bash"
. "$here/lab.bash"

say "a hub and two devices"
lay_wire control hub device-1 device-2
control_plane ""
control_options='report_every = "60s"'
one_network open
start device-1 edge-1 node device
start device-2 edge-2 node device
await 60 "device 1: tunnel up" is device-1 healthy
await 60 "device 2: tunnel up" is device-2 healthy
hub_address=$(address_of hub-1)
await 20 "the node list agrees" shows 'edge-1 .*healthy'
kept() { (cd "$work/device-1" && sha256sum enrolment.json state.json identity.key wg0.key); }
index() { on device-1 cat /sys/class/net/wg0/ifindex; }
resident() { awk '/^VmRSS/ { print $2 }' "/proc/${running[device-1]}/status"; }

say "the control plane goes away, for an hour"
stop control
before=$(kept) link=$(index)
pause 600
memory=$(resident)
says_away() { [[ $(health device-1) == *control_away* ]]; }
await 60 "health says so" says_away
check "and calls it degraded, not worse" is device-1 degraded
pause 3000
check "after an hour the interface is the same one" test "$(index)" = "$link"
check "the tunnel carries packets" reaches device-1 "$hub_address"
check "nothing that is needed to come back was touched" test "$(kept)" = "$before"
say "memory: $memory KiB after ten minutes, $(resident) KiB after an hour"
check "memory has not grown by more than 512 KiB" test "$(resident)" -le $((memory + 512))

say "still without it"
ip -n device-1 link del wg0
await 60 "a deleted interface is made again" ip -n device-1 link show wg0
await 60 "with its tunnel" reaches device-1 "$hub_address"
stop device-2 KILL
ip -n device-2 link del wg0
again device-2
await 60 "a device that lost its power comes back" reaches device-2 "$hub_address"
stop hub KILL
ip -n hub link del wg0
again hub
await 120 "so does the hub, with all its peers" reaches device-1 "$hub_address"
await 60 "both of them" reaches device-2 "$hub_address"

say "the control plane comes back"
before=$(date +%s)
serve
await 300 "reports resume" seen_since "$before" edge-1
await 300 "of both" seen_since "$before" edge-2
content() { ! says_away; }
await 300 "health is content again" content
session=$(on hub wg show wg0 latest-handshakes | grep -F "$(tunnel_key device-2)")
fleet node override edge-1 --mtu 1300
await 60 "a change arrives" mtu device-1 1300
check "and has not disturbed the other device's session" \
  test "$(on hub wg show wg0 latest-handshakes | grep -F "$(tunnel_key device-2)")" = "$session"
table
