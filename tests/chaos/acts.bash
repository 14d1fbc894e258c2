# shellcheck shell=bash
# The acts of the chaos tier. Each is a function `act_NAME`, given the hub or device it is done to. It may leave a fault that
# `undo_NAME` ends after the devices have left the hub; without `undo_NAME` the fault ends by itself or is repaired by the product.
# shellcheck disable=SC2004,SC2034,SC2154 # an associative array of world.bash; for chaos.bash; from world.bash

# Done to a hub: every device must be at the other one within a minute.
hub_acts=(echo_dropped black_holed powered_off route_lost key_changed)
# Done to a device, to its NAT or to the control plane: every device must be connected again.
device_acts=(killed interface_deleted interface_route_lost carrier_flaps carrier_lost lifetimes nat_restarts route_lost_outside)
world_acts=(control_restarts hub_restarts clock_stepped)

firewall() {
  on "$1" nft -f - <<NFT
table inet fault { chain in { type filter hook input priority -5; $2 drop; }; }
NFT
}
open_again() { on "$1" nft delete table inet fault; }

# WireGuard of the hub responds, its inside does not.
act_echo_dropped() { firewall "$1" 'iifname "wg0" meta l4proto icmp'; }
undo_echo_dropped() { open_again "$1"; }
act_black_holed() { firewall "$1" 'udp dport 51820'; }
undo_black_holed() { open_again "$1"; }
act_powered_off() {
  stop "$1" KILL
  ip -n "$1" link del wg0
  firewall "$1" 'udp dport 51820'
}
undo_powered_off() {
  open_again "$1"
  resume "$1"
}
# The product may repair it: then no node has to leave.
act_route_lost() { ip -n "$1" route flush dev wg0; }

# A hub on a new card: another key, so that it is removed and added under its name. The devices get the key through the control plane.
act_key_changed() {
  stop "$1"
  ip -n "$1" link del wg0
  rm "$work/$1/wg0.key"
  resume "$1"
}
undo_key_changed() {
  local name=hub-${1#hub}
  fleet node remove "$name" --yes >/dev/null
  (umask 077 && fleet hub add "$name" --network field --endpoint "192.0.2.$((1 + ${1#hub})):51820" >"$work/$1.token")
  await 60 "$1: enrolled again with its new key" command_of "$1" enrol --again --token "$work/$1.token"
  await 60 "$1: the control plane has its new key" key_is_known "$1" "$name"
  address[$name]=$(address_of "$name")
}
# The devices have it from the same state; an act at the other hub leads them here.
key_is_known() { fleet --json node show "$2" | grep -qF "$(tunnel_key "$1")"; }

act_killed() {
  stop "$1" KILL
  resume "$1"
}
act_interface_deleted() {
  interface[$1]=
  ip -n "$1" link del wg0
}
act_interface_route_lost() {
  interface[$1]=
  ip -n "$1" route flush dev wg0
}
act_carrier_flaps() {
  local i
  for i in 1 2 3 4 5; do
    ip -n "nat${1#device}" link set lan down
    pause 1
    ip -n "nat${1#device}" link set lan up
    pause $((i % 3 + 1))
  done
}
act_carrier_lost() {
  ip -n "nat${1#device}" link set lan down
  pause $((60 + RANDOM % 600))
  ip -n "nat${1#device}" link set lan up
}
# As router advertisements and DHCP renewals do.
act_lifetimes() {
  local i
  for ((i = 0; i < 60; i++)); do
    ip -n "$1" addr change "10.0.${1#device}.2/24" dev eth0 valid_lft $((3600 + i)) preferred_lft 3600
    pause 1
  done
  ip -n "$1" addr change "10.0.${1#device}.2/24" dev eth0 valid_lft forever preferred_lft forever
}
# Every binding is lost; new ones get other ports.
act_nat_restarts() {
  on "nat${1#device}" nft delete table ip nat
  ip -n "nat${1#device}" link set eth0 down
  pause 5
  ip -n "nat${1#device}" link set eth0 up
  masquerade "nat${1#device}"
}
act_route_lost_outside() {
  ip -n "$1" route del default
  pause $((20 + RANDOM % 200))
  ip -n "$1" route add default via "10.0.${1#device}.1"
}
act_control_restarts() {
  stop control KILL
  pause $((RANDOM % 300))
  serve
}
act_hub_restarts() {
  stop hub1 KILL
  ip -n hub1 link del wg0
  pause $((RANDOM % 20))
  resume hub1
}
# A clock that is ahead for three minutes: the handshakes meanwhile carry a time that has not come, and the hubs refuse later ones.
# One clock for all in this kernel: the control plane takes part.
act_clock_stepped() {
  date -u -s "@$(($(date +%s) + 7200))" >/dev/null
  pause 180
  date -u -s "@$(($(date +%s) - 7200))" >/dev/null
  # Sessions end, and the next handshakes are older than those that the hubs remember.
  pause 300
}
# A hub that is not needed meanwhile refuses the older handshakes until the time they carried; a later act would meet two faults.
undo_clock_stepped() { pause 7200; }
