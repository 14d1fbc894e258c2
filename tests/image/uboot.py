"""A U-Boot board: the boot script counts tries in the checksummed environment and falls back."""
import json
import os
import pathlib
import zlib

from assemble.packages import Packages, unpack
from machine import partition, put_boot_file
from world import BOOT, CONNECTED, connect, settings, until

BOARD = "arm64-u-boot"
SIZE = 0x1000


def environment(image):
    """Variables of the environment block; None if its checksum is wrong."""
    start, _ = partition(image, "bootenv")
    with open(image, "rb") as disk:
        disk.seek(start)
        block = disk.read(SIZE)
    if zlib.crc32(block[4:]) != int.from_bytes(block[:4], "little"):
        return None
    return dict(v.decode().split("=", 1) for v in block[4:].split(b"\0") if b"=" in v)


def set_environment(image, **variables):
    data = b"".join(f"{k}={v}\0".encode() for k, v in variables.items()).ljust(SIZE - 4, b"\0")
    start, _ = partition(image, "bootenv")
    with open(image, "r+b") as disk:
        disk.seek(start)
        disk.write(zlib.crc32(data).to_bytes(4, "little") + data)


def firmware(world):
    """U-Boot for the emulator, from the Debian release of the images."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "spoke/image"
    into = world.work / "firmware"
    unpack(Packages(cache, "arm64").fetch(["u-boot-qemu"])["u-boot-qemu"][1], into)
    return str(into / "usr/lib/u-boot/qemu_arm64/u-boot.bin")


def scenario_u_boot_counts(world):
    """Under U-Boot a slot that does not start uses up its tries; a good update is tried, committed and kept"""
    given = settings(world.hub, ssh=world.ssh_key(), settle="10s")
    machine = world.machine("u-boot", board=BOARD, provision=given, memory=512, firmware=firmware(world))
    # As after an installed update, with an invalid kernel.
    put_boot_file(machine.image, "EFI/Linux/spoke-b.efi", b"no kernel" * 1000)
    set_environment(machine.image, spoke_a="ok", spoke_b=3, spoke_order="b a")
    machine.start()
    at = 0
    for left in (2, 1, 0):
        at, _ = machine.expect(rf"spoke: slot b \(a ok, b {left}, order b a\)", BOOT, at)
    at, _ = machine.expect(r"spoke: slot a \(a ok, b 0, order b a\)", BOOT, at)
    at, _ = machine.expect(r"slot a verified", 2 * BOOT, at)
    at, _ = connect(world, machine, at, timeout=2 * BOOT)
    world.offer("b", BOARD)
    at = len(machine.lines)
    world.shell("spoke update install")
    at, _ = machine.expect(r"spoke: slot b \(a ok, b 2, order b a\)", BOOT, at)
    at, _ = machine.expect(r"slot b verified", 2 * BOOT, at)
    at, _ = connect(world, machine, at, timeout=2 * BOOT, slot="b")
    machine.expect(r"update committed", BOOT, at)
    committed = until(60, "the commit", lambda: (e := environment(machine.image)) and e["spoke_b"] == "ok" and e)
    assert committed == {"spoke_a": "ok", "spoke_b": "ok", "spoke_order": "b a"}, committed
    status = json.loads(world.output_of("spoke update status --json"))
    assert status["slots"] == {"running": "b", "trust": "good", "other": "good"}, status
    # With a damaged block slot a counts as good.
    machine.cut_power()
    start, _ = partition(machine.image, "bootenv")
    with open(machine.image, "r+b") as disk:
        disk.seek(start)
        disk.write(b"\xff" * SIZE)
    since = len(machine.lines)
    machine.start()
    at, _ = machine.expect(r"spoke: slot a \(a ok, b 0, order a b\)", BOOT, since)
    machine.cut_power()
