"""Builds a slot's content: the root image with its dm-verity tree, and the kernel bound to it by the root hash."""
import hashlib
import os
import pathlib
import subprocess

# The time of all files and file systems, for reproducible images.
EPOCH = 1_750_000_000


def freeze(directory):
    """Sets every time in a tree to EPOCH."""
    for path in [directory, *directory.rglob("*")]:
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)


def squash(root_dir, image, level):
    """Makes the squashfs, compressed at a zstd level, with its hash tree appended; returns (root hash, offset of the tree)."""
    freeze(root_dir)
    image.unlink(missing_ok=True)
    environment = {k: v for k, v in os.environ.items() if k != "SOURCE_DATE_EPOCH"}
    subprocess.run(
        ["mksquashfs", str(root_dir), str(image), "-noappend", "-all-root", "-no-xattrs", "-quiet", "-no-progress", "-comp", "zstd",
         "-Xcompression-level", str(level), "-b", "256K", "-mkfs-time", str(EPOCH), "-all-time", str(EPOCH)],
        check=True, env=environment, stdout=subprocess.DEVNULL)
    size = (image.stat().st_size + 4095) // 4096 * 4096
    with open(image, "r+b") as f:
        f.truncate(size)
    # Salt and id of the tree are derived from the content, for reproducible images.
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    uuid = "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))
    printed = subprocess.run(
        ["veritysetup", "format", f"--hash-offset={size}", f"--data-blocks={size // 4096}", f"--salt={digest}", f"--uuid={uuid}", str(image), str(image)],
        check=True, capture_output=True, text=True).stdout
    root_hash = next(line.split()[-1] for line in printed.splitlines() if line.startswith("Root hash"))
    return root_hash, size


def initramfs(directory, output, level):
    """Packs an initramfs directory."""
    freeze(directory)
    names = b"\0".join(sorted(str(p.relative_to(directory)).encode() for p in directory.rglob("*")))
    packed = subprocess.run(
        ["cpio", "--null", "--create", "--format=newc", "--reproducible", "--owner=0:0", "--quiet"],
        input=names, cwd=directory, check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["zstd", f"-{level}", "-q", "-f", "-o", str(output)], input=packed, check=True)


def command_line(board, root_hash, hash_offset):
    """The kernel command line of a slot."""
    consoles = " ".join(f"console={c}" for c in board.console)
    # panic=5: a kernel that panics reboots, so that a bad update uses up its tries.
    # lsm=: modules without a policy here, BPF above all, cost a slow board more than a second of boot time.
    return (f"spoke.roothash={root_hash} spoke.hashoffset={hash_offset} {consoles} ro quiet loglevel=4 panic=5 oops=panic "
            f"spoke.loader={board.loader} lsm=landlock,lockdown,yama systemd.show_status=yes")


def unified_kernel(board, ukify, stub, kernel, initrd, command, device_tree, output):
    """Builds one EFI program from kernel, initramfs, command line and device tree, so that they are replaced atomically."""
    # No version: entries are ordered by file name, so that a rollback can order an older version first.
    release = f"@{output}.osrel"
    pathlib.Path(release[1:]).write_text(f'ID=spoke\nNAME="Spoke"\nPRETTY_NAME="Spoke"\nIMAGE_ID=spoke-{board.name}\n')
    arguments = ["/usr/bin/python3", str(ukify), "build", f"--linux={kernel}", f"--cmdline={command}",
                 f"--os-release={release}", f"--uname={kernel.name.removeprefix('vmlinuz-')}", f"--stub={stub}", f"--efi-arch={board.efi}", f"--output={output}"]
    if initrd:
        arguments.append(f"--initrd={initrd}")
    if device_tree:
        arguments.append(f"--devicetree={device_tree}")
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    pathlib.Path(release[1:]).unlink()
    if done.returncode:
        raise SystemExit(f"ukify failed:\n{done.stdout}{done.stderr}")
