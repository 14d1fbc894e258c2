# shellcheck shell=bash
# Parts of fleet scenarios in the test kernel: namespaces on one wire, a control plane, hubs and devices.
# Sourced after steps.bash; needs SPOKE_BIN and SPOKE_CONTROL_BIN.
# shellcheck disable=SC2154 # from steps.bash
work=$(mktemp -d)
spoke=${SPOKE_BIN:?names the spoke binary}
control=${SPOKE_CONTROL_BIN:?names the spoke-control binary}
export HOME=$work
# By namespace: its process, and its program where that is not $spoke.
declare -A running=() program=()

on() { ip netns exec "$@"; }
health() { on "$1" curl -fsS -m 2 http://127.0.0.1:8080/health; }
# is NAMESPACE VERDICT: whether the node's health has this status.
is() { [[ $(health "$1") == "{\"status\":\"$2\""* ]]; }
fleet() { on control "$control" --config "$work/control.toml" "$@"; }
# shows PATTERN: whether a line of the control plane's node list matches.
shows() { fleet node list | grep -E "$1" >/dev/null; }
# seen_since SECONDS ID: whether the control plane received a report of the node after that time (date +%s).
seen_since() {
  local at
  at=$(fleet --json node show "$2" | grep -oE '"last_seen": ?"[^"]+"' | cut -d'"' -f4)
  [ "$(date -d "$at" +%s)" -gt "$1" ]
}
address_of() { fleet --json node show "$1" | grep -oE '10\.80\.[0-9]+\.[0-9]+' | head -1; }
reaches() { on "$1" ping -c1 -W2 "$2"; }
reaches_not() { ! on "$1" ping -c1 -W1 "$2"; }
not() { ! "$@"; }
tunnel_key() { on "$1" wg show wg0 public-key; }
# preshared NAMESPACE KEY: the preshared key of the peer with this public key, or (none).
preshared() { on "$1" wg show wg0 preshared-keys | awk -v key="$2" '$1 == key { print $2 }'; }
# share_preshared NAMESPACE HUB: whether both ends of the tunnel have the same preshared key.
share_preshared() {
  local there
  there=$(preshared "$2" "$(tunnel_key "$1")")
  [[ $there == *=* ]] && [ "$there" = "$(preshared "$1" "$(tunnel_key "$2")")" ]
}
# mtu NAMESPACE BYTES: whether the tunnel has this MTU.
mtu() { ip -n "$1" link show wg0 | grep -q "mtu $2 "; }

# lay_wire NAMESPACE…: each with eth0 192.0.2.N on one bridge, in the order given.
lay_wire() {
  local n i=1
  ip netns add net
  ip -n net link add br0 type bridge
  ip -n net link set br0 up
  for n in "$@"; do
    ip netns add "$n"
    ip link add eth0 netns "$n" type veth peer name "to-$n" netns net
    ip -n net link set "to-$n" master br0 up
    ip -n "$n" link set lo up
    ip -n "$n" link set eth0 up
    ip -n "$n" addr add "192.0.2.$i/24" dev eth0
    i=$((i + 1))
  done
}

# control_plane CONFIGURATION: writes its configuration, with these lines added, and starts it at 192.0.2.1.
control_plane() {
  cat >"$work/control.toml" <<TOML
[server]
listen = ["192.0.2.1:8443"]
public = "192.0.2.1:8443"
state_dir = "$work/control"
$1
TOML
  serve
  await 60 "the control plane made its keys and prints its pin" grep -q pin "$work/serve.out"
  pin=$(grep -oE 'sha256:[0-9a-f]{64}' "$work/serve.out" | head -1)
}
serve() {
  ip netns exec control "$control" --config "$work/control.toml" serve >"$work/serve.out" 2>>"$work/control.log" &
  running[control]=$!
}
# stop NAMESPACE [SIGNAL]: ends its process and waits for its exit.
stop() {
  kill "-${2:-TERM}" "${running[$1]}"
  wait "${running[$1]}" || true
  unset "running[$1]"
}

# start NAMESPACE ID ROLE TOKEN: a node with a token alone, and the configuration lines in $sections.
start() {
  # A file of its own: it is erased once the node is enrolled.
  install -m 600 "$work/$4.token" "$work/$1.enrolment"
  cat >"$work/$1.toml" <<TOML
[node]
id = "$2"
role = "$3"
state_dir = "$work/$1"
runtime_dir = "$work/$1/run"
[control]
url = "https://192.0.2.1:8443"
pin = "$pin"
token = "file:$work/$1.enrolment"
${control_options-report_every = \"5s\"
confirm_within = \"10s\"
spread = \"2s\"}
${sections-}
TOML
  resume "$1"
}
# resume NAMESPACE: starts it with the configuration it has.
resume() {
  ip netns exec "$1" "${program[$1]:-$spoke}" --config "$work/$1.toml" run 2>>"$work/$1.log" &
  running[$1]=$!
}
# command_of NAMESPACE ARGUMENT…: runs a command of the node's program.
command_of() { on "$1" "${program[$1]:-$spoke}" --config "$work/$1.toml" "${@:2}"; }

# one_network ACCESS: creates the network `field`, a hub in namespace `hub`, and a token for devices.
one_network() {
  fleet network create field --pool4 10.80.0.0/16 --access "$1"
  (umask 077 && fleet hub add hub-1 --network field --endpoint 192.0.2.2:51820 >"$work/hub.token")
  (umask 077 && fleet token create --network field --uses 9 >"$work/device.token")
  start hub hub-1 hub hub
}

# hub_and_two_devices: a fleet that is up and in agreement: edge-1 in namespace `device`, edge-2 in `other`.
hub_and_two_devices() {
  say "a hub and two devices"
  lay_wire control hub device other
  control_plane ""
  one_network open
  start device edge-1 node device
  start other edge-2 node device
  await 60 "device: tunnel up" is device healthy
  await 60 "other: tunnel up" is other healthy
  await 20 "the node list agrees" shows 'edge-1 .*healthy'
}

finish() {
  local log pid
  for pid in "${running[@]}"; do kill "$pid" 2>/dev/null || true; done
  if [ "$failures" != 0 ]; then
    for log in "$work"/*.log; do say "$log" && tail -60 "$log"; done
  fi
}
trap finish EXIT
