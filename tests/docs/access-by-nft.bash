# shellcheck shell=bash
# shellcheck disable=SC2154 # from world.bash and chain.bash
# The machine of docs/access-by-nft.md: a hub whose peers a contract on a local chain grants, and one client with a grant.
await() { within "$1" "${@:3}"; }
# The chain's calls run in a namespace; here it is this machine's own.
ip netns attach this $$
export SPOKE_ANVIL=/usr/lib/tests/anvil
# shellcheck source=tests/demo/chain.bash
. "$docs/../demo/chain.bash"
start_chain this 127.0.0.1
wg genkey | tee client-1.key | wg pubkey >client-1.pub
mint client-1 "$(cat client-1.pub)"
install_spoke
cat >/etc/spoke/spoke.toml <<TOML
[node]
id = "gate"
role = "hub"
[grants]
contract = "$contract"
chain_id = 31337
endpoints = ["http://127.0.0.1:8545"]
finality = "latest"
[[interface]]
name = "wg0"
listen_port = 51820
addresses = ["10.9.0.1/24"]
access = "nft"
[[interface.peer]]
node_id = "client-1"
public_key = "$(cat client-1.pub)"
allowed_ips = ["10.9.0.2/32"]
TOML
systemctl start spoke
admitted() { wg show wg0 peers | grep -qxF "$(cat client-1.pub)"; }
within 30 admitted
