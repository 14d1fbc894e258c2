#!/bin/bash
# What the unit promises: ready is the first clean pass, a hung loop is killed and started again, an outage restarts
# nothing, and the kernel's tunnel outlives the process.
# shellcheck source=tests/systemd/story.bash
. /usr/lib/story.bash

active() { is active property ActiveState; }
pid() { property MainPID; }
status() { spoke status --json; }
passed() { status | grep -q '"passes": [1-9]'; }
handshake() { wg show wg0 latest-handshakes; }
another_runs() { [ "$(pid)" != "$was" ] && active; }
stopped_and_through() { systemctl stop spoke.service && through_tunnel; }
through_tunnel() { ping -c 1 -W 5 10.9.0.1; }

hub=$(make_hub)
systemd-sysusers /usr/lib/sysusers.d/spoke.conf
systemd-tmpfiles --create /usr/lib/tmpfiles.d/spoke.conf
cat >/etc/spoke/spoke.toml <<CONFIG
[[interface]]
name = "wg0"
addresses = ["10.9.0.2/24"]
[[interface.peer]]
name = "hub"
public_key = "$hub"
endpoint = "192.0.2.1:51820"
allowed_ips = ["10.9.0.1/32"]
keepalive = 5
CONFIG
drop_in story TimeoutStartSec=20 WatchdogSec=9

# --- ready is the first clean pass ---
# A foreign link has the name of ours, so no pass can be clean.
ip link add wg0 type dummy
systemctl start --no-block spoke.service
claim_within 10 "passes are made while the name is taken" passed
sleep 60
claim "it is not ready after three times its start timeout, for no pass was clean" is activating property ActiveState
claim "it was not killed for that, for passes are completed" is 0 property NRestarts
claim "the foreign link is as it was" ip link show wg0 type dummy
ip link del wg0
claim_within 20 "ready once a pass is clean" active
admit "$(wg show wg0 public-key)" 10.9.0.2
claim "traffic passes through the tunnel" ping -c 3 -W 5 10.9.0.1
claim "it runs as its own user" is spoke ps -o user= -p "$(pid)"
looking() { setpriv --reuid=nobody --regid=spoke --clear-groups spoke "$@"; }
claim "a member of its group may look" looking status
claim "and change nothing" fails looking config rollback
claim "anybody else may not even look" fails setpriv --reuid=nobody --regid=nogroup --clear-groups spoke status
claim "root may change what there is" spoke config rollback
claim "its state is its own" is "spoke 700" stat -c '%U %a' /var/lib/spoke

# --- the tunnel outlives the process ---
was=$(pid) shaken=$(handshake) index=$(cat /sys/class/net/wg0/ifindex)
claim "it restarts" systemctl restart spoke.service
claim "as another process" fails test "$was" = "$(pid)"
claim "on the same interface" is "$index" cat /sys/class/net/wg0/ifindex
claim "in the same session, without a new handshake" is "$shaken" handshake
claim "the tunnel is there while it is stopped" stopped_and_through
claim "and it takes it over again" systemctl start spoke.service
claim "still on the same interface" is "$index" cat /sys/class/net/wg0/ifindex

# --- an outage restarts nothing ---
was=$(pid)
ip -n hub link set wan down
sleep 600
claim "the same process after ten minutes without a network" is "$was" pid
claim "still active" active
ip -n hub link set wan up
claim_within 30 "the tunnel is back by itself" through_tunnel

# --- a loop that hangs is killed and started again ---
# Its netlink sockets fall silent; the rest of the process goes on.
sockets=()
for fd in /proc/"$was"/fd/*; do
  inode=$(readlink "$fd" | sed -n 's/^socket:\[\(.*\)\]$/\1/p')
  [ -n "$inode" ] && grep -q " $inode *$" /proc/net/netlink && sockets+=("${fd##*/}")
done
claim "it has netlink sockets" test "${#sockets[@]}" -gt 0
list=$(IFS=,; echo "${sockets[*]}")
strace --quiet=all -f -p "$was" --trace=recvfrom,recvmsg --trace-fds="$list" \
  --inject=recvfrom,recvmsg:error=EAGAIN -o /tmp/strace &
claim_within 30 "answers are withheld from it" grep -q INJECTED /tmp/strace
claim "its other tasks go on: the local endpoint answers" curl -fsS -m 5 http://127.0.0.1:8080/health
claim_within 60 "the watchdog ends a process that completes no pass" another_runs
claim "the journal says why" journalctl --unit spoke.service --grep '[Ww]atchdog timeout'
claim "the tunnel was not touched" is "$index" cat /sys/class/net/wg0/ifindex
claim "and carries traffic" through_tunnel
end_story
