"""The table of damage × slot × boot loader: each single damage ends with a tunnel, without a prompt."""
import os
import random
import re
import subprocess

from machine import boot_files, partition, put_boot_file
from uboot import BOARD, firmware, set_environment
from world import BOOT, connect, settings

X86 = "x86-64-uefi"
NOISE = random.Random(7).randbytes(65536)


def write(image, name, offset, data=NOISE):
    start, size = partition(image, name)
    assert offset + len(data) <= size
    with open(image, "r+b") as disk:
        disk.seek(start + offset)
        disk.write(data)


def two_slots(world, machine, board, trial):
    """Puts build b into slot b, as an update does: committed and preferred, or on trial."""
    build = world.images / "b" / board
    write(machine.image, "root_b", 0, (build / "root.img").read_bytes())
    kernel = (build / "boot.efi").read_bytes()
    if board == BOARD:
        put_boot_file(machine.image, "EFI/Linux/spoke-b.efi", kernel)
        # A committed slot as its first process left it: its starts are counted.
        slot_b = {"spoke_b": 3} if trial else {"spoke_b": "ok", "spoke_lb": 2}
        set_environment(machine.image, spoke_a="ok", spoke_la=2, spoke_order="b a", **slot_b)
    else:
        # Counters of an entry on trial, and of one that its first process found committed.
        put_boot_file(machine.image, f"EFI/Linux/spoke-000002-b+{'3' if trial else '2-2'}.efi", kernel)


def entry(machine):
    """The file of slot b's kernel."""
    return next(n for n in boot_files(machine.image, "::/EFI/Linux") if n in ("spoke-b.efi",) or "-b" in n)


def first_blocks(machine, _):
    write(machine.image, "root_b", 0)


def middle_blocks(machine, build):
    write(machine.image, "root_b", (build / "root.img").stat().st_size // 2)


def last_blocks(machine, build):
    # The tables of the squashfs lie before its hash tree, about 1/128 of the whole.
    write(machine.image, "root_b", (build / "root.img").stat().st_size * 125 // 128 - len(NOISE))


def hash_tree(machine, build):
    write(machine.image, "root_b", (build / "root.img").stat().st_size - len(NOISE))


def kernel(machine, build):
    damaged = bytearray((build / "boot.efi").read_bytes())
    damaged[len(damaged) // 2:len(damaged) // 2 + len(NOISE)] = NOISE
    put_boot_file(machine.image, f"EFI/Linux/{entry(machine)}", bytes(damaged))


def missing_entry(machine, _):
    start, _ = partition(machine.image, "boot")
    subprocess.run(["mdel", "-i", f"{machine.image}@@{start}", f"::EFI/Linux/{entry(machine)}"], check=True)


def empty_entry(machine, _):
    put_boot_file(machine.image, f"EFI/Linux/{entry(machine)}", b"")


def state(machine, _):
    write(machine.image, "state", 0)


def environment(machine, _):
    write(machine.image, "bootenv", 0)


# damage: the slot that connects afterwards; None: either.
TABLE = {
    first_blocks: "a", middle_blocks: "a", last_blocks: "a", hash_tree: "a", kernel: "a", missing_entry: "a", empty_entry: "a",
    state: "b", environment: None,
}


def row(world, damage, trial, board):
    name = f"{damage.__name__.replace('_', '-')}-{'trial' if trial else 'committed'}"
    more = {"memory": 512, "firmware": firmware(world)} if board == BOARD else {}
    machine = world.machine(name, board=board, provision=settings(world.hub), **more)
    two_slots(world, machine, board, trial)
    damage(machine, world.images / "b" / board)
    machine.start()
    cycles, at = 0, 0
    while True:
        # A firmware that crashes in a damaged kernel stands still, and no watchdog runs yet: only a power cycle ends that.
        at, found = machine.expect(r"public key of wg0|X64 Exception Type|Synchronous Exception", 4 * BOOT, at, never="spoke-rescue>")
        if "wg0" in found.group(0):
            break
        cycles += 1
        assert damage is kernel and cycles < 4, f"{cycles} power cycles"
        machine.cut_power()
        at = len(machine.lines)
        machine.start()
    slots = [TABLE[damage]] if TABLE[damage] else ["a", "b"]
    wanted = rf"slot ({'|'.join(slots)}): connected"
    key = machine.expect(r"public key of wg0: (\S{44})", 60)[1].group(1)
    world.hub.admit(key)
    machine.expect(wanted, 4 * BOOT, never="spoke-rescue>")
    starts = sum("modules loaded" in line for line in machine.lines)
    machine.cut_power()
    machine.image.unlink()
    world.passed(f"{damage.__name__} of a slot {'on trial' if trial else 'committed'}, {starts} starts, {cycles} power cycles")


def rows(world, board):
    # A part of the table, for a run in parts.
    only = os.environ.get("SPOKE_TEST_DAMAGE", "")
    for damage in TABLE:
        for trial in (False, True):
            if re.search(only, f"{damage.__name__} {'trial' if trial else 'committed'}"):
                row(world, damage, trial, board)


def scenario_damage_table_uefi(world):
    """Each single damage of a slot, committed or on trial, ends with a tunnel (systemd-boot)"""
    rows(world, X86)


def scenario_damage_table_u_boot(world):
    """Each single damage of a slot, committed or on trial, ends with a tunnel (U-Boot)"""
    rows(world, BOARD)
