#!/usr/bin/env bash
# A signing key of the control plane is changed: the new one is pinned beside the old, then the old one is dropped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../demo/steps.bash"
. "$here/lab.bash"

hub_and_two_devices

say "a new signing key"
pinned() { tr -d ' \n' <"$work/$1/enrolment.json" | grep -oE '"signing_keys":\[[^]]*\]' | grep -oE '"[^"]{40,}"' | tr -d '"' | sort; }
first=$(pinned device)
fleet signing-key add
two() { [ "$(pinned "$1" | wc -l)" = 2 ]; }
# A state is kept once the hub has answered through it; an idle tunnel is asked once a minute.
await 100 "the device has pinned it beside the old one" two device
await 20 "so has the hub" two hub
stop other
fleet signing-key retire "$first" --yes
one() { [ "$(pinned "$1" | wc -l)" = 1 ] && [ "$(pinned "$1")" != "$first" ]; }
await 100 "the old one is dropped by the device" one device
await 20 "and by the hub" one hub
fleet node override edge-1 --mtu 1300
await 20 "a state that only the new key has signed is applied" mtu device 1300
again other
await 60 "a device that slept through the change is back" is other healthy
fleet node override edge-2 --mtu 1310
await 20 "and follows the new key" mtu other 1310
table
