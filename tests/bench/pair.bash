# shellcheck shell=bash
# A hub and a device on one cable, each in a network namespace of the test kernel; sourced.
on() { ip netns exec "$@"; }

# make_pair STATE: configures the hub's end of the tunnel, writes the device's key to STATE and ./spoke.toml; sets the public keys
# hub_key and device_key.
make_pair() {
  local n state
  state=$(realpath "$1")
  ip netns add hub
  ip netns add device
  ip link add eth0 netns hub type veth peer name eth0 netns device
  for n in hub device; do ip -n $n link set lo up && ip -n $n link set eth0 up; done
  ip -n hub addr add 192.0.2.1/24 dev eth0
  ip -n device addr add 192.0.2.2/24 dev eth0
  umask 077
  wg genkey >hub.key
  wg genkey >"$state/wg0.key"
  hub_key=$(wg pubkey <hub.key)
  device_key=$(wg pubkey <"$state/wg0.key")
  ip -n hub link add wg0 type wireguard
  on hub wg set wg0 listen-port 51820 private-key hub.key peer "$device_key" allowed-ips 10.8.0.2/32
  ip -n hub addr add 10.8.0.1/24 dev wg0
  ip -n hub link set wg0 up
  cat >spoke.toml <<TOML
[node]
state_dir = "$state"
runtime_dir = "$PWD/run"
[[interface]]
name = "wg0"
addresses = ["10.8.0.2/24"]
[uplink]
interface = "wg0"
[[uplink.hub]]
public_key = "$hub_key"
endpoint = "192.0.2.1:51820"
address = "10.8.0.1"
allowed_ips = ["10.8.0.0/24"]
TOML
}
