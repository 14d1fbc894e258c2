# shellcheck shell=bash
# The machine of docs/agent-api.md: a connected device.
device
