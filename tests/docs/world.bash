# shellcheck shell=bash
# The machine that a page's blocks run on, and the machines around it; sourced by every scenario that pages.py makes.
export HOME=/root LC_ALL=C
docs=/usr/lib/tests/docs
cd /root/spoke || exit

# within SECONDS COMMAND…: until it succeeds.
within() {
  local until=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    if [ "$SECONDS" -ge "$until" ]; then
      echo "waited in vain for: $*"
      "$@"
      return 1
    fi
    sleep 0.2
  done
}
# The guest has no sudo: `sudo COMMAND` and `sudo -u USER COMMAND`.
sudo() {
  if [ "$1" = -u ]; then runuser -u "$2" -- "${@:3}"; else "$@"; fi
}
health() { curl -fsS -m 2 http://127.0.0.1:8080/health; }
# is VERDICT: what the node of this machine says of itself.
is() { [[ $(health) == "{\"status\":\"$1\""* ]]; }

# wire NAME ADDRESS: a machine `NAME` as a namespace, on one network with this machine (192.0.2.2).
wire() {
  if ! ip link show br0 >/dev/null 2>&1; then
    ip link add br0 type bridge
    ip addr add 192.0.2.2/24 dev br0
    ip link set br0 up
  fi
  ip netns add "$1"
  ip link add "to-$1" type veth peer name wan netns "$1"
  ip link set "to-$1" master br0 up
  ip -n "$1" addr add "$2/24" dev wan
  ip -n "$1" link set wan up
  ip -n "$1" link set lo up
}

# wireguard_hub: the hub of the examples, made with wireguard-tools: hub-a.example.net, 10.8.0.1. It admits this machine's wg0.
wireguard_hub() {
  wire hub 192.0.2.1
  echo "192.0.2.1 hub-a.example.net" >>/etc/hosts
  ip -n hub link add wg0 type wireguard
  ip netns exec hub wg set wg0 listen-port 51820 private-key "$docs/hub-a.key"
  ip -n hub addr add 10.8.0.1/24 dev wg0
  ip -n hub link set wg0 up
  (
    while sleep 0.2; do
      key=$(wg show wg0 public-key 2>/dev/null) || continue
      ip netns exec hub wg set wg0 peer "$key" allowed-ips 10.8.0.17/32
    done
  ) </dev/null >/dev/null 2>&1 &
}

# install_spoke, install_control: as docs/install.md and docs/fleet.md have it.
install_spoke() {
  install -m 755 target/release/spoke /usr/bin/spoke
  mkdir -p /etc/spoke
  install -m 644 systemd/spoke.service systemd/spoke-clock.service /etc/systemd/system/
  install -m 644 systemd/sysusers.d/spoke.conf /usr/lib/sysusers.d/ && systemd-sysusers
  install -m 644 systemd/tmpfiles.d/spoke.conf /usr/lib/tmpfiles.d/ && systemd-tmpfiles --create
}
install_control() {
  install -m 755 target/release/spoke-control /usr/bin/spoke-control
  mkdir -p /etc/spoke-control
  echo "192.0.2.2 control.example.net" >>/etc/hosts
  install -m 644 systemd/spoke-control.service /etc/systemd/system/
  install -m 644 systemd/sysusers.d/spoke-control.conf /usr/lib/sysusers.d/ && systemd-sysusers
}

# device: this machine is the device of docs/configure.md, connected to the hub. SECTIONS is added to its configuration.
device() {
  install_spoke
  wireguard_hub
  cat >/etc/spoke/spoke.toml <<TOML
[node]
id = "edge-17"
[[interface]]
name = "wg0"
addresses = ["10.8.0.17/24"]
[uplink]
interface = "wg0"
[[uplink.hub]]
name = "hub-a"
public_key = "$(wg pubkey <"$docs/hub-a.key")"
endpoint = "hub-a.example.net:51820"
address = "10.8.0.1"
allowed_ips = ["10.8.0.0/24"]
${1:-}
TOML
  systemctl start spoke
  within 60 is healthy
}
