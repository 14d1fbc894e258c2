"""Makes what an update carries: the root image with its dm-verity tree, and the kernel bound to it by the root hash."""
import hashlib
import os
import pathlib
import subprocess

# What every file and file system is dated: content alone decides the result.
EPOCH = 1_750_000_000


def freeze(directory):
    """Sets every time in a tree to EPOCH."""
    for path in [directory, *directory.rglob("*")]:
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)


def squash(root_dir, image, level):
    """Makes the squashfs, packed at a level of zstd, with its hash tree appended; returns (root hash, offset of the tree)."""
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
    # Salt and id of the tree follow from the content: the same root gives the same image, another root another one.
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    uuid = "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))
    said = subprocess.run(
        ["veritysetup", "format", f"--hash-offset={size}", f"--data-blocks={size // 4096}", f"--salt={digest}", f"--uuid={uuid}", str(image), str(image)],
        check=True, capture_output=True, text=True).stdout
    root_hash = next(line.split()[-1] for line in said.splitlines() if line.startswith("Root hash"))
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
    """What the kernel of a slot is told."""
    consoles = " ".join(f"console={c}" for c in board.console)
    # A kernel that dies starts again by itself: that is how a bad update uses up its tries.
    # Security modules that nothing here has a policy for cost a slow board more than a second of its start, with BPF above all.
    return (f"spoke.roothash={root_hash} spoke.hashoffset={hash_offset} {consoles} ro quiet loglevel=4 panic=5 oops=panic "
            f"spoke.loader={board.loader} lsm=landlock,lockdown,yama systemd.show_status=yes")


def unified_kernel(board, ukify, stub, kernel, initrd, command, device_tree, output):
    """One EFI program out of kernel, initramfs, command line and device tree: replaced as one file, so never by half."""
    # No version: entries are ordered by file name, so that going back to an older version is an order like any other.
    release = f"@{output}.osrel"
    pathlib.Path(release[1:]).write_text(f'ID=spoke\nNAME="Spoke"\nPRETTY_NAME="Spoke"\nIMAGE_ID=spoke-{board.name}\n')
    arguments = ["/usr/bin/python3", str(ukify), "build", f"--linux={kernel}", f"--initrd={initrd}", f"--cmdline={command}",
                 f"--os-release={release}", f"--uname={kernel.name.removeprefix('vmlinuz-')}", f"--stub={stub}", f"--efi-arch={board.efi}", f"--output={output}"]
    if device_tree:
        arguments.append(f"--devicetree={device_tree}")
    said = subprocess.run(arguments, capture_output=True, text=True, check=False)
    pathlib.Path(release[1:]).unlink()
    if said.returncode:
        raise SystemExit(f"ukify failed:\n{said.stdout}{said.stderr}")
