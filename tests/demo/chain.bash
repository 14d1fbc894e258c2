# shellcheck shell=bash
# A local EVM chain with the access contract; sourced in the test kernel after steps.bash.
# The chain runs in the namespace $chain_at; its HTTP endpoint is $chain_url.
anvil=${SPOKE_ANVIL:?names the local chain}
contracts=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../contracts" && pwd)

# start_chain NAMESPACE ADDRESS: starts it; sets $chain (its process), $operator and $contract.
start_chain() {
  chain_at=$1 chain_url=http://$2:8545
  ip netns exec "$chain_at" "$anvil" --silent --host "$2" --accounts 2 --slots-in-an-epoch 1 &
  # shellcheck disable=SC2034 # scenarios stop it
  chain=$!
  await 60 "the chain answers" ask eth_chainId '[]'
  operator=$(ask eth_accounts '[]' | grep -o '0x[0-9a-fA-F]\{40\}' | head -1)
  contract=$(transact "$(cat "$contracts/NodeAccess.hex")$(word 0)$(word 0)" |
    grep -o '"contractAddress":"0x[0-9a-f]*' | cut -d'"' -f4)
  holder=$(printf '%064s' "${operator#0x}" | tr ' ' 0)
}
# ask METHOD PARAMS: one JSON-RPC call; prints its result.
ask() {
  ip netns exec "$chain_at" curl -fsS -m 5 -H 'content-type: application/json' "$chain_url" \
    -d "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"$1\",\"params\":$2}" | sed 's/.*"result"://; s/}$//; s/^"//; s/"$//'
}
word() { printf '%064x' "$1"; }
# text WORDS TEXT: ABI string: length, then bytes padded to so many words.
text() { word "${#2}" && printf '%s' "$2" | od -An -v -tx1 | tr -d ' \n' | awk -v n=$(($1 * 64)) '{ printf "%s%0*d", $0, n - length($0), 0 }'; }
# transact DATA [TO]: prints the receipt.
transact() {
  local hash receipt
  hash=$(ask eth_sendTransaction "[{\"from\":\"$operator\",\"gas\":\"0x1000000\",\"data\":\"0x$1\"${2:+,\"to\":\"$2\"}}]")
  until receipt=$(ask eth_getTransactionReceipt "[\"$hash\"]") && [[ $receipt == *'"status":"0x1"'* ]]; do sleep 0.05; done
  echo "$receipt"
}
# mint NODE KEY [HOLDER]: grants access; token ids start at 1. A holder has one key: each further node needs its own holder.
mint() {
  transact "eb27f948${3:-$holder}$(word 128)$(word 192)$(word 288)$(text 1 "$1")$(text 2 "$2")$(word 0)" "$contract" >/dev/null
}
# revoke TOKEN
revoke() { transact "be1ba406$(word "$1")" "$contract" >/dev/null; }
