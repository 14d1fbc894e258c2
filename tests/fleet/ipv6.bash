#!/usr/bin/env bash
# A fleet that gains an IPv6 pool while IPv6 is disabled on one of its nodes: IPv4 goes on, and the node list says why.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../demo/steps.bash"
. "$here/lab.bash"

hub_and_two_devices

say "IPv6 is disabled on one device, and the network gains an IPv6 pool"
has6() { ip -n "$1" -6 addr show dev wg0 | grep -F 'fd00:80:'; }
on device sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
fleet network set field --pool6 fd00:80::/64
await 60 "the other device has an IPv6 address" has6 other
await 60 "the node list says why the first has none" shows 'edge-1 .*IPv6 is disabled on wg0'
check "its process lives" kill -0 "${running[device]}"
check "it reaches the hub over IPv4" reaches device "$(address_of hub-1)"

say "IPv6 is enabled again"
on device sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0 net.ipv6.conf.wg0.disable_ipv6=0
await 90 "it has its IPv6 address" has6 device
await 60 "the node list says that it is healthy" shows 'edge-1 .* healthy '
table
