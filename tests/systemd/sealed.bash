#!/usr/bin/env bash
# Keys sealed to a device's TPM 2.0 by systemd-creds, with swtpm as the TPM: the device itself opens them, a thief who puts its card
# into another device does not.
#   tests/systemd/sealed.bash SPOKE      (by scripts/test-systemd)
set -euo pipefail
spoke=$(realpath "$1")
work=$(mktemp -d)
declare -a tpms=()
finish() {
  [ ${#tpms[@]} = 0 ] || kill "${tpms[@]}" 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT
failed=0
claim() {
  local what=$1 output
  shift
  if output=$("$@" 2>&1); then
    echo "ok - sealed: $what"
  else
    failed=1
    echo "not ok - sealed: $what"
    printf '    %s\n' "$*" "$output"
  fi
}
fails() { ! "$@"; }

# device NAME: a TPM of its own.
device() {
  mkdir "$work/$1"
  swtpm socket --tpm2 --tpmstate dir="$work/$1" --server type=unixio,path="$work/$1/tpm" \
    --ctrl type=unixio,path="$work/$1/tpm.ctrl" --flags not-need-init,startup-clear --daemon --pid file="$work/$1/pid"
  tpms+=("$(cat "$work/$1/pid")")
}
tcti() { echo "swtpm:path=$work/$1/tpm"; }

card=$work/card
mkdir -p "$card/credstore.encrypted"
device own
device other
umask 077
"$spoke" key generate >"$work/key"
head -c 32 /dev/urandom | base64 >"$work/identity"
public=$("$spoke" key public <"$work/key")
for name in key identity; do
  systemd-creds encrypt --with-key=tpm2 --tpm2-device="$(tcti own)" --name="spoke.$name" "$work/$name" \
    "$card/credstore.encrypted/spoke.$name" 2>/dev/null
done
cat >"$card/spoke.toml" <<TOML
[node]
id = "edge-1"
state_dir = "$card/state"
[control]
url = "https://control.example.net"
identity = "credential:spoke.identity"
[[interface]]
name = "wg0"
private_key = "credential:spoke.key"
TOML

# unseal DEVICE: what the service manager of a device with this TPM gives to the service, in $work/DEVICE.credentials.
unseal() {
  local name
  mkdir -p "$work/$1.credentials"
  for name in key identity; do
    systemd-creds decrypt --tpm2-device="$(tcti "$1")" --name="spoke.$name" "$card/credstore.encrypted/spoke.$name" \
      "$work/$1.credentials/spoke.$name" || return
  done
}
# key_of DEVICE: the public key that Spoke has there.
key_of() { CREDENTIALS_DIRECTORY=$work/$1.credentials "$spoke" --config "$card/spoke.toml" key public --interface wg0; }
is_own() { [ "$(key_of own)" = "$public" ]; }
has_secret() { grep -rqF -e "$(cat "$work/key")" -e "$(cat "$work/identity")" "$card"; }

claim "the configuration with sealed keys is valid" "$spoke" --config "$card/spoke.toml" check
claim "the device opens its keys" unseal own
claim "its tunnel has the sealed key" is_own
claim "the card holds neither key in clear" fails has_secret
claim "another device does not open them" fails unseal other
claim "Spoke has no key there" fails key_of other
mv "$card/credstore.encrypted/spoke.identity" "$card/credstore.encrypted/spoke.key"
claim "one sealed key does not pass for the other" fails unseal own
exit "$failed"
