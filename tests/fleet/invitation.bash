#!/usr/bin/env bash
# Invitations: a token becomes a node in two steps, on a bare machine, and a hub needs no role of its own.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../demo/steps.bash"
. "$here/lab.bash"

lay_wire control hub device other
control_plane ""
fleet network create field --pool4 10.80.0.0/16
umask 077

# settings NAMESPACE: a configuration with directories alone, since all machines here share one file system.
settings() {
  cat >"$work/$1.toml" <<TOML
[node]
state_dir = "$work/$1"
runtime_dir = "$work/$1/run"
TOML
}
enrol() { command_of "$1" enrol "$work/$1.invitation" "${@:2}"; }
# refused NAMESPACE TEXT: enrolling exits with 2 and says TEXT.
refused() {
  local answer status=0
  answer=$(enrol "$1" 2>&1) || status=$?
  [ "$status" = 2 ] && grep -F "$2" <<<"$answer" && ! grep -F spk_ <<<"$answer"
}

say "a hub from an invitation in a file"
printed=$(fleet hub add hub-1 --network field --endpoint 192.0.2.2:51820 --out "$work/hub.invitation")
check "the file is the owner's alone" test "$(stat -c %a "$work/hub.invitation")" = 600
check "no secret is printed" test -z "$(grep -F spk_ <<<"$printed")"
settings hub
check "it enrols without a supervisor" enrol hub
check "the token is erased" test ! -e "$work/enrolment.token"
check "its configuration names no role" test -z "$(grep role "$work/hub.toml")"
resume hub
is_hub() { curl_hub /config | grep -F '"hub"'; }
curl_hub() { on hub curl -fsS -m 2 "http://127.0.0.1:8080$1"; }
await 60 "it is healthy" is hub healthy
check "as a hub" is_hub
check "on its port" test "$(on hub wg show wg0 listen-port)" = 51820

say "a device from one line"
fleet token create --network field --invitation >"$work/line"
check "one line of characters that a URL may have" grep -qxE '[]A-Za-z0-9:/#&=_.[-]+' "$work/line"
settings device
by_pipe() { command_of device enrol - --id edge-1 <"$work/line"; }
check "it enrols" by_pipe
resume device
await 60 "its tunnel is up" is device healthy
cp "$work/line" "$work/device.invitation"
check "a second time is refused with the way" refused device 'spoke enrol --again'

say "a device whose supervisor runs"
fleet token create --network field --node edge-2 --out "$work/other.invitation"
settings other
printf '[[interface]]\nname = "wg0"\n' >>"$work/other.toml"
resume other
running_other() { command_of other status >/dev/null; }
await 60 "it runs without a fleet" running_other
check "it enrols through it" enrol other
await 60 "its tunnel is up" is other healthy
check "under the name of the invitation" shows 'edge-2 .*'

say "what does not fit is refused"
sed -i 's/192.0.2.1:8443/192.0.2.9:8443/' "$work/device.toml"
check "another control plane" refused device 'control.url: is not https://192.0.2.1:8443'
named() { command_of device enrol "$(cat "$work/line")"; }
in_arguments() { ! named >"$work/answer" 2>&1 && grep -F 'every user can read arguments' "$work/answer" && ! grep -F spk_ "$work/answer"; }
check "a secret in the arguments" in_arguments
table
