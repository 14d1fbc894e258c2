# shellcheck shell=bash
# Assertions of the systemd scenarios, which source it as /usr/lib/claims.bash in the guest.
# A failed claim is reported at once and the scenario goes on; `end_claims` exits with its status.

claims=0 broken=0

# claim WHAT COMMAND…: holds if COMMAND succeeds; prints its output if not.
claim() {
  local what=$1 output
  shift
  claims=$((claims + 1))
  if output=$("$@" 2>&1); then
    echo "ok - $what"
  else
    broken=$((broken + 1))
    echo "not ok - $what"
    printf '    %s\n' "$*" "$output"
  fi
}

# claim_within SECONDS WHAT COMMAND…: polls until COMMAND succeeds. For changes without an event to wait for; systemctl waits for
# the start of a unit.
claim_within() {
  local until=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1 || [ "$SECONDS" -ge "$until" ]; do sleep 0.1; done
  claim "$what" "$@"
}

# is VALUE COMMAND…: COMMAND prints VALUE.
is() {
  local value=$1 output
  shift
  output=$("$@") || return
  if [ "$output" != "$value" ]; then
    echo "expected '$value', got '$output'"
    return 1
  fi
}

# quietly COMMAND…: COMMAND succeeds and prints nothing.
quietly() {
  local output
  output=$("$@" 2>&1) || { echo "$output"; return 1; }
  is '' echo "$output"
}

# fails COMMAND…: COMMAND exits with a status other than 0.
fails() { ! "$@"; }

# property NAME [UNIT]: the value of a unit's property.
property() { systemctl show --value --property "$1" "${2:-spoke.service}"; }

# drop_in NAME LINE…: overrides settings of spoke.service.
drop_in() {
  local name=$1
  shift
  mkdir -p /etc/systemd/system/spoke.service.d
  printf '%s\n' '[Service]' "$@" >"/etc/systemd/system/spoke.service.d/$name.conf"
  systemctl daemon-reload
}

# make_hub: a hub made with wireguard-tools in the namespace `hub`: wan 192.0.2.1, tunnel address 10.9.0.1, port 51820.
# The device's end of the wire is `wan`, 192.0.2.2. Prints the hub's public key.
make_hub() {
  local key
  ip netns add hub
  ip link add wan type veth peer name wan netns hub
  ip addr add 192.0.2.2/24 dev wan
  ip link set wan up
  ip -n hub addr add 192.0.2.1/24 dev wan
  ip -n hub link set wan up
  ip -n hub link set lo up
  key=$(wg genkey)
  ip -n hub link add wg0 type wireguard
  ip netns exec hub wg set wg0 listen-port 51820 private-key <(echo "$key")
  ip -n hub addr add 10.9.0.1/24 dev wg0
  ip -n hub link set wg0 up
  wg pubkey <<<"$key"
}

# admit PUBLIC-KEY ADDRESS: adds a device to the hub's peers.
admit() { ip netns exec hub wg set wg0 peer "$1" allowed-ips "$2/32"; }

end_claims() {
  [ "$claims" -gt 0 ] || { echo "not ok - the scenario has no claims"; exit 1; }
  exit $((broken > 0))
}
