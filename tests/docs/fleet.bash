# shellcheck shell=bash
# The machine of docs/fleet.md: it becomes the control plane, and is the device `edge-17` as well; the hub is a namespace.
wire hub-1 192.0.2.1
printf '192.0.2.1 hub-1.example.net\n192.0.2.2 control.example.net\n' >>/etc/hosts
install_spoke

# node_with_token ID ROLE DIRECTORY TOKEN: its configuration.
node_with_token() {
  cat <<TOML
[node]
id = "$1"
role = "$2"
state_dir = "$3"
runtime_dir = "$3/run"
[control]
url = "https://control.example.net:8443"
pin = "$(journalctl -u spoke-control | grep -oE 'sha256:[0-9a-f]{64}' | head -1)"
token = "file:$4"
TOML
}
# What the reader does on two other machines, between two blocks.
hub_and_device_enrol() {
  mkdir -m 700 /var/lib/hub-1
  chmod 600 hub-1.token enrolment.token
  install -o spoke -m 600 enrolment.token /etc/spoke/enrolment.token
  node_with_token hub-1 hub /var/lib/hub-1 "$PWD/hub-1.token" >hub-1.toml
  ip netns exec hub-1 /usr/bin/spoke --config hub-1.toml run </dev/null >/dev/null 2>&1 &
  node_with_token edge-17 node /var/lib/spoke /etc/spoke/enrolment.token | grep -v _dir >/etc/spoke/spoke.toml
  within 60 hub_is_active
}
hub_is_active() { sudo -u spoke-control spoke-control node list | grep 'hub-1 .*active'; }
node_is_healthy() { sudo -u spoke-control spoke-control node list | grep 'edge-17 .* healthy'; }
