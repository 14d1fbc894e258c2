"""python3 -m assemble BOARD …: called by scripts/build-image."""
import argparse
import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time

from . import board as boards
from . import disk, loader, modules, rootfs, slot
from .packages import Packages, unpack

HERE = pathlib.Path(__file__).resolve().parent.parent
TOP = HERE.parent


class Steps:
    """Prints each step with the time since the start."""

    def __init__(self):
        self.start = time.monotonic()

    def __call__(self, text):
        print(f"{time.monotonic() - self.start:6.1f} s  {text}", file=sys.stderr, flush=True)


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/build-image", description="Builds a board's disk image and update files.")
    parser.add_argument("board", help="a directory of board/")
    parser.add_argument("--version", required=True)
    parser.add_argument("--sequence", type=int, default=0, help="the release number, as spoke-image bundle gets it")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--binaries", type=pathlib.Path, required=True, help="directory with spoke and spoke-init")
    parser.add_argument("--cache", type=pathlib.Path, required=True)
    parser.add_argument("--efi-programs", type=pathlib.Path, required=True, help="directory made by scripts/lib/efi-programs")
    parser.add_argument("--update-root", type=pathlib.Path, required=True, help="public keys that certify update signing keys")
    parser.add_argument("--draft", action="store_true", help="weaker compression: half the time")
    parser.add_argument("--overlay", type=pathlib.Path, help="files copied over the root's, e.g. of a test")
    parser.add_argument("--provision", type=pathlib.Path, help="spoke.toml for the boot partition")
    return parser.parse_args()


def main():
    options = arguments()
    try:
        board = boards.read(TOP / "board" / options.board)
    except boards.BoardError as e:
        sys.exit(str(e))
    step = Steps()
    os.umask(0o022)
    output = options.output / board.name
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="spoke-image.", dir=os.environ.get("TMPDIR", "/var/tmp")) as work:
        build(board, options, output, pathlib.Path(work), step)


def build(board, options, output, work, step):
    packages = Packages(options.cache, board.architecture)
    level = 1 if options.draft else 19
    files = HERE / "files"
    if options.overlay:
        merged = work / "files"
        shutil.copytree(files, merged, symlinks=True)
        shutil.copytree(options.overlay, merged, symlinks=True, dirs_exist_ok=True)
        files = merged
    kernel_dir, release, manifest, contents = rootfs.build(
        board, HERE / "rootfs.toml", files, packages, options.cache, work / "root", options.version, options.sequence, options.binaries / "spoke",
        options.update_root)
    step(f"root of {len(contents['packages'])} packages, {_mib(_tree(work / 'root')):.1f} MiB unpacked, kernel {release}")
    root_hash, hash_offset = slot.squash(work / "root", output / "root.img", level)
    step(f"root.img {_mib((output / 'root.img').stat().st_size):.1f} MiB, root hash {root_hash}")

    extra = packages.fetch(["systemd-boot-efi", "systemd-ukify"] + ([board.data["u-boot"]["package"]] if board.uses_u_boot else []))
    for name in ("systemd-boot-efi", "systemd-ukify", *([board.data["u-boot"]["package"]] if board.uses_u_boot else [])):
        unpack(extra[name][1], work / "loader")
    early = work / "initrd"
    for name in ("dev", "proc", "sys", "run", "root", "boot"):
        (early / name).mkdir(parents=True)
    shutil.copy2(options.binaries / "spoke-init", early / "init")
    wanted = manifest["initrd-modules"]["root"] + board.modules["initrd"]
    if board.has_screen:
        wanted += manifest["initrd-modules"]["keyboard"]
    modules.initrd(kernel_dir, release, wanted, early)
    slot.initramfs(early, output / "initrd", level)
    kernel = kernel_dir / "boot" / f"vmlinuz-{release}"
    shutil.copyfile(kernel, output / "vmlinuz")
    command = slot.command_line(board, root_hash, hash_offset)
    (output / "cmdline").write_text(command + "\n")
    tree = None
    if board.data.get("u-boot", {}).get("device_tree"):
        tree = next((kernel_dir / "usr/lib").glob("linux-image-*")) / board.data["u-boot"]["device_tree"]
        if not tree.exists():
            sys.exit(f"{board.name}: u-boot.device_tree: the kernel has no {board.data['u-boot']['device_tree']}")
    efi = work / "loader/usr/lib/systemd/boot/efi"
    slot.unified_kernel(board, work / "loader/usr/bin/ukify", efi / f"linux{board.efi}.efi.stub", kernel, output / "initrd", command, tree, output / "boot.efi")
    step(f"boot.efi {_mib((output / 'boot.efi').stat().st_size):.1f} MiB, of it initramfs {_mib((output / 'initrd').stat().st_size):.1f}")

    fat = work / "fat"
    (fat / "EFI/Linux").mkdir(parents=True)
    blobs = []
    if board.uses_u_boot:
        shutil.copy2(output / "boot.efi", fat / "EFI/Linux/spoke-a.efi")
        loader.u_boot(fat, HERE)
        for blob in board.data["u-boot"]["blob"]:
            path = work / "loader" / blob["file"]
            if not path.exists():
                sys.exit(f"{board.name}: {board.data['u-boot']['package']} has no {blob['file']}")
            shutil.copyfile(path, output / path.name)
            blobs.append((path, blob["offset"]))
    else:
        loader.systemd_boot(board, fat, efi, HERE, options.efi_programs)
        shutil.copy2(output / "boot.efi", fat / "EFI/Linux/spoke-000001-a.efi")
    if options.provision:
        shutil.copyfile(options.provision, fat / "spoke.toml")
    else:
        shutil.copyfile(HERE / "spoke.toml.example", fat / "spoke.toml.example")
    disk.fat(fat, board.disk["boot_mib"], work / "boot.img")
    disk.ext4(board.disk["state_mib"], work / "state.img")
    disk.assemble(board, work / "boot.img", output / "root.img", work / "state.img", blobs, output / "disk.img")
    keys = sum(bool(line.split("#")[0].strip()) for line in options.update_root.read_text().splitlines())
    if not keys:
        print(f"{board.name}: this image accepts no updates: {options.update_root} has no key (--update-root FILE)", file=sys.stderr)
    (output / "contents.json").write_text(json.dumps(
        {"board": board.name, "version": options.version, "sequence": options.sequence, "update_keys": keys, "kernel": release, "root_hash": root_hash, "hash_offset": hash_offset,
         **contents}, indent=1) + "\n")
    sums(output)
    step(f"disk.img {_mib((output / 'disk.img').stat().st_size):.0f} MiB, {_mib((output / 'disk.img').stat().st_blocks * 512):.1f} MiB of it written")


def sums(output):
    """Writes SHA256SUMS of the output directory."""
    lines = []
    for path in sorted(p for p in output.iterdir() if p.is_file() and p.name != "SHA256SUMS"):
        with open(path, "rb") as f:
            lines.append(f"{hashlib.file_digest(f, 'sha256').hexdigest()}  {path.name}\n")
    (output / "SHA256SUMS").write_text("".join(lines))


def _tree(directory):
    return sum(p.lstat().st_size for p in directory.rglob("*") if not p.is_dir())


def _mib(count):
    return count / disk.MIB


main()
