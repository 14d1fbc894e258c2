# shellcheck shell=bash
# The machine of docs/operate-and-troubleshoot.md: a connected device with the agent API, for a change to undo.
install_spoke
install -d -o spoke -m 700 /var/lib/spoke
(umask 077 && openssl rand -base64 32 >/var/lib/spoke/agent.secret) && chown spoke /var/lib/spoke/agent.secret
device '[agent]
enabled = true
secret = "file:/var/lib/spoke/agent.secret"'
# change_by_api: a panel adds a peer.
change_by_api() {
  local at body path=/v1/wg/wg0/peers
  body='{"public_key": "gL9MIhpbgYcBdJHJ9cdTLoCzRXOg0tDmpmFmKTN6FlA=", "allowed_ips": ["10.9.0.9/32"]}'
  at=$(date +%s)
  within 20 curl -fsS http://127.0.0.1:8081/health
  curl -fsS -H "X-Timestamp: $at" --data-raw "$body" "http://127.0.0.1:8081$path" \
    -H "X-Signature: $(printf 'POST|%s|%s|%s' "$path" "$body" "$at" | openssl dgst -sha256 -hmac "$(cat /var/lib/spoke/agent.secret)" -r | cut -d' ' -f1)"
}
