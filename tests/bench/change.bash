#!/usr/bin/env bash
# Measures `spoke config rollback` of changes of so many peers, and the size of the store; run in the test kernel.
#   change.bash [PEERS…]
set -euo pipefail
spoke=${SPOKE_BIN:?names the spoke binary}
work=$(mktemp -d)
secret=k7GqP2vXc9LmR4tZw8BnY1sDf6HjA3eU
runs=5
umask 077
printf %s "$secret" >"$work/secret"
cat >"$work/spoke.toml" <<TOML
[node]
role = "hub"
state_dir = "$work/state"
runtime_dir = "$work/run"
[health]
enabled = false
[agent]
enabled = true
secret = "file:$work/secret"
max_body = 8388608
[[interface]]
name = "wg0"
listen_port = 51820
addresses = ["10.0.0.1/8"]
TOML
ip netns add hub
ip -n hub link set lo up
on() { ip netns exec hub "$@"; }
run() { on "$spoke" --config "$work/spoke.toml" "$@"; }
on "$spoke" --config "$work/spoke.toml" run 2>"$work/log" &
pid=$!
trap 'kill $pid' EXIT
until run status >/dev/null 2>&1; do read -rt 0.05 <> <(:) || true; done

# syncconf PEERS: peers 1 to PEERS and no others.
syncconf() {
  local time body
  # One process: starting ten thousand takes minutes in this kernel.
  /usr/bin/python3 -c '
import base64, sys
for n in range(1, int(sys.argv[1]) + 1):
    key = base64.b64encode(b"%032d" % n).decode()
    print(f"[Peer]\nPublicKey = {key}\nAllowedIPs = 10.{n >> 8}.{n & 255}.0/24")' "$1" >"$work/conf"
  time=$(date +%s)
  printf '{"config": "%s"}' "$(base64 -w0 "$work/conf")" >"$work/body"
  body=$({ printf 'POST|/v1/wg/wg0/syncconf|'; cat "$work/body"; printf '|%s' "$time"; } | openssl dgst -sha256 -hmac "$secret" -r)
  until on curl -sf -o /dev/null --data-binary "@$work/body" -H "X-Timestamp: $time" -H "X-Signature: ${body%% *}" \
    http://127.0.0.1:8081/v1/wg/wg0/syncconf; do read -rt 0.1 <> <(:) || true; done
}

# Reference: the same program and socket without a change.
times=()
for ((i = 0; i < runs; i++)); do
  start=${EPOCHREALTIME/./}
  run config history >/dev/null
  times+=($((${EPOCHREALTIME/./} - start)))
done
mapfile -t times < <(printf '%s\n' "${times[@]}" | sort -n)
printf '%-44s %10s %10s %12s\n' "peers changed and rolled back" "median" "longest" "store"
printf '%-44s %7d ms %7d ms\n' "(config history, which changes nothing)" $((times[runs / 2] / 1000)) $((times[runs - 1] / 1000))
for peers in "$@"; do
  syncconf 0
  syncconf "$peers"
  times=()
  for ((i = 0; i < runs; i++)); do
    start=${EPOCHREALTIME/./}
    run config rollback >/dev/null
    times+=($((${EPOCHREALTIME/./} - start)))
    have=$(on wg show wg0 peers | wc -l)
    [ "$have" = $((i % 2 == 0 ? 0 : peers)) ] || { echo "rolled back to $have peers" >&2; exit 1; }
  done
  mapfile -t times < <(printf '%s\n' "${times[@]}" | sort -n)
  printf '%-44s %7d ms %7d ms %8d KiB\n' "$peers" $((times[runs / 2] / 1000)) $((times[runs - 1] / 1000)) \
    $(($(stat -c %s "$work/state/changes.journal") / 1024))
done
