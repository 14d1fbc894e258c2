# shellcheck shell=bash
# The machine of docs/security.md: both programs with their units.
install_spoke
install_control
