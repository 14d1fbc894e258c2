#!/usr/bin/env bash
# A fleet, in the test kernel: a chain, a control plane, a hub and two devices, each in a namespace of its own. Devices enrol, get
# addresses and are admitted once the chain grants them; the control plane has an outage; a state that loses the hub is rolled
# back; access is revoked.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/steps.bash"
. "$here/chain.bash"
. "$here/../fleet/lab.bash"

say "a wire with a chain, a control plane, a hub and two devices"
lay_wire control hub device-1 device-2 chain
start_chain chain 192.0.2.5
# shellcheck disable=SC2154 # set by start_chain
running[chain]=$chain
control_plane "[grants]
contract = \"$contract\"
chain_id = 31337
endpoints = [\"$chain_url\"]
finality = \"latest\"
poll = \"1s\"
timeout = \"2s\""

say "each starts with a token alone; device 1 is granted before it enrols"
mkdir -m 700 "$work/device-1"
(umask 077 && "$spoke" key generate >"$work/device-1/wg0.key")
mint edge-1 "$("$spoke" key public <"$work/device-1/wg0.key")"
one_network nft
start device-1 edge-1 node device
start device-2 edge-2 node device
await 30 "the hub is in the fleet" shows 'hub-1 .*active'
await 30 "device 1 has an address" shows 'edge-1 .*active .*10\.80\.'
await 30 "device 2 has an address" shows 'edge-2 .*active .*10\.80\.'
await 60 "device 1: tunnel up" is device-1 healthy
hub_address=$(address_of hub-1)
await 10 "a ping through the tunnel" reaches device-1 "$hub_address"
is_peer() { on hub wg show wg0 peers | grep -qxF "$(tunnel_key "$1")"; }
check "device 2 is no peer of the hub without a grant" not is_peer device-2
mint edge-2 "$(tunnel_key device-2)" "$(word 0x5b0ce)"
await 30 "device 2 is granted: it is a peer" is_peer device-2
await 60 "device 2: tunnel up" is device-2 healthy
await 30 "device 1's health and the node list agree" shows 'edge-1 .*healthy'
await 30 "device 2's health and the node list agree" shows 'edge-2 .*healthy'
check "without forwarding devices do not reach each other" reaches_not device-1 "$(address_of edge-2)"

say "a change at the control plane"
fleet node override edge-1 --mtu 1300
await 10 "reaches the device's kernel" mtu device-1 1300

say "chain outage"
kill -STOP "$chain"
pause 4
check "both are still peers of the hub" is_peer device-1
check "both of them" is_peer device-2
kill -CONT "$chain"

say "control plane outage"
stop control
await 5 "the tunnel stays" reaches device-1 "$hub_address"
stop device-2
ip -n device-2 link del wg0
resume device-2
await 60 "a device that restarts reconnects without it" reaches device-2 "$hub_address"

say "the control plane is back"
before=$(date +%s)
serve
await 200 "reports resume: edge-1" seen_since "$before" edge-1
await 200 "reports resume: edge-2" seen_since "$before" edge-2

say "a state that loses the hub"
on hub nft add table inet scenario
on hub nft add chain inet scenario in '{ type filter hook input priority 0; }'
on hub nft add rule inet scenario in udp sport 40404 drop
fleet node override edge-1 --mtu 1290 --listen-port 40404
await 10 "it is applied" mtu device-1 1290
await 40 "and rolled back" mtu device-1 1300
await 60 "the control plane receives the reason" shows 'edge-1 .*reverted'
await 60 "the tunnel is up again" reaches device-1 "$hub_address"
pause 3
check "it is not applied again" mtu device-1 1300
fleet node override edge-1 --mtu 1320 --listen-port 0
await 30 "a working state is applied" mtu device-1 1320
await 60 "device 1 is healthy with it" is device-1 healthy

say "access is revoked"
gone=$(tunnel_key device-2)
revoke 2
hub_lost() { ! on hub wg show wg0 peers | grep -qxF "$gone"; }
await 30 "the hub removes device 2" hub_lost
check "device 1 still is" is_peer device-1

fleet node list
table
