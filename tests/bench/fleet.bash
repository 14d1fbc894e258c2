#!/usr/bin/env bash
# Figures of a device and its control plane, taken inside of the test kernel: how long a change takes from the moment the
# request for it is sent to the moment the device's kernel announces it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../demo/story.bash"
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
latencies=()
for i in $(seq 1 "${SPOKE_BENCH_CHANGES:-40}"); do
  mtu=$((1300 + i))
  start=$(date +%s%N)
  # When the connection stood and the request was about to be sent, in microseconds after the start.
  sent=$(on control curl -fsSk -o /dev/null -w '%{time_pretransfer}' -X PUT "https://192.0.2.1:8443/api/nodes/edge-1" \
    -H "authorization: Bearer $(cat "$work/operator")" -H 'content-type: application/json' -d "{\"overrides\": {\"override_mtu\": $mtu}}")
  until grep -q "mtu $mtu " "$work/events"; do pause 0.02; done
  at=$(sed -n "/ mtu $mtu /{ s/^\\[\\([^]]*\\)\\].*/\\1/p; q }" "$work/events")
  latencies+=($((($(date -d "$at" +%s%N) - start) / 1000 - $(awk -v s="$sent" 'BEGIN { printf "%d", s * 1000000 }'))))
  pause 0.3
done
printf '%s\n' "${latencies[@]}" | sort -n | awk '{ v[NR] = $1 / 1000 } END {
  printf "\nchange requested → announced by the kernel of the device, %d changes: p50 %.0f ms, p90 %.0f ms, largest %.0f ms\n", NR, v[int((NR + 1) / 2)], v[int(NR * 0.9 + 0.5)], v[NR] }'
