#!/bin/bash
# Secrets from systemd's credential store reach the service, and only it; what is missing is an error that says so.
# shellcheck source=tests/systemd/story.bash
. /usr/lib/story.bash

in_log() { journalctl --unit spoke.service | grep -F -e "$key" -e "$psk"; }

systemd-sysusers /usr/lib/sysusers.d/spoke.conf
systemd-tmpfiles --create /usr/lib/tmpfiles.d/spoke.conf
hub=$(make_hub)
key=$(wg genkey) psk=$(wg genpsk)
(umask 077 && mkdir -p /etc/credstore && echo "$key" >/etc/credstore/spoke.wireguard-key && echo "$psk" >/etc/credstore/spoke.hub-psk)
cat >/etc/spoke/spoke.toml <<CONFIG
[[interface]]
name = "wg0"
private_key = "credential:spoke.wireguard-key"
addresses = ["10.9.0.2/24"]
[[interface.peer]]
name = "hub"
public_key = "$hub"
preshared_key = "credential:spoke.hub-psk"
endpoint = "192.0.2.1:51820"
allowed_ips = ["10.9.0.1/32"]
CONFIG
public=$(wg pubkey <<<"$key")
admit "$public" 10.9.0.2
ip netns exec hub wg set wg0 peer "$public" preshared-key <(echo "$psk")

claim "it starts with secrets from the store" systemctl start spoke.service
claim "the interface has the key of the store" is "$public" wg show wg0 public-key
claim "the preshared key too: traffic passes" ping -c 3 -W 5 10.9.0.1
claim "no copy of the key is kept" fails grep -rqF "$key" /var/lib/spoke /run/spoke /etc/spoke
claim "nor written to the log" fails in_log

rm /etc/credstore/spoke.wireguard-key
was=$(cat /sys/class/net/wg0/ifindex)
claim "without the key it does not start" fails systemctl restart spoke.service
claim "the log names the credential" journalctl --unit spoke.service --grep 'spoke\.wireguard-key' --lines 20
claim "the tunnel of before goes on" ping -c 1 -W 5 10.9.0.1
claim "on the same interface" is "$was" cat /sys/class/net/wg0/ifindex
end_story
