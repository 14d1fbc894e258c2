#!/bin/bash
# What the unit promises: ready is the first clean pass, a hung loop is killed and started again, an outage restarts
# nothing, and the kernel's tunnel outlives the process.
# shellcheck source=tests/systemd/story.bash
. /usr/lib/story.bash

says() {
  local words=$1
  shift
  "$@" | grep -F "$words"
}
active() { is active property ActiveState; }
pid() { property MainPID; }
status() { spoke status --json; }
passed() { status | grep -q '"passes": [1-9]'; }
passed_more() { [ "$(status | sed -n 's/.*"passes": \([0-9]*\).*/\1/p')" -gt $(($1 + 100)) ]; }
up() { status | grep -q '"state": "up"'; }
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
[uplink]
interface = "wg0"
[[uplink.hub]]
name = "hub"
public_key = "$hub"
endpoint = "192.0.2.1:51820"
address = "10.9.0.1"
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
claim "systemctl status says why" says "wg0 exists and is not WireGuard" property StatusText
ip link del wg0
claim_within 20 "ready once a pass is clean" active
claim_within 5 "systemctl status says that all is well" says "kernel in sync" property StatusText
admit "$(wg show wg0 public-key)" 10.9.0.2
claim_within 60 "the tunnel comes up" up
claim "systemctl status says so" says "tunnel to hub is up" property StatusText
claim "traffic passes through the tunnel" ping -c 3 -W 5 10.9.0.1
claim "it runs as its own user" is spoke ps -o user= -p "$(pid)"
looking() { setpriv --reuid=nobody --regid=spoke --clear-groups spoke "$@"; }
claim "a member of its group may look" looking status
claim "and change nothing" fails looking config rollback
claim "anybody else may not even look" fails setpriv --reuid=nobody --regid=nogroup --clear-groups spoke status
claim "root may change what there is" spoke config rollback
nice_of() { ps -L -o comm=,ni= -p "$(pid)" | awk -v name="$1" '$1 == name { print $2 }'; }
claim "who answers comes first" is 0 nice_of spoke
claim "and who reconciles after it" is 5 nice_of reconciling
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

# --- an hour in which nothing happens ---
# (The journal's own files are not ours; what we would write into it is a line.)
files() { find / -xdev -path /var/log/journal -prune -o -path /run/log -prune -o -type f -user spoke -printf '%p %T@ %C@\n' | sort; }
lines() { journalctl --unit spoke.service --output cat | wc -l; }
claim_within 60 "the tunnel is up" up
files=$(files) lines=$(lines) passes=$(status | sed -n 's/.*"passes": \([0-9]*\).*/\1/p')
claim "it has files to write to" test -n "$files"
sleep 3600
claim "it has looked at the kernel all the while" passed_more "$passes"
claim "and not a file of it was written" is "$files" files
claim "nor a line of log" is "$lines" lines

# --- an outage restarts nothing ---
was=$(pid)
ip -n hub link set wan down
sleep 600
claim "the same process after ten minutes without a network" is "$was" pid
claim "still active" active
ip -n hub link set wan up
claim_within 60 "the tunnel is back by itself" through_tunnel
# After the first round of everything else, the ladder's last rung has made the interface anew.
index=$(cat /sys/class/net/wg0/ifindex)

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
