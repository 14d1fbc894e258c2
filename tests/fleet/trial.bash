#!/usr/bin/env bash
# The hub does not answer through a new state when the node is killed (SIGKILL) and its interface is gone, as after a power cut:
# the node comes back with the state that the hub answered through, and does not try the other one again. An emptied
# configuration deletes nothing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../demo/steps.bash"
. "$here/lab.bash"

control_options='report_every = "5s"
confirm_within = "30s"
spread = "2s"'
say "a hub and a device"
lay_wire control hub device
control_plane ""
one_network open
start device edge-1 node device
await 60 "device: tunnel up" is device healthy
hub_address=$(address_of hub-1)
state() { sha256sum <"$work/device/state.json"; }
state_changed() { [ "$(state)" != "$good" ]; }
generation() { tr -d ' \n' <"$work/device/$1" | grep -oE 'generation[\\"]*:[0-9]+' | head -1 | grep -oE '[0-9]+$'; }
proved() { [ ! -e "$work/device/trial.json" ]; }
await 30 "its state is proved" proved
on_trial() { [ -e "$work/device/trial.json" ]; }
# power_cut: no process, no interface.
power_cut() {
  stop device KILL
  ip -n device link del wg0 2>/dev/null || true
}
rejected() { [ "$(generation rejected.json)" = "$1" ]; }

# hub_is up|down: its cable. The control plane stays reachable.
hub_is() { ip -n net link set to-hub "$1"; }
wait_up() {
  hub_is up
  await 60 "the tunnel is back" reaches device "$hub_address"
}

n=0
for delay in record 0 0.3 1 5; do
  n=$((n + 1))
  say "power cut $delay s into a trial"
  good=$(state)
  hub_is down
  fleet node override edge-1 --mtu "$((1300 + n))"
  await 20 "the trial is recorded" on_trial
  number=$(generation trial.json)
  [ "$delay" = record ] || sleep "$delay"
  power_cut
  check "the good state is untouched" test "$(state)" = "$good"
  resume device
  wait_up
  await 30 "the state on trial has failed" rejected "$number"
  await 30 "no record is left" proved
  check "it is not tried again" reaches device "$hub_address"
  # The next round begins with a state that the hub answered through.
  fleet node override edge-1 --unset mtu
  await 60 "a later state is taken" state_changed
  await 60 "healthy again" is device healthy
done

say "power cut before the first connection of a boot"
power_cut
hub_is down
fleet node override edge-1 --mtu 1320
good=$(state)
resume device
await 30 "the state is on trial" on_trial
power_cut
check "the good state is untouched" test "$(state)" = "$good"
resume device
wait_up

say "enrol again"
fleet node remove edge-1 --yes
await 30 "removed, it has no tunnel" reaches_not device "$hub_address"
forgotten() { [ ! -e "$work/device/state.json" ]; }
await 30 "it forgets the fleet" forgotten
check "a token that was not made for it is refused" not command_of device enrol --again --token "$work/device.token"
check "nothing has changed" forgotten
(umask 077 && fleet token create --network field --node edge-1 >"$work/again.token")
check "one command enrols it again" command_of device enrol --again --token "$work/again.token"
await 60 "the tunnel is back" reaches device "$hub_address"
await 30 "its state is proved" proved
power_cut
resume device
await 60 "also after a power cut" reaches device "$hub_address"

say "an emptied configuration"
stop device
cp "$work/device.toml" "$work/device.toml.good"
: >"$work/device.toml"
refused() { # exit code 2, the file named
  local status=0
  command_of device run 2>"$work/refused" || status=$?
  [ "$status" = 2 ] && grep -q "device.toml: (file): names neither an interface nor a control plane" "$work/refused"
}
check "it is a fault of the file" refused
check "the tunnel is still there" reaches device "$hub_address"
cp "$work/device.toml.good" "$work/device.toml"
resume device
with_its_file() { command_of device status && reaches device "$hub_address"; }
await 60 "with the file restored it runs" with_its_file
table
