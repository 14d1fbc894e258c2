#!/usr/bin/env bash
# A device's WireGuard key is rotated while packets flow.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../demo/steps.bash"
. "$here/lab.bash"

hub_and_two_devices
await 20 "the tunnel has a preshared key at both ends" share_preshared device hub
await 20 "so has the tunnel of the other device" share_preshared other hub
shared=$(preshared device "$(tunnel_key hub)")
check "each tunnel has its own" test "$shared" != "$(preshared other "$(tunnel_key hub)")"
hub_address=$(address_of hub-1)
device_address=$(address_of edge-1)
old=$(tunnel_key device)

# count NAMESPACE ADDRESS NAME: pings five times a second until `lost NAME`.
count() {
  ip netns exec "$1" ping -q -i 0.2 "$2" >"$work/$3.pings" &
  running[$3]=$!
}
# lost NAME: the number of pings without a reply; the last one may still be in flight.
lost() {
  kill -INT "${running[$1]}"
  wait "${running[$1]}" || true
  unset "running[$1]"
  local sent received
  read -r sent received < <(sed -n 's/^\([0-9]*\) packets transmitted, \([0-9]*\) received.*/\1 \2/p' "$work/$1.pings")
  echo $((sent - received))
}

say "a new WireGuard key and preshared key, while both sides ping five times a second"
count device "$hub_address" up
count hub "$device_address" down
pause 2
check "spoke key rotate succeeds" command_of device key rotate
pause 2
up=$(lost up) down=$(lost down)
say "lost pings: $up from the device, $down from the hub"
new=$(tunnel_key device)
check "the kernel has another key" test "$old" != "$new"
# logged NAMESPACE TEXT: when its log has the step, in milliseconds since 1970.
logged() { date -d "$(grep -F "$2" "$work/$1.log" | tail -n 1 | cut -d' ' -f1)" +%s%3N; }
# The hub and the device switch within this time, which depends on the machine; one more ping may be in flight.
window=$(($(logged device "set private key (public ${old:0:8}") - $(logged hub "set peer ${new:0:8}")))
allowed=$(((${window#-} + 199) / 200 + 1))
say "the keys differed for $window ms: up to $allowed pings of each side may be lost"
check "pings from the device are lost only while the keys differ" test "$up" -le "$allowed"
check "pings from the hub are lost only while the keys differ" test "$down" -le "$allowed"
hub_has() { on hub wg show wg0 peers | grep -qxF "$1"; }
await 10 "the hub has the new key" hub_has "$new"
await 10 "the hub has removed the old key" not hub_has "$old"
check "the preshared key is another one" test "$shared" != "$(preshared device "$(tunnel_key hub)")"
check "and the same at both ends" share_preshared device hub
check "the hub has no preshared key without a peer" test "$(on hub wg show wg0 preshared-keys | wc -l)" = 2
no_secret_in() { ! grep -rqF "$(preshared device "$(tunnel_key hub)")" "$@"; }
check "no log has it" no_secret_in "$work"/*.log "$work/serve.out"
check "nor the store of the control plane" no_secret_in "$work/control"
open_to_others() { find "$work/device" "$work/hub" -type f -perm /077 -exec grep -lF "$(preshared device "$(tunnel_key hub)")" {} + | grep -q .; }
check "nor a file that others may read" not open_to_others
check "only the new key is on disk" test "$(cd "$work/device" && echo wg0.key*)" = wg0.key
fleet_knows() { fleet --json node show edge-1 | grep -qF "$1"; }
await 10 "the control plane has it" fleet_knows "$new"
stop device
ip -n device link del wg0
resume device
await 60 "after a restart without interface the new key works" is device healthy
check "the preshared key comes from the state directory" share_preshared device hub
check "it is the new key" test "$(tunnel_key device)" = "$new"

say "an identity from a credential"
stop other
install -d -m 700 "$work/credentials"
mv "$work/other/identity.key" "$work/credentials/spoke.identity"
sed -i 's|^\[control\]|[control]\nidentity = "credential:spoke.identity"|' "$work/other.toml"
before=$(date +%s)
CREDENTIALS_DIRECTORY=$work/credentials resume other
await 60 "the device is the same node" seen_since "$before" edge-2
check "and makes no identity of its own" test ! -e "$work/other/identity.key"

table
