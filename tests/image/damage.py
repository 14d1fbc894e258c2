"""Scenarios of damaged disks, full disks and power cuts: the identity stays, and the board boots or prints the remedy."""
import os
import pathlib
import random
import re
import struct
import subprocess

from machine import Failed, boot_file, boot_files, boot_room, partition, put_boot_file
from world import BOOT, CONNECTED, KEY, connect, copy_disk, health, settings


def spoil(image, name, count=None):
    """Overwrites a partition, or its first bytes, with random bytes."""
    start, size = partition(image, name)
    with open(image, "r+b") as disk:
        disk.seek(start)
        disk.write(random.Random(1).randbytes(count or size))


def scenario_lost_state(world):
    """A state partition beyond repair is formatted; the identity is restored from its second copy"""
    machine = world.machine("lost", provision=settings(world.hub)).start()
    at, _ = connect(world, machine)
    _, key = machine.expect(KEY, 1)
    machine.expect(r"second copy of the identity written", BOOT)
    machine.cut_power()
    spoil(machine.image, "state")
    since = len(machine.lines)
    machine.start()
    at, _ = machine.expect(r"state partition is beyond repair", BOOT, since)
    machine.expect(r"brought back from the second copy", BOOT, at)
    _, again = machine.expect(KEY, BOOT, at)
    assert again.group(1) == key.group(1), "the identity changed"
    connect(world, machine, at)
    machine.cut_power()


def scenario_full_state(world):
    """The tunnel and updates work with a full state partition"""
    world.offer("b")
    given = settings(world.hub, ssh=world.ssh_key(), settle="10s")
    machine = world.machine("full", provision=given).start()
    connect(world, machine)
    # Before or after the line of the connection.
    machine.expect(r"second copy of the identity written", BOOT)
    # Without the blocks reserved for root, as the supervisor's user would fill it.
    world.shell("dd if=/dev/zero of=/state/spoke/fill bs=64k 2>/dev/null; sync")
    left = world.output_of("df -k /state | tail -1 | tr -s ' ' | cut -d' ' -f4").strip()
    assert left == "0", f"{left} KiB are left"
    at = len(machine.lines)
    world.shell("spoke update install")
    at, _ = machine.expect(r"slot b verified", BOOT, at)
    at, _ = connect(world, machine, at, slot="b")
    machine.expect(r"update committed", BOOT, at)
    machine.cut_power()


def scenario_full_boot_partition(world):
    """With a full boot partition faults are printed on the console, and valid settings are accepted and wiped"""
    machine = world.machine("full-boot")
    good = settings(world.hub)
    # The corrected file is not longer, so it fits.
    put_boot_file(machine.image, "spoke.toml", b'[node]\nid = "bad id"\n' + b"#" * len(good))
    put_boot_file(machine.image, "fill", b"x" * boot_room(machine.image))
    machine.start()
    at, _ = machine.expect(r"node\.id", BOOT)
    machine.expect(r"cannot write spoke-faults.txt", BOOT, at)
    put_boot_file(machine.image, "spoke.toml", good.encode())
    at, _ = machine.expect(r"settings taken from the boot partition", BOOT, at)
    connect(world, machine, at)
    assert "spoke.toml" not in boot_files(machine.image)
    start, size = partition(machine.image, "boot")
    with open(machine.image, "rb") as disk:
        disk.seek(start)
        assert world.hub.public.encode() not in disk.read(size), "the settings are still readable on the boot partition"
    machine.cut_power()


def scenario_both_slots_bad(world):
    """With both roots damaged a prompt is on the serial port and the screen, takes either's keyboard, and restarts without input"""
    machine = world.machine("rescue", provision=settings(world.hub), screen=True)
    for slot in ("root_a", "root_b"):
        spoil(machine.image, slot, 65536)
    machine.start()
    at, _ = machine.expect(r"neither system on this disk can be started", BOOT)
    machine.expect(r"write the image to the disk again", 60, at)
    machine.send("why")
    machine.expect(r"no root belongs to this kernel", 60, at)
    machine.send("help")
    at, _ = machine.expect(r"neither system on this disk can be started", 60, at)
    machine.pause(5)
    rows = machine.screen_rows()
    assert rows >= 10, f"the screen shows {rows} rows"
    machine.type("reboot")
    at, _ = machine.expect(r"neither system on this disk can be started", BOOT, at)
    at, _ = machine.expect(r"neither system on this disk can be started", BOOT, at)
    machine.cut_power()


