#!/usr/bin/env bash
# Latency of a change, from the request at the control plane to the event of the device's kernel; run in the test kernel.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../demo/steps.bash"
. "$here/../fleet/lab.bash"

lay_wire control hub device
(umask 077 && echo "an operator's token of these figures" >"$work/operator")
control_plane "[api]
operator_token = \"file:$work/operator\""
one_network open
start device edge-1 node device
await 60 "tunnel up" is device healthy
await 30 "the node list agrees" shows 'edge-1 .*healthy'

ip netns exec device ip -ts monitor link dev wg0 >"$work/events" &
running[monitor]=$!
pause 1
on control /usr/bin/python3 "$here/changes.py" 192.0.2.1:8443 "$work/operator" "$work/events"
