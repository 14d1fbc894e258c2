#!/usr/bin/env bash
# Flash writes of a device: its state is on the image's state partition with the image's mount options, through idle hours and
# events in skipped time; bytes that reach the block device are counted.
#   flash-care.bash DISK-IMAGE SPOKE MOUNT-STATE
set -euo pipefail
image=$1 spoke=$2 script=$3
. "$(dirname "$0")/../bench/pair.bash"
cd "$TMPDIR"
passed=0 failed=0
verdict() { # WHAT COMMAND…
  if "${@:2}"; then passed=$((passed + 1)) && echo "ok - $1"; else failed=$((failed + 1)) && echo "not ok - $1"; fi
}
options=$(sed -n 's/^options=//p' "$script")

read -r start size <<<"$(sfdisk -J "$image" | tr -d '\n' | sed -E 's/.*"start": *([0-9]+), *"size": *([0-9]+),[^}]*"name": *"state".*/\1 \2/')"
dd if="$image" of=state.img bs=512 skip="$start" count="$size" status=none
disk=$(losetup --find --show state.img)
mkdir state
mount -t ext4 -o "${options/noexec,/}" "$disk" state
mkdir -m 700 state/spoke

make_pair state/spoke
ip netns exec device "$spoke" --config spoke.toml run 2>log &
device=$!
is_ready() { on device "$spoke" --config spoke.toml status --ready >/dev/null 2>&1; }
await_ready() { for ((i = 0; i < 600; i++)); do is_ready && return 0; sleep 1; done; tail -20 log; return 1; }

written() { # bytes written to the disk
  local f
  read -ra f <"/sys/block/${disk##*/}/stat"
  echo $((f[6] * 512))
}
# spent SECONDS: bytes written in that time, delayed writes of the file system included.
spent() {
  local before
  before=$(written)
  sleep "$1"
  # The file system's own commit interval is 30 s.
  sleep 60
  sync
  echo $(($(written) - before))
}
row() { printf '%-58s %10s B\n' "$1" "$2"; }

await_ready
first=$(spent 600)
idle=$(spent 3600)
on device ip link del wg0
await_ready
drift=$(spent 60)
on hub ip link set wg0 down
sleep 900
on hub ip link set wg0 up
await_ready
outage=$(spent 60)
# One stamp of the clock is written every six hours.
stamp=$(spent 22800)
echo "bytes written to the state partition ($(option Options))"
row "the first start" "$first"
row "an idle hour" "$idle"
row "a deleted interface, repaired" "$drift"
row "a quarter of an hour without the hub" "$outage"
row "six hours and 20 minutes with a stamp of the clock" "$stamp"
row "a day (four times that)" "$((4 * stamp))"
verdict "an idle hour writes nothing" test "$idle" = 0
verdict "a day writes at most 256 KiB" test "$((4 * stamp))" -le 262144
verdict "a stamp is written" test "$stamp" -gt 0
verdict "a repair writes at most 128 KiB" test "$drift" -le 131072
verdict "an outage writes at most 128 KiB" test "$outage" -le 131072
verdict "it is still ready" is_ready
kill "$device"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