# Per cut: the console line to wait for, and the largest delay after it in seconds.
FIRST_BOOT = [(r"slot a verified", 20), (rf"settings taken|{KEY}", 1), (KEY, 5)]
STATE = [(KEY, 15), (CONNECTED, 10), (CONNECTED, 30)]
UPDATE = [(r"writing 0\.2\.0 to slot b", 6), (r"writing 0\.2\.0 to slot b", 12), (r"starts on trial", 3), (r"slot b verified", 25), (r"slot b: connected", 14)]
# Console lines of a finished update: at its end, and at later boots.
COMMITTED, UPDATED = "update committed", "slots slot=b situation=Settled"
CUTS = [FIRST_BOOT[i % 3] for i in range(6)] + [STATE[i % 3] for i in range(5)] + [UPDATE[i % 5] for i in range(9)]


def scenario_power_cuts(world):
    """20 power cuts with unflushed writes lost or torn: boots as the same node, no partial slot, clean file systems"""
    cuts = int(os.environ.get("SPOKE_TEST_CUTS", len(CUTS)))
    chance = random.Random(int(os.environ.get("SPOKE_TEST_SEED", "1")))
    world.offer("b")
    given = settings(world.hub, automatic=True, every="60s", settle="10s")
    disk, identity, lost, outdated = None, None, 0, None
    for number, (pattern, delay) in enumerate(CUTS[:cuts], 1):
        # First boots need a fresh disk: three of them, cut twice each.
        fresh = number in (1, 3, 5) or disk is None
        machine = world.machine(f"cut-{number}", provision=given if fresh else None)
        if not fresh:
            copy_disk(disk, machine.image)
        else:
            identity = None
        if outdated is None and (pattern, delay) in UPDATE:
            outdated = machine.work / "outdated.img"
            copy_disk(disk, outdated)
        machine.journal = machine.work / "journal"
        before = machine.work / "before.img"
        copy_disk(machine.image, before)
        machine.start()
        moment = chance.uniform(0, delay)
        seen, over = "no such line", False
        try:
            machine.expect(r"slot [ab] verified", 2 * BOOT, never="neither system")
            for line in machine.follow(f"{pattern}|{COMMITTED}|{UPDATED}", BOOT):
                if key := re.search(KEY, line):
                    world.hub.admit(key.group(1))
                    assert identity in (None, key.group(1)), f"the identity changed before cut {number}"
                    identity = key.group(1)
            seen, over = line, UPDATED in line
            machine.pause(moment)
        except Failed as e:
            # An update whose tries were all cut is not installed again; the board itself must run.
            runs = any(re.search(CONNECTED, line) for line in machine.lines)
            if "not found within" not in str(e) or (pattern, delay) not in UPDATE or not runs:
                raise
            over = True
        machine.cut_power()
        lost += replay(before, machine.journal, chance)
        check(before, number)
        print(f"    cut {number}: {moment:.1f} s after {seen!r}", flush=True)
        disk = before
        if over and number < cuts:
            # The next cut starts from the disk before the update.
            starts_again(world, disk, f"after-{number}", identity)
            disk = outdated
        for old in (machine.image, machine.journal):
            pathlib.Path(old).unlink()
    starts_again(world, disk, "after", identity)
    world.figures["writes lost or torn in the power cuts"] = lost


