#!/usr/bin/env bash
# Rotation of the control plane's signing key: the new key is pinned beside the old one, then the old one is retired.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../demo/steps.bash"
. "$here/lab.bash"

hub_and_two_devices

say "a new signing key"
pinned() { tr -d ' \n' <"$work/$1/enrolment.json" | grep -oE '"signing_keys":\[[^]]*\]' | grep -oE '"[^"]{40,}"' | tr -d '"' | sort; }
first=$(pinned device)
second=$(fleet signing-key add)
two() { [ "$(pinned "$1" | wc -l)" = 2 ]; }
# A state is confirmed by an echo from the hub, which an idle tunnel sends once a minute.
await 100 "the device has pinned it beside the old one" two device
await 20 "the hub has pinned it too" two hub
await 100 "and so has the other device" two other
# What a device reports is known when it stops: its report follows, at most as late as its longest backoff.
kept() { fleet signing-key list | grep -F "$second" | grep -q "3 of 3"; }
await 200 "the control plane knows that each has kept it" kept
stop other
retired() { fleet signing-key retire "$first" --yes; }
await 20 "every node has confirmed it, so the old key can be retired" retired
one() { [ "$(pinned "$1" | wc -l)" = 1 ] && [ "$(pinned "$1")" != "$first" ]; }
await 100 "the device drops the old one" one device
await 20 "the hub drops the old one" one hub
fleet node override edge-1 --mtu 1300
await 20 "a state signed by the new key alone is applied" mtu device 1300
resume other
await 60 "a device that was off during the rotation reconnects" is other healthy
fleet node override edge-2 --mtu 1310
await 20 "and applies a state of the new key" mtu other 1310
table
