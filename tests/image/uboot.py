"""A U-Boot board: the boot script counts tries in the checksummed environment and falls back."""
import json
import os
import pathlib

from assemble.packages import Packages, unpack
from loaders import SIZE, block, copies, write_bootenv
from machine import put_boot_file
from world import BOOT, CONNECTED, connect, settings, until

BOARD = "arm64-u-boot"


def set_environment(image, **variables):
    """As a release writes it that knows only the first copy."""
    write_bootenv(image, 0, block(variables))


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
    at, _ = machine.expect(r"spoke: slot b \(a ok , b 2 , order b a\)", BOOT, at)
    at, _ = machine.expect(r"the kernel of slot b cannot be started", BOOT, at)
    at, _ = machine.expect(r"spoke: slot a \(a ok , b 0 , order b a\)", BOOT, at)
    at, _ = machine.expect(r"slot a verified", 2 * BOOT, at)
    at, _ = connect(world, machine, at, timeout=2 * BOOT)
    world.offer("b", BOARD)
    at = len(machine.lines)
    world.shell("spoke update install")
    at, _ = machine.expect(r"spoke: slot b \(a ok 2, b 2 , order b a\)", BOOT, at)
    at, _ = machine.expect(r"slot b verified", 2 * BOOT, at)
    at, _ = connect(world, machine, at, timeout=2 * BOOT, slot="b")
    machine.expect(r"update committed", BOOT, at)
    committed = until(60, "the commit", lambda: (e := copies(machine.image)[0]) and e["spoke_b"] == "ok" and e)
    del committed["spoke_seq"]
    assert committed == {"spoke_a": "ok", "spoke_la": "2", "spoke_b": "ok", "spoke_lb": "2", "spoke_order": "b a"}, committed
    status = json.loads(world.output_of("spoke update status --json"))
    assert status["slots"] == {"running": "b", "trust": "good", "other": "good"}, status
    # One copy is damaged: the other counts, and the first process writes both.
    machine.cut_power()
    write_bootenv(machine.image, 0, b"\xff" * SIZE)
    since = len(machine.lines)
    machine.start()
    at, _ = machine.expect(r"spoke: slot b \(a ok 2, b ok 1, order b a\)", BOOT, since)
    at, _ = machine.expect(r"slot b verified", 2 * BOOT, at)
    one, two = copies(machine.image)
    assert one == two and one["spoke_lb"] == "2", (one, two)
    machine.cut_power()
    # The kernel of the committed slot is damaged: the other system runs in the same start.
    put_boot_file(machine.image, "EFI/Linux/spoke-b.efi", b"no kernel" * 1000)
    since = len(machine.lines)
    machine.start()
    at, _ = machine.expect(r"the kernel of slot b cannot be started", BOOT, since)
    at, _ = machine.expect(r"slot a verified", 2 * BOOT, at)
    connect(world, machine, at, timeout=2 * BOOT)
    machine.cut_power()