def starts_again(world, disk, name, identity):
    """A board with the disk left by the cuts connects as the same node."""
    machine = world.machine(name)
    copy_disk(disk, machine.image)
    machine.start()
    machine.expect(CONNECTED, 2 * BOOT, never="partition is beyond repair|neither system")
    _, key = machine.expect(KEY, 10)
    assert identity == key.group(1), "the identity changed"
    machine.cut_power()


FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


def entries(journal):
    """Yields the writes of a journal in order: (offset, data or None, flags)."""
    with open(journal, "rb") as f:
        head = f.read(28)
        if len(head) < 28:
            return
        magic, _, _, sector = struct.unpack("<QQQI", head)
        assert magic == 0x6A736677736872, "not a blklogwrites journal"
        at = sector
        while True:
            f.seek(at)
            entry = f.read(32)
            if len(entry) < 32:
                return
            start, count, flags, _ = struct.unpack("<QQQQ", entry)
            if (start, count, flags) == (0, 0, 0):
                return
            data = None
            if not flags & (DISCARD | MARK) and count:
                f.seek(at + sector)
                data = f.read(count * sector)
                if len(data) < count * sector:
                    return
            yield start * sector, data, flags
            at += sector + (len(data) if data else 0)


def replay(image, journal, chance):
    """Applies a journal to `image` as a power cut may leave it: every flushed write, and a random subset of the later ones, in
    random order, some of them partial. Returns the number of lost or torn writes."""
    lost, pending = 0, []
    with open(image, "r+b") as disk:
        def write(offset, data):
            disk.seek(offset)
            disk.write(data)
        for offset, data, flags in entries(journal):
            if flags & FLUSH:
                for earlier in pending:
                    write(*earlier)
                pending = []
            if data is None:
                continue
            if flags & FUA:
                write(offset, data)
            else:
                pending.append((offset, data))
        chance.shuffle(pending)
        for offset, data in pending:
            kind = chance.random()
            if kind < 0.4:
                write(offset, data)
                continue
            lost += 1
            if kind < 0.6:
                write(offset, data[:chance.randrange(len(data) // 512 + 1) * 512])
    return lost


def check(image, number):
    """Checks that file systems can be repaired and that every bootable slot is complete."""
    work = image.parent
    for name, repair, verify in (
            ("state", ["e2fsck", "-p"], ["e2fsck", "-f", "-n"]),
            ("boot", ["fsck.fat", "-a"], ["fsck.fat", "-n"])):
        part = work / f"{name}.img"
        start, size = partition(image, name)
        with open(image, "rb") as disk, open(part, "wb") as out:
            disk.seek(start)
            out.write(disk.read(size))
        done = subprocess.run([*repair, str(part)], capture_output=True, text=True, check=False)
        assert done.returncode < 4, f"cut {number}: {name}: {done.stdout}{done.stderr}"
        done = subprocess.run([*verify, str(part)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"cut {number}: {name} has faults: {done.stdout}{done.stderr}"
        part.unlink()
    whole = {}
    for name in boot_files(image, "::/EFI/Linux"):
        found = re.fullmatch(r"spoke-\d{6}-([ab])(\+\d+(-\d+)?)?\.efi", name)
        if not found or (found.group(2) or "").startswith("+0"):
            continue
        kernel = boot_file(image, f"EFI/Linux/{name}")
        command = re.search(rb"spoke\.roothash=([0-9a-f]{64}) spoke\.hashoffset=(\d+)", kernel)
        assert command, f"cut {number}: {name} is a partial kernel"
        whole[name] = verified(image, f"root_{found.group(1)}", command.group(1).decode(), int(command.group(2)), work)
    assert whole and all(whole.values()), f"cut {number}: incomplete bootable slots: {whole}"


def verified(image, name, root_hash, offset, work):
    part = work / "root.img"
    start, size = partition(image, name)
    with open(image, "rb") as disk, open(part, "wb") as out:
        disk.seek(start)
        out.write(disk.read(size))
    done = subprocess.run(["veritysetup", "verify", f"--hash-offset={offset}", str(part), str(part), root_hash], capture_output=True, check=False)
    part.unlink()
    return done.returncode == 0
