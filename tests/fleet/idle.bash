#!/usr/bin/env bash
# Traffic of an idle day between a device and its control plane, counted by the kernel on the device's wire.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../demo/steps.bash"
. "$here/lab.bash"

say "a hub and a device with default intervals"
lay_wire control hub device
control_plane ""
control_options=
one_network open
start device edge-1 node device
await 60 "tunnel up" is device healthy
await 60 "the node list agrees" shows 'edge-1 .*healthy'
on device nft -f - <<'NFT'
table inet traffic {
  counter sent { }
  counter received { }
  chain out { type filter hook output priority 0; tcp dport 8443 counter name sent; }
  chain in { type filter hook input priority 0; tcp sport 8443 counter name received; }
}
NFT
bytes() { on device nft list counters table inet traffic | awk '/bytes/ { n += $4 } END { print n }'; }
# Half an hour has three polls and two reports, and repeats.
pause 1800
day=$(($(bytes) * 48))
say "an idle day: $day bytes with the control plane, IP headers included"
check "traffic was counted" test "$day" -gt 10000
check "an idle day takes less than 500,000 bytes" test "$day" -lt 500000
check "the node is still healthy" is device healthy
changed() { stat -c %Y "$work/device/state.json" "$work/device/enrolment.json"; }
age=$(($(date +%s) - $(changed | sort -n | tail -1)))
check "no state file was written meanwhile" test "$age" -gt 1700
table
