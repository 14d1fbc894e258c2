# shellcheck shell=bash
# The machine of docs/networks.md: a connected device.
device
