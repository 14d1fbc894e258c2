# shellcheck shell=bash
# The machine of docs/access-by-nft.md: Spoke is installed, and npm's programs are there.
export SPOKE_ANVIL=/usr/lib/tests/anvil
install_spoke
admitted() { wg show wg0 peers | grep -qxF "$(cat client-1.pub)"; }
denied() { ! admitted; }
