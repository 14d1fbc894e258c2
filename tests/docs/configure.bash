# shellcheck shell=bash
# The machine of docs/configure.md: Spoke is installed, with the reference configuration.
install_spoke
install -m 644 systemd/spoke.toml /etc/spoke/spoke.toml
wireguard_hub
