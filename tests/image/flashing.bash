#!/usr/bin/env bash
# Flashing on block devices of the test kernel: disks in use are refused and unchanged, written data is verified, settings are
# stored.  flashing.bash IMAGE SPOKE-IMAGE
set -euo pipefail
image=$1 tool=$2
cd "$TMPDIR"
passed=0 failed=0
claim() { # WHAT COMMAND…
  local what=$1
  shift
  if "$@" >output 2>&1; then
    passed=$((passed + 1))
    echo "ok - $what"
  else
    failed=$((failed + 1))
    echo "not ok - $what"
    sed 's/^/    /' output
  fi
}
# refused TEXT COMMAND…: COMMAND exits with 2 and prints TEXT on stderr.
refused() {
  local words=$1 status=0
  shift
  "$@" >refusal 2>&1 </dev/null || status=$?
  cat refusal
  [ "$status" = 2 ] && grep -q -- "$words" refusal
}
untouched() { [ "$(sha256sum <"$disk")" = "$before" ]; }
# Between the partition tables, whose ids and backup belong to the disk.
starts_with_image() { cmp -i 1M -n "$(($(stat -c %s "$image") - (2 << 20)))" "$image" "$1"; }
# Also that the backup is at the disk's end: sfdisk warns otherwise.
whole_table() { sfdisk --verify "$1" >verified 2>&1 && grep -q 'No errors detected' verified && ! grep -qi 'backup\|corrupt' verified; }

# partition NAME: its device.
partition() {
  sfdisk -J "$disk" 2>/dev/null | tr -d '\n' | grep -oE "\{[^{}]*\"name\": *\"$1\"[^{}]*\}" | grep -oE '"node": *"[^"]*"' | cut -d'"' -f4
}

cat >settings.toml <<'TOML'
[node]
id = "flashed"
[[interface]]
name = "wg0"
addresses = ["10.8.0.2/24"]
TOML
sed 's/id = "flashed"/id = "no good id"/' settings.toml >faulty.toml

claim "a new file gets the image" "$tool" flash "$image" copy.img
claim "… byte by byte" starts_with_image copy.img
own_id() { [ "$(sfdisk --disk-id "$image")" != "$(sfdisk --disk-id "$1")" ]; }
claim "… with a partition table of its own" own_id copy.img
claim "an existing file is not overwritten without confirmation" refused '--yes' "$tool" flash "$image" copy.img
claim "a disk that is not there becomes no file" refused 'there is no disk' "$tool" flash --yes "$image" /dev/sdzz
claim "… nothing was written" test ! -e /dev/sdzz
rm copy.img
cp "$image" damaged.img
start=$(sfdisk -J "$image" | tr -d '\n' | grep -oE '"start": *[0-9]+[^{}]*"name": *"root_a"' | grep -oE '[0-9]+' | head -n 1)
printf X | dd of=damaged.img bs=1 seek=$((start * 512 + 5000000)) conv=notrunc status=none
claim "an image with a damaged root is refused" refused 'root_a is not the root' "$tool" flash damaged.img copy.img
rm damaged.img
claim "faulty settings are refused before anything is written" refused 'node.id' "$tool" flash "$image" copy.img --provision faulty.toml
claim "… nothing was written" test ! -e copy.img
head -c 100000000 "$image" >cut.img
claim "a truncated download is refused" refused 'cut off' "$tool" flash cut.img copy.img
claim "… nothing was written" test ! -e copy.img
rm cut.img
claim "a file that is no image is refused" refused 'partition table' "$tool" flash settings.toml copy.img
ln "$image" same.img 2>/dev/null || ln -s "$image" same.img
claim "an image is not written onto itself" refused 'the image itself' "$tool" flash "$image" same.img
mkfifo pipe
claim "a target that is neither disk nor file is refused" refused 'neither' "$tool" flash "$image" pipe

truncate -s 300M backing
disk=$(losetup --find --show --partscan backing)
claim "a disk is not overwritten without confirmation" refused '--yes' "$tool" flash "$image" "$disk"
claim "a disk gets the image" "$tool" flash --yes "$image" "$disk"
grep -q 'writing .* %' output && grep -q 'comparing .* %' output && passed=$((passed + 1)) && echo "ok - progress is shown"
claim "… byte by byte" starts_with_image "$disk"
claim "… and the backup of the partition table at its end" whole_table "$disk"
claim "inspect names its partitions" bash -c "'$tool' inspect '$disk' | grep -q '^root_b '"
claim "settings are written to it" "$tool" provision "$disk" settings.toml
claim "… and can be read back" bash -c "mcopy -n -i '$disk@@1M' ::spoke.toml - | cmp - settings.toml"
claim "faulty settings are refused" refused 'node.id' "$tool" provision "$disk" faulty.toml

losetup --detach "$disk"
disk=$(losetup --find --show --partscan backing)
state=$(partition state)
mkdir -p place
mount "$state" place
echo kept >place/mine
sync
before=$(sha256sum <"$disk")
claim "a disk with a mounted partition is refused" refused "in use ($TMPDIR/place)" "$tool" flash --yes "$image" "$disk"
claim "… its mounted partition too" refused 'whole disk' "$tool" flash --yes "$image" "$state"
claim "… and writing settings to it" refused 'in use' "$tool" provision "$disk" settings.toml
claim "a file that is attached as a disk is refused" refused "attached as $disk" "$tool" flash "$image" backing
claim "… nothing was changed" untouched
umount place

mkfifo mounted unmount
# shellcheck disable=SC2016 # expanded by the shell that is started
unshare --mount --propagation private bash -c 'mount "$1" place && echo >mounted && read -r _ <unmount; umount place' - "$state" &
read -r _ <mounted
claim "a disk mounted in another mount namespace is refused" refused 'in use by this machine' "$tool" flash --yes "$image" "$disk"
echo >unmount
wait $!
slot=$(partition root_b)
mkswap "$slot" >/dev/null
if swapon "$slot" 2>/dev/null; then
  claim "a disk in use as swap is refused" refused 'in use (swap)' "$tool" flash --yes "$image" "$disk"
  swapoff "$slot"
fi

claim "a disk is flashed with --keep-state" "$tool" flash --yes --keep-state --provision settings.toml "$image" "$disk"
mount "$state" place
claim "… its state is kept" grep -q kept place/mine
umount place
claim "… and settings are written" bash -c "mcopy -n -i '$disk@@1M' ::spoke.toml - | cmp - settings.toml"
claim "a disk is flashed without --keep-state" "$tool" flash --yes "$image" "$disk"
mount "$state" place
claim "… its state is gone" test ! -e place/mine
umount place
losetup --detach "$disk"
truncate -s 40M small
disk=$(losetup --find --show small)
claim "a disk that is too small is refused" refused 'take a larger one' "$tool" flash --yes "$image" "$disk"
claim "another layout cannot keep its state" refused 'partition table\|another layout' "$tool" flash --yes --keep-state "$image" "$disk"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
