#!/usr/bin/env bash
# The control plane names the contract and the hub verifies grants itself: a peer that the control plane lists and the contract
# does not grant is not admitted.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../demo/steps.bash"
. "$here/../demo/chain.bash"
. "$here/lab.bash"

say "a chain, an open network, and a hub that asks for grants and knows no contract"
lay_wire control hub device-1 device-2 chain
start_chain chain 192.0.2.5
# shellcheck disable=SC2154 # set by start_chain
running[chain]=$chain
control_plane ""
sections='[[interface]]
name = "wg0"
listen_port = 51820
access = "nft"'
one_network open
unset sections
no_contract() { command_of hub status | grep -F "names no contract"; }
await 30 "the hub refuses a state without a contract" no_contract
no_peers() { [ -z "$(on hub wg show wg0 peers)" ]; }
check "its interface has no peers" no_peers

say "the network gets a policy"
policy() { # CHAIN-ID
  cat >"$work/policy.toml" <<TOML
[grants]
contract = "$contract"
chain_id = $1
endpoints = ["$chain_url"]
finality = "latest"
poll = "1s"
timeout = "2s"
TOML
}
policy 31337
sed 's/^chain_id = .*/chain_id = 0/' "$work/policy.toml" >"$work/bad.toml"
check "an invalid policy is refused" not fleet network set field --grants "$work/bad.toml"
fleet network set field --grants "$work/policy.toml"
await 20 "the hub is up with it" is hub healthy
start device-1 edge-1 node device
start device-2 edge-2 node device
await 30 "device 1 is in the fleet" shows 'edge-1 .*active .*10\.80\.'
await 30 "device 2 as well" shows 'edge-2 .*active .*10\.80\.'
mint edge-1 "$(tunnel_key device-1)"
is_peer() { on hub wg show wg0 peers | grep -qxF "$1"; }
one=$(tunnel_key device-1) two=$(tunnel_key device-2)
await 30 "device 1 is granted: it is a peer" is_peer "$one"
await 60 "device 1: tunnel up" is device-1 healthy
check "device 2, without a grant, is no peer" not is_peer "$two"
mint edge-2 "$two" "$(word 0x5b0ce)"
await 30 "device 2 is granted: it is a peer" is_peer "$two"

say "a policy whose chain id no endpoint has"
policy 8453
fleet network set field --grants "$work/policy.toml"
wrong_chain() { [[ $(health hub) == *"grants.chain_id (8453)"* ]]; }
await 30 "the hub applies it and reports the mismatch" wrong_chain
check "device 1 is still a peer" is_peer "$one"
check "device 2 is still a peer" is_peer "$two"
policy 31337
fleet network set field --grants "$work/policy.toml"
await 30 "with the right chain id the hub is healthy" is hub healthy
revoke 2
await 30 "a revoked device 2 is removed" not is_peer "$two"
check "device 1 still is" is_peer "$one"
table
