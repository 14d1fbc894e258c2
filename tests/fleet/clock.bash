#!/usr/bin/env bash
# One forged time answer: the clock is 400 days ahead while the device makes a handshake, then right again. The hub takes the
# handshakes of today for replays; the device gets a new key through the control plane. Sets the clock of the kernel, so it runs in
# user-mode-linux only.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../demo/steps.bash"
. "$here/lab.bash"
[ "${SPOKE_TEST_KERNEL_KIND:-}" = uml ] || { echo "this sets the clock of the machine: it needs user-mode-linux" >&2; exit 1; }

say "a hub and a device"
lay_wire control hub device
control_plane ""
one_network open
start device edge-1 node device
await 60 "device: tunnel up" is device healthy
hub_address=$(address_of hub-1)
before=$(tunnel_key device)
hub_key=$(tunnel_key hub)
# A handshake of now: the reconciler adds the peer again.
handshake() {
  on device wg set wg0 peer "$hub_key" remove
}

say "the clock jumps 400 days ahead"
# One clock for all in this kernel: the control plane would confirm it.
ip -n net link set to-control down
date -u -s "@$(($(date +%s) + 400 * 86400))" >/dev/null
reported() { grep -q "clock jumped by more than a day" "$work/device.log"; }
await 120 "the jump is reported" reported
recorded() { [ -e "$work/device/stamped-until.json" ]; }
check "and recorded" recorded
handshake
await 60 "a handshake with the hub" reaches device "$hub_address"

# A tunnel that the hub opens needs no stamp of the device: its initiations (148 bytes, type 1) are dropped.
on hub nft 'add table inet fault; add chain inet fault out { type filter hook output priority 0; }; add rule inet fault out udp length 156 drop'

say "the clock is right again"
date -u -s "@$(($(date +%s) - 400 * 86400))" >/dev/null
ip -n net link set to-control up
handshake
check "the hub refuses the handshakes of today" reaches_not device "$hub_address"
renewed() { [ "$(tunnel_key device)" != "$before" ]; }
await 600 "a new key through the control plane" renewed
await 120 "the tunnel is back" reaches device "$hub_address"
forgotten() { [ ! -e "$work/device/stamped-until.json" ]; }
await 120 "the record is deleted" forgotten
table
