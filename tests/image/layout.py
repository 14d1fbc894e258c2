"""Checks an assembled image without starting it: partition table, boot loader, kernel and device tree."""
import json
import pathlib
import struct
import subprocess
import sys

from assemble import board as boards
from assemble import disk

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from machine import boot_file, boot_files, partition  # noqa: E402

TOP = pathlib.Path(__file__).resolve().parents[2]
MACHINES = {"amd64": 0x8664, "arm64": 0xAA64, "armhf": 0x01C2}


def sections(efi):
    """(machine type, sections by name) of an EFI program."""
    header = struct.unpack_from("<I", efi, 0x3C)[0]
    assert efi[header:header + 4] == b"PE\0\0", "the kernel is not an EFI program"
    cpu, count = struct.unpack_from("<HH", efi, header + 4)
    table = header + 24 + struct.unpack_from("<H", efi, header + 20)[0]
    found = {}
    for i in range(count):
        name = efi[table + 40 * i:table + 40 * i + 8].rstrip(b"\0").decode()
        size, _, _, offset = struct.unpack_from("<IIII", efi, table + 40 * i + 8)
        found[name] = efi[offset:offset + size]
    return cpu, found


def inside(root, path):
    """Content of a file of the root image."""
    return subprocess.run(["unsquashfs", "-cat", str(root), path], capture_output=True, check=True, text=True).stdout


def main():
    board = boards.read(TOP / "board" / sys.argv[1])
    built = pathlib.Path(sys.argv[2])
    image = built / "disk.img"
    checked = subprocess.run(["sfdisk", "--verify", str(image)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for name, _, start, size in disk.layout(board):
        assert partition(image, name) == (start * disk.MIB, size * disk.MIB), name
    contents = json.loads((built / "contents.json").read_text())

    entry = "EFI/Linux/spoke-a.efi" if board.uses_u_boot else "EFI/Linux/spoke-000001-a.efi"
    kernel = boot_file(image, entry)
    assert kernel == (built / "boot.efi").read_bytes(), "the kernel on the boot partition differs from boot.efi"
    cpu, parts = sections(kernel)
    assert cpu == MACHINES[board.architecture], f"the kernel is for CPU {cpu:#x}"
    assert contents["root_hash"].encode() in parts[".cmdline"], "the kernel's command line has another root hash"
    inner, _ = sections(parts[".linux"])
    assert inner == MACHINES[board.architecture], f"the kernel's own header is for CPU {inner:#x}"
    assert len(parts[".linux"]) > 1 << 20 and len(parts[".initrd"]) > 1 << 19

    start, _ = partition(image, "root_a")
    root = (built / "root.img").read_bytes()
    with open(image, "rb") as f:
        f.seek(start)
        assert f.read(len(root)) == root, "slot a does not hold the root image"
    checked = subprocess.run(
        ["veritysetup", "verify", f"--hash-offset={contents['hash_offset']}", str(built / "root.img"), str(built / "root.img"), contents["root_hash"]],
        capture_output=True, text=True, check=False)
    assert checked.returncode == 0, f"the hash tree does not match: {checked.stderr}"
    assert len(root) <= 48 * disk.MIB, f"the root has {len(root) >> 20} MiB"
    # Logs are in memory and bounded.
    journal = inside(built / "root.img", "etc/systemd/journald.conf.d/spoke.conf")
    assert "Storage=volatile" in journal and "RuntimeMaxUse=8M" in journal, journal
    assert all(p["why"] for p in contents["packages"]) and all(m["why"] for m in contents["modules"])
    # No password login; SSH starts only with a provisioned key.
    assert all(line.split(":")[1] in ("*", "!") for line in inside(built / "root.img", "etc/shadow").splitlines())
    assert "ConditionPathExists=/state/ssh/authorized_keys" in inside(built / "root.img", "usr/lib/systemd/system/spoke-ssh.service")

    if board.uses_u_boot:
        tree = parts[".dtb"]
        assert tree[:4] == b"\xd0\x0d\xfe\xed", "no device tree beside the kernel"
        model = subprocess.run(["fdtget", "-t", "s", "-", "/", "model"], input=tree, capture_output=True, check=True).stdout.decode().strip()
        assert model, "the device tree does not name its board"
        print(f"{board.name}: device tree of {model}")
        assert boot_file(image, "boot.scr")[:4] == b"\x27\x05\x19\x56", "the boot script is no U-Boot script"
        loader = b""
        with open(image, "rb") as f:
            for blob in board.data["u-boot"]["blob"]:
                expected = (built / pathlib.PurePosixPath(blob["file"]).name).read_bytes()
                f.seek(blob["offset"])
                assert f.read(len(expected)) == expected, f"{blob['file']} is not at {blob['offset']}"
                loader += expected
        # Commands that image/u-boot/boot.cmd uses.
        for word in (b"boot.scr", b"bootefi", b"setexpr", b"env import", b"env export"):
            assert word in loader, f"the boot loader has no {word.decode()}"
        flags = subprocess.run(["sfdisk", "--part-attrs", str(image), "1"], capture_output=True, text=True, check=True).stdout
        assert "LegacyBIOSBootable" in flags, "U-Boot would not search the boot partition"
    else:
        assert board.default_loader in boot_files(image, "::/EFI/BOOT")
        assert f"systemd-boot{board.efi}.efi" in boot_files(image, "::/EFI/systemd")
        starter, _ = sections(boot_file(image, f"EFI/BOOT/{board.default_loader}"))
        assert starter == MACHINES[board.architecture], "the program that starts the boot loader is for another CPU"
    print(f"{board.name}: layout is correct, root {len(root) / disk.MIB:.1f} MiB, kernel {len(kernel) / disk.MIB:.1f} MiB")


main()
