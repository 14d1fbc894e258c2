# shellcheck shell=bash
# shellcheck disable=SC2154 # from world.bash
# The machine of docs/install.md: a Debian without Spoke. What the reader edits, and the hub, come while the page is run.
shortest_configuration() {
  cat >/etc/spoke/spoke.toml <<TOML
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
TOML
}
hub_is_up() { wireguard_hub; }
