#!/usr/bin/env bash
# Access by NFT, in the test kernel: a local chain, a gate that admits granted peers, and a client that is admitted, stays during
# a chain outage and is removed from the kernel when its access is revoked.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/steps.bash"
. "$here/chain.bash"
work=$(mktemp -d)
spoke=${SPOKE_BIN:?names the spoke binary}
export HOME=$work

on() { ip netns exec "$@"; }
health() { on gate curl -fsS -m 2 http://127.0.0.1:8080/health; }
health_has() { [[ $(health) == *"$1"* ]]; }
health_lacks() { ! health_has "$1"; }
is_peer() { on gate wg show wg0 peers | grep -qxF "$client_key"; }
no_peer() { ! is_peer; }
ping_client() { on gate ping -c1 -W2 10.9.0.2; }

say "a gate, a client, and a chain beside the gate"
ip netns add gate
ip netns add client
ip link add eth0 netns gate type veth peer name eth0 netns client
for n in gate client; do ip -n $n link set lo up && ip -n $n link set eth0 up; done
ip -n gate addr add 192.0.2.1/24 dev eth0
ip -n client addr add 192.0.2.2/24 dev eth0
start_chain gate 127.0.0.1

say "the client, made with wireguard-tools"
(umask 077 && wg genkey >"$work/client.key")
client_key=$(wg pubkey <"$work/client.key")
ip -n client link add wg0 type wireguard
on client wg set wg0 listen-port 51821 private-key "$work/client.key"
ip -n client addr add 10.9.0.2/24 dev wg0
ip -n client link set wg0 up

say "the gate, from its configuration alone"
cat >"$work/spoke.toml" <<TOML
[node]
id = "gate"
role = "hub"
state_dir = "$work/state"
runtime_dir = "$work/run"
[grants]
contract = "$contract"
chain_id = 31337
endpoints = ["http://127.0.0.1:8545"]
finality = "latest"
poll = "1s"
timeout = "2s"
fresh = "5s"
[[interface]]
name = "wg0"
listen_port = 51820
addresses = ["10.9.0.1/24"]
access = "nft"
[[interface.peer]]
node_id = "client"
public_key = "$client_key"
allowed_ips = ["10.9.0.2/32"]
TOML
"$spoke" --config "$work/spoke.toml" check >/dev/null
ip netns exec gate "$spoke" --config "$work/spoke.toml" run 2>"$work/log" &
gate=$!
finish() {
  kill -CONT "$chain" 2>/dev/null || true
  kill "$gate" "$chain" 2>/dev/null || true
  if [ "$failures" != 0 ]; then
    say "the gate's log" && cat "$work/log"
  fi
}
trap finish EXIT
await 15 "the gate is up" on gate curl -fsS -m 2 http://127.0.0.1:8080/ready
await 5 "without a grant the client is no peer" no_peer
on client wg set wg0 peer "$("$spoke" --config "$work/spoke.toml" key public --interface wg0)" \
  allowed-ips 10.9.0.1/32 endpoint 192.0.2.1:51820 persistent-keepalive 5

say "access is minted"
mint client "$client_key"
await 20 "the client is a peer in the kernel" is_peer
await 20 "a ping from the gate reaches the client" ping_client

say "chain outage"
kill -STOP "$chain"
await 20 "health is degraded with code contract_away" health_has contract_away
await 5 "the client is still a peer" is_peer
await 5 "a ping still reaches it" ping_client
kill -CONT "$chain"
await 30 "the condition clears" health_lacks contract_away

say "access is revoked"
revoke 1
await 20 "the client is removed from the kernel" no_peer

say "spoke grants list"
"$spoke" --config "$work/spoke.toml" grants list
table
