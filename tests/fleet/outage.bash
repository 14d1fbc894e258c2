#!/usr/bin/env bash
# An outage of the control plane for an hour, some thirty retries. Faults of other products that must not occur: the interface
# is torn down, credentials are deleted, memory grows with every retry, a deleted interface is not recreated, one changed peer
# drops every session.
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

say "the control plane is stopped for an hour"
stop control
before=$(kept) link=$(index)
pause 600
memory=$(resident)
control_away() { [[ $(health device-1) == *control_away* ]]; }
await 60 "health has code control_away" control_away
check "its status is degraded" is device-1 degraded
pause 3000
check "after an hour the interface is the same one" test "$(index)" = "$link"
check "the tunnel carries packets" reaches device-1 "$hub_address"
check "state and keys on disk are unchanged" test "$(kept)" = "$before"
say "memory: $memory KiB after ten minutes, $(resident) KiB after an hour"
check "memory grew by at most 512 KiB" test "$(resident)" -le $((memory + 512))

say "faults during the outage"
ip -n device-1 link del wg0
await 60 "a deleted interface is recreated" ip -n device-1 link show wg0
await 60 "with its tunnel" reaches device-1 "$hub_address"
stop device-2 KILL
ip -n device-2 link del wg0
resume device-2
await 60 "a device reconnects after a power cut" reaches device-2 "$hub_address"
stop hub KILL
ip -n hub link del wg0
resume hub
await 120 "the hub recovers after a power cut, with device 1" reaches device-1 "$hub_address"
await 60 "and with device 2" reaches device-2 "$hub_address"

say "the control plane is back"
before=$(date +%s)
serve
await 300 "reports of device 1 resume" seen_since "$before" edge-1
await 300 "reports of device 2 resume" seen_since "$before" edge-2
await 300 "the condition clears" not control_away
# A peer that was set anew would count from nothing; a handshake may come at any time.
received() { on hub wg show wg0 transfer | awk -v key="$(tunnel_key device-2)" '$1 == key { print $2 }'; }
before=$(received)
fleet node override edge-1 --mtu 1300
await 60 "a change arrives" mtu device-1 1300
kept() { [ "$before" -gt 0 ] && [ "$(received)" -ge "$before" ]; }
check "the other device's session is kept" kept
table
