"""Scenarios of disks that lose their state, take no writes or have a ruined boot partition: the tunnel comes up and /health says why."""
import json
import subprocess

import hub as hubs
from damage import spoil
from machine import partition, put_boot_file
from world import BOOT, CONNECTED, KEY, connect, health, settings

# `disconnected` and `unhealthy` are no connection.
DEGRADED = r"slot (\w): connected \(degraded\)"


def configured(world, name, **more):
    """A board with settings, switched off; returns (machine, its public key)."""
    machine = world.machine(name, provision=settings(world.hub), **more).start()
    connect(world, machine)
    _, key = machine.expect(KEY, 1)
    machine.expect(r"second copy of the identity written", BOOT)
    # ext4 commits every 30 s.
    machine.pause(40)
    machine.cut_power()
    return machine, key.group(1)


def still_connects(machine, key, code, text):
    """Starts the board: it connects with the same key and reports the condition."""
    since = len(machine.lines)
    machine.start()
    if text:
        machine.expect(text, BOOT, since)
    at, _ = machine.expect(DEGRADED, 2 * BOOT, since)
    _, again = machine.expect(KEY, 60, since)
    assert again.group(1) == key, "the identity changed"
    codes = [r["code"] for r in health()["reasons"]]
    assert code in codes, codes
    return at


def content(image, name):
    start, size = partition(image, name)
    with open(image, "rb") as disk:
        disk.seek(start)
        return disk.read(size)


def number_of(image, name):
    """The number of a partition in the table."""
    table = json.loads(subprocess.run(["sfdisk", "-J", str(image)], check=True, capture_output=True, text=True).stdout)
    return [p.get("name") for p in table["partitiontable"]["partitions"]].index(name) + 1


def scenario_missing_state(world):
    """Without a state partition the tunnel comes up from the second copy, and the condition is reported"""
    machine, key = configured(world, "no-state")
    subprocess.run(["sfdisk", "-q", "--delete", str(machine.image), str(number_of(machine.image, "state"))], check=True)
    still_connects(machine, key, "flash_readonly", r"there is no state partition")
    machine.cut_power()


def scenario_read_only_card(world):
    """A card that takes no writes: the tunnel comes up and the condition is reported, also after a second start"""
    machine, key = configured(world, "read-only")
    before = machine.image.read_bytes()
    machine.read_only = True
    still_connects(machine, key, "flash_readonly", r"state partition cannot be read or written")
    machine.cut_power()
    still_connects(machine, key, "flash_readonly", r"state partition cannot be read or written")
    machine.cut_power()
    assert machine.image.read_bytes() == before


def scenario_failing_writes(world):
    """Every write ends in an I/O error: the tunnel comes up and the condition is reported"""
    # Without the firmware, whose FAT driver gives a disk up after a failed write.
    machine, key = configured(world, "failing-writes", direct=True)
    machine.faults = [{"event": "none", "iotype": "write", "errno": 5}]
    still_connects(machine, key, "flash_readonly", r"state partition cannot be read or written")
    machine.cut_power()


def scenario_unreadable_state(world):
    """A state partition with an unreadable superblock is not formatted; the tunnel comes up from the second copy"""
    machine, key = configured(world, "unreadable")
    before = content(machine.image, "state")
    start, _ = partition(machine.image, "state")
    # ext4's superblock is 1 KiB after the start.
    machine.faults = [{"event": "none", "iotype": "read", "errno": 5, "sector": start // 512 + 2}]
    still_connects(machine, key, "flash_readonly", r"state partition cannot be read or written")
    machine.cut_power()
    assert content(machine.image, "state") == before, "the state partition was written"


def scenario_ruined_boot_partition(world):
    """With a ruined boot partition a configured board connects, and the condition is reported"""
    # Started without the boot partition's kernel: the firmware could not read it either.
    machine, key = configured(world, "no-boot", direct=True)
    spoil(machine.image, "boot")
    still_connects(machine, key, "boot_unreadable", r"the boot partition cannot be mounted")
    machine.cut_power()


def scenario_unusable_settings_file(world):
    """An unreadable spoke.toml does not stop a configured board; a file with a wrong ending is named on the console"""
    machine, key = configured(world, "unusable")
    start, _ = partition(machine.image, "boot")
    subprocess.run(["mmd", "-i", f"{machine.image}@@{start}", "::spoke.toml"], check=True)
    since = len(machine.lines)
    machine.start()
    machine.expect(r"cannot read spoke.toml on the boot partition", BOOT, since)
    machine.expect(CONNECTED, BOOT, since)
    _, again = machine.expect(KEY, 60, since)
    assert again.group(1) == key, "the identity changed"
    machine.cut_power()
    # Windows hides the second ending.
    fresh = world.machine("misnamed")
    put_boot_file(fresh.image, "spoke.toml.txt", settings(world.hub).encode())
    fresh.start()
    fresh.expect(r"spoke.toml.txt on the boot partition is not read: rename it to spoke.toml", BOOT)
    fresh.expect(r"preconfigured, waiting for spoke.toml", BOOT)
    fresh.cut_power()


def scenario_last_rung(world):
    """A supervisor that never runs, on a system whose slots cannot be read, restarts the machine; then at a bounded rate"""
    machine = world.machine("last-rung", "lastrung", provision=settings(world.hub)).start()
    at, _ = machine.expect(r"slot a verified", BOOT)
    at, _ = machine.expect(r"slot a verified", BOOT, at)
    at, _ = machine.expect(r"did not run in 1 starts before this one: the next restart is in 30 minutes", BOOT, at)
    machine.cut_power()
