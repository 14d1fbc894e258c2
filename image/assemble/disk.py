"""Writes the disk: partition table, boot partition, two roots, state, vault and boot environment; no mount, no loop device."""
import os
import pathlib
import subprocess

from .slot import EPOCH

MIB = 1 << 20
LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
# Fixed ids for reproducible images. Partitions are found by name.
DISK_ID = "5B0CE000-0000-4000-8000-000000000000"


def layout(board):
    """[(name, type, start MiB, size MiB)], in order."""
    sizes = [("boot", ESP, board.disk["boot_mib"]), ("root_a", LINUX, board.disk["slot_mib"]), ("root_b", LINUX, board.disk["slot_mib"]),
             ("vault", LINUX, 1), ("bootenv", LINUX, 1), ("state", LINUX, board.disk["state_mib"])]
    at, out = board.disk["first_mib"], []
    for name, kind, size in sizes:
        out.append((name, kind, at, size))
        at += size
    return out


def _tool(*arguments, **more):
    environment = dict(os.environ, MTOOLS_SKIP_CHECK="1", SOURCE_DATE_EPOCH=str(EPOCH), TZ="UTC", E2FSPROGS_FAKE_TIME=str(EPOCH))
    subprocess.run([str(a) for a in arguments], check=True, env=environment, stdout=subprocess.DEVNULL, **more)


def fat(tree, size_mib, output):
    """Makes a FAT file system with the files of a directory."""
    output.unlink(missing_ok=True)
    with open(output, "wb") as f:
        f.truncate(size_mib * MIB)
    _tool("mkfs.vfat", "-F", "32", "-n", "SPOKE", "-i", "5B0CE001", "--invariant", output)
    entries = sorted(tree.rglob("*"))
    for path in entries:
        os.utime(path, (EPOCH, EPOCH))
        place = "::" + str(path.relative_to(tree))
        if path.is_dir():
            _tool("mmd", "-i", output, place)
        else:
            _tool("mcopy", "-m", "-i", output, path, place)


def ext4(size_mib, output):
    """Makes the empty state partition. Blocks reserved for root let the updater write its record when the supervisor has filled the
    rest. The device formats it with the same options (image/files/usr/lib/spoke/mount-state)."""
    output.unlink(missing_ok=True)
    with open(output, "wb") as f:
        f.truncate(size_mib * MIB)
    _tool("mke2fs", "-q", "-F", "-t", "ext4", "-L", "state", "-m", "5", "-U", DISK_ID.lower()[:-1] + "d",
          "-E", f"hash_seed={DISK_ID.lower()[:-1]}e,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0", "-J", "size=4", output)


def assemble(board, boot_image, root_image, state_image, blobs, output):
    """Writes the partition table, the partitions and the boot loader."""
    parts = layout(board)
    total = parts[-1][2] + parts[-1][3] + 1
    output.unlink(missing_ok=True)
    with open(output, "wb") as f:
        f.truncate(total * MIB)
    table = [f"label: gpt\nlabel-id: {DISK_ID}\nfirst-lba: {parts[0][2] * MIB // 512}"]
    if "table_entries" in board.disk:
        table.append(f"table-length: {board.disk['table_entries']}")
    table.append("")
    for i, (name, kind, start, size) in enumerate(parts, 1):
        # U-Boot searches for its script on the partition marked as bootable.
        marked = ", attrs=LegacyBIOSBootable" if board.uses_u_boot and name == "boot" else ""
        table.append(f"start={start}MiB, size={size}MiB, type={kind}, name={name}, uuid={DISK_ID[:-2]}{i:02X}{marked}")
    _tool("sfdisk", "-q", output, input="\n".join(table).encode() + b"\n")
    places = {name: start for name, _, start, _ in parts}
    sizes = {name: size for name, _, _, size in parts}
    with open(output, "r+b") as disk:
        for name, image in (("boot", boot_image), ("root_a", root_image), ("state", state_image)):
            if image.stat().st_size > sizes[name] * MIB:
                raise SystemExit(f"{board.name}: {name} needs {image.stat().st_size} bytes and has {sizes[name]} MiB; raise disk.*_mib")
            _copy_sparse(image, disk, places[name] * MIB)
        for path, offset in blobs:
            if offset + path.stat().st_size > parts[0][2] * MIB:
                raise SystemExit(f"{board.name}: {path.name} reaches into the first partition; raise disk.first_mib")
            _copy_sparse(path, disk, offset)


def _copy_sparse(source: pathlib.Path, disk, offset):
    with open(source, "rb") as f:
        while block := f.read(MIB):
            if block.count(0) != len(block):
                disk.seek(offset)
                disk.write(block)
            offset += len(block)
