# shellcheck shell=bash
# The world of the chaos tier: a control plane, two hubs, three devices, each behind a NAT of its own, on one wire. Sourced after
# lab.bash.
# shellcheck disable=SC2034,SC2154 # for chaos.bash; from lab.bash
devices=(device1 device2 device3)
declare -A hub_namespace=([hub-1]=hub1 [hub-2]=hub2)

# A NAT between the wire and a device: nat1 has 10.0.1.1, device1 10.0.1.2.
lay_nat() {
  local n=$1
  ip netns add "device$n"
  ip -n "device$n" link set lo up
  ip link add lan netns "nat$n" type veth peer name eth0 netns "device$n"
  ip -n "nat$n" addr add "10.0.$n.1/24" dev lan
  ip -n "nat$n" link set lan up
  ip -n "device$n" addr add "10.0.$n.2/24" dev eth0
  ip -n "device$n" link set eth0 up
  ip -n "device$n" route add default via "10.0.$n.1"
  on "nat$n" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
  masquerade "nat$n"
}
masquerade() {
  on "$1" nft -f - <<'NFT'
table ip nat {
  chain out { type nat hook postrouting priority 100; oifname "eth0" masquerade random; }
}
NFT
}

# What belongs to others and must stay. `plant` sets it up, `kept` holds it against what was planted.
plant_machine() {
  ip -n "$1" link add mine type dummy
  ip -n "$1" addr add 172.20.0.1/24 dev mine
  ip -n "$1" link set mine up
  ip -n "$1" route add 172.21.0.0/16 via 172.20.0.2 dev mine
  ip -n "$1" rule add from 172.20.0.0/24 lookup 77 priority 700
  ip -n "$1" route add default dev mine table 77
  on "$1" sh -c 'echo 2 >/proc/sys/net/ipv4/conf/mine/rp_filter'
  on "$1" nft -f - <<'NFT'
table inet mine { chain in { type filter hook input priority 10; policy accept; udp dport 7777 drop; }; }
NFT
  echo "of the machine's owner" >"$work/$1/mine"
}
# What lies on the tunnel's interface goes with it when an act deletes that.
plant_interface() {
  on "$1" tc qdisc replace dev wg0 root pfifo limit 77
  ip -n "$1" route replace 172.22.0.0/16 dev wg0
  on "$1" sh -c 'echo 2 >/proc/sys/net/ipv4/conf/wg0/rp_filter'
}
machine_of() {
  on "$1" sh -c 'ip -4 -o addr show dev mine; ip route show dev mine; ip route show table 77; ip rule show priority 700
    cat /proc/sys/net/ipv4/conf/mine/rp_filter; nft list table inet mine'
  cat "$work/$1/mine"
}
interface_of() {
  on "$1" sh -c 'tc qdisc show dev wg0; ip route show 172.22.0.0/16; cat /proc/sys/net/ipv4/conf/wg0/rp_filter'
}
declare -A machine=() interface=()
remember() { interface[$1]=$(interface_of "$1" 2>&1); }
kept() {
  local seen
  seen=$(machine_of "$1" 2>&1)
  [ "$seen" = "${machine[$1]}" ] || { diff <(echo "${machine[$1]}") <(echo "$seen"); return 1; }
  [ -n "${interface[$1]}" ] || return 0
  seen=$(interface_of "$1" 2>&1)
  [ "$seen" = "${interface[$1]}" ] || { diff <(echo "${interface[$1]}") <(echo "$seen"); return 1; }
}

# hub_of DEVICE: the hub that it reports a proven tunnel to; nothing without one.
hub_of() { command_of "$1" status --json | jq -r 'select(.uplink.state == "up" and .uplink.hub_answers) | .uplink.hub'; }
# connected DEVICE: whether it reports a tunnel and packets pass it.
connected() {
  local hub
  hub=$(hub_of "$1") && [ -n "$hub" ] && reaches "$1" "${address[$hub]}"
}
# elsewhere DEVICE HUB: whether its tunnel is at another hub than HUB, and packets pass.
elsewhere() {
  local hub
  hub=$(hub_of "$1") && [ -n "$hub" ] && [ "$hub" != "$2" ] && reaches "$1" "${address[$hub]}"
}
all() {
  local device
  for device in "${devices[@]}"; do "$1" "$device" "${@:2}" >/dev/null 2>&1 || return 1; done
}

world() {
  local n
  lay_wire control hub1 hub2 nat1 nat2 nat3
  for n in 1 2 3; do lay_nat "$n"; done
  control_plane ""
  fleet network create field --pool4 10.80.0.0/16 --access open
  (umask 077 && fleet hub add hub-1 --network field --endpoint 192.0.2.2:51820 >"$work/hub1.token")
  (umask 077 && fleet hub add hub-2 --network field --endpoint 192.0.2.3:51820 >"$work/hub2.token")
  (umask 077 && fleet token create --network field --uses 9 >"$work/device.token")
  start hub1 hub-1 hub hub1
  start hub2 hub-2 hub hub2
  for n in 1 2 3; do start "device$n" "edge-$n" node device; done
  declare -gA address=()
  await 120 "every device has a tunnel" all has_tunnel
  for n in 1 2; do address[hub-$n]=$(address_of "hub-$n"); done
  await 60 "packets pass every tunnel" all connected
  for n in "${devices[@]}"; do
    plant_machine "$n"
    plant_interface "$n"
    machine[$n]=$(machine_of "$n")
    remember "$n"
  done
}
has_tunnel() { [ -n "$(hub_of "$1")" ]; }
