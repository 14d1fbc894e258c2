#!/usr/bin/env bash
# The compose example of image/container in the test kernel, started by its own script.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../demo/steps.bash"
# The script writes its secrets beside itself: it needs a writable copy.
cp -r "$here/../../image/container" "$TMPDIR/container"
mkdir -p "$TMPDIR/state/bundles"
cp "$here/../../Cargo.toml" "$TMPDIR/"
sed -i 's|/../../Cargo.toml|/../Cargo.toml|' "$TMPDIR/container/start"
export SPOKE_COMPOSE_STATE=$TMPDIR/state COMPOSE="/usr/bin/python3 $here/compose.py" PYTHONDONTWRITEBYTECODE=1
read -ra compose <<<"$COMPOSE -f $TMPDIR/container/compose.yaml"
finish() {
  [ "$failures" = 0 ] || for log in "$TMPDIR"/state/*.log; do say "$log" && tail -40 "$log"; done
}
trap finish EXIT

pid_of() { "${compose[@]}" state "$1" | grep -oE '"pid": [0-9]+' | grep -oE '[0-9]+'; }
status_of() { sed -n "s/^$2:[[:space:]]*//p" "/proc/$(pid_of "$1")/status"; }
healthy() { "${compose[@]}" health "$1"; }
lists() { "${compose[@]}" exec -T control /usr/bin/spoke-control node list | grep -E "$1"; }

say "image/container/start"
"$TMPDIR/container/start"
await 60 "the hub's container is healthy" healthy hub
await 60 "node 1's container is healthy" healthy node-1
await 60 "node 2's container is healthy" healthy node-2
await 60 "the control plane lists node 1 as healthy" lists 'node-1 .*healthy'
await 60 "the control plane lists node 2 as healthy" lists 'node-2 .*healthy'

say "privileges"
await 1 "the control plane is not root" test "$(status_of control Uid | cut -f1)" = 900
await 1 "the control plane has no capability" test "$(status_of control CapBnd)" = 0000000000000000
await 1 "a node has CAP_NET_ADMIN and no other capability" test "$(status_of node-1 CapBnd)" = 0000000000001000
await 1 "a node cannot gain privileges" test "$(status_of node-1 NoNewPrivs)" = 1

say "restart"
key=$("${compose[@]}" exec -T node-1 /usr/bin/spoke key public --interface wg0)
"${compose[@]}" stop node-1
await 5 "a stopped node is not healthy" bash -c "! ${compose[*]} health node-1"
"$TMPDIR/container/start"
await 60 "it is healthy again" healthy node-1
await 1 "with the same key" test "$("${compose[@]}" exec -T node-1 /usr/bin/spoke key public --interface wg0)" = "$key"

say "the control plane stops"
"${compose[@]}" stop control
await 5 "the nodes stay healthy: 1" healthy node-1
await 5 "the nodes stay healthy: 2" healthy node-2
table
