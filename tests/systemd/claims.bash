# shellcheck shell=bash
# What the scenarios under systemd are told with; each scenario sources it as /usr/lib/claims.bash in the guest.
# A claim that does not hold is said at once and the scenario goes on; `end_claims` gives its status.

claims=0 broken=0

# claim WORDS COMMAND…: WORDS hold if COMMAND succeeds; its output is shown when it does not.
claim() {
  local words=$1 said
  shift
  claims=$((claims + 1))
  if said=$("$@" 2>&1); then
    echo "ok - $words"
  else
    broken=$((broken + 1))
    echo "not ok - $words"
    printf '    %s\n' "$*" "$said"
  fi
}

# claim_within SECONDS WORDS COMMAND…: COMMAND succeeds once within SECONDS. For what nothing announces; a unit's start,
# which systemctl waits for, needs no such patience.
claim_within() {
  local until=$((SECONDS + $1)) words=$2
  shift 2
  until "$@" >/dev/null 2>&1 || [ "$SECONDS" -ge "$until" ]; do sleep 0.1; done
  claim "$words" "$@"
}

# is VALUE COMMAND…: COMMAND prints VALUE.
is() {
  local value=$1 said
  shift
  said=$("$@") || return
  if [ "$said" != "$value" ]; then
    echo "expected '$value', got '$said'"
    return 1
  fi
}

# quietly COMMAND…: COMMAND succeeds without a word.
quietly() {
  local said
  said=$("$@" 2>&1) || { echo "$said"; return 1; }
  is '' echo "$said"
}

# fails COMMAND…: COMMAND exits with a status other than 0.
fails() { ! "$@"; }

# property NAME [UNIT]: one property of a unit, without its name.
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

# admit PUBLIC-KEY ADDRESS: lets a device be the hub's peer.
admit() { ip netns exec hub wg set wg0 peer "$1" allowed-ips "$2/32"; }

end_claims() {
  [ "$claims" -gt 0 ] || { echo "not ok - the scenario claimed nothing"; exit 1; }
  exit $((broken > 0))
}
