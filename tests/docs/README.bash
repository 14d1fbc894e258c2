# shellcheck shell=bash
# The machine of README.md: a Debian without Spoke, and the hub of its configuration.
wireguard_hub
