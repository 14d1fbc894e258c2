"""Scenarios of the way from the box to the fleet: stages, settings, clock, what a start costs."""
import json
import os
import re
import time

import hub as hubs
from machine import boot_file, boot_files, partition, put_boot_file
from updates import refused_bundles, update_wanted_by_the_control_plane
from world import BOOT, CONNECTED, KEY, ControlPlane, connect, health, settings, until

FAULTY = '[node]\nid = "bad id"\nstate_dri = "/x"\n'
IDLE = 3600


def from_the_box(world):
    """From the box: waits, tells faults, takes mended settings without a restart, connects with the right time"""
    world.control = ControlPlane(os.environ["SPOKE_CONTROL_BIN"], world.work)
    machine = world.machine("box").start()
    at, _ = machine.expect(r"slot a verified", BOOT)
    # The console says what /health says, so this is the stage in both.
    machine.expect(r"preconfigured, waiting for spoke.toml", BOOT, at)
    put_boot_file(machine.image, "spoke.toml", FAULTY.encode())
    machine.expect(r"node\.id", BOOT, at)
    machine.expect(r"state_dri.*unknown key", BOOT, at)
    told = until(60, "spoke-faults.txt", lambda: boot_file(machine.image, "spoke-faults.txt")).decode()
    assert "node.id" in told and "state_dri" in told, told
    given = settings(world.hub, ssh=world.ssh_key(), control=world.control, interface=False, settle="10s")
    put_boot_file(machine.image, "spoke.toml", given.encode())
    machine.expect(r"settings taken from the boot partition", BOOT, at)
    machine.expect(r"slot a: provisioned", BOOT, at)
    at, _ = connect(world, machine, at)
    assert sum("slot a verified" in line for line in machine.lines) == 1, "it was started again"
    said = health()
    assert said["status"] == "healthy" and said["stage"] == "connected" and said["node_id"] == "image-test", said
    assert said["update"]["slot"] == "a" and said["update"]["trial"] is None, said
    assert hubs.ask("/ready"), "/ready answers 200"
    # The board came up in 2001 and has heard no time server: what it knows is the time of its own build.
    built = world.told("spoke clock show | sed -n 's/^build *//p'").strip()
    assert said["timestamp"] >= built > "2025", (said["timestamp"], built)
    names = until(60, "the end of spoke.toml", lambda: (n := boot_files(machine.image)) and "spoke.toml" not in n and n)
    assert "spoke-faults.txt" not in names, names
    secret = world.told("stat -c '%a %U' /state/spoke/secrets/token; cat /state/spoke/secrets/token")
    assert secret.split() == ["600", "spoke", world.control.token], secret
    start, size = partition(machine.image, "boot")
    with open(machine.image, "rb") as disk:
        disk.seek(start)
        content = disk.read(size)
    assert world.hub.public.encode() not in content and world.control.token.encode() not in content, "the settings are still readable on the boot partition"
    return machine, at


def scenario_from_the_box(world):
    """From the box to a committed update"""
    machine, at = from_the_box(world)
    world.passed(from_the_box.__doc__)
    world.figures["RAM in use with the tunnel up, page cache aside, MiB"] = memory(world)
    refused_bundles(world)
    world.passed(refused_bundles.__doc__)
    update_wanted_by_the_control_plane(world, machine, at)
    world.passed(update_wanted_by_the_control_plane.__doc__)


def memory(world):
    """What neither is free nor could be at once, MiB."""
    read = dict(re.findall(r"(\w+): +(\d+) kB", world.told("cat /proc/meminfo")))
    kib = {k: int(v) for k, v in read.items()}
    return round((kib["MemTotal"] - kib["MemFree"] - kib["Buffers"] - kib["Cached"] - kib["SReclaimable"] + kib["Shmem"]) / 1024, 1)


def scenario_boot_time(world):
    """What a start costs: userspace start to tunnel up against the whole start to a bare shell (a figure; the aim is three times)"""
    # Both by the kernel itself, without firmware; measured in processor time of the emulator, which others change little.
    bare = world.machine("bare", direct=True).start(append="init=/usr/bin/sh")
    bare.expect(r"slot a verified", BOOT)
    # The whole prompt of a shell without a profile.
    bare.expect(r"# $", BOOT)
    bare_cpu, bare_wall = bare.cpu(), bare.seconds()
    bare.cut_power()
    machine = world.machine("whole", direct=True, provision=settings(world.hub, ssh=world.ssh_key())).start()
    connect(world, machine)
    # Keys are made and settings taken at a first start only: the second is the usual one. It follows on a clean end, which keeps
    # the time: after a power cut the hub drops the first handshakes of a clock that was set back.
    until(120, "the second copy", lambda: any("second copy of the identity written" in line for line in machine.lines))
    world.shell("systemctl poweroff")
    machine.process.wait(BOOT)
    since = len(machine.lines)
    machine.start()
    # What starts the first program of the root says so right before.
    at, _ = machine.expect(r"slot a verified", BOOT, since)
    began_cpu, began_wall = machine.cpu(), machine.seconds()
    machine.expect(r"tunnel is up", BOOT, at)
    cpu, wall = machine.cpu(), machine.seconds()
    machine.cut_power()
    world.figures["power-on to bare shell, s of emulator CPU (wall)"] = f"{bare_cpu:.1f} ({bare_wall:.0f})"
    world.figures["power-on to tunnel up, s of emulator CPU (wall)"] = f"{cpu:.1f} ({wall:.0f})"
    world.figures["userspace start to tunnel up, s of emulator CPU (wall)"] = f"{cpu - began_cpu:.1f} ({wall - began_wall:.0f})"
    world.figures["userspace start to tunnel up : power-on to bare shell"] = round((cpu - began_cpu) / bare_cpu, 2)


def scenario_idle_hour(world):
    """An idle hour writes nothing to the state partition"""
    machine = world.machine("idle", provision=settings(world.hub, ssh=world.ssh_key())).start()
    connect(world, machine)
    # Before or after the line that says it is connected.
    machine.expect(r"second copy of the identity written", BOOT)
    device = world.told("basename $(readlink -f /run/slot/dev/state)").strip()
    # Sectors written since the start: the seventh figure behind the name.
    look = f"sync; awk '$3 == \"{device}\" {{ print $10 }}' /proc/diskstats 2>/dev/null || grep ' {device} ' /proc/diskstats | tr -s ' ' | cut -d' ' -f11"
    time.sleep(30)
    before = int(world.told(look).split()[0])
    idle = float(os.environ.get("SPOKE_TEST_IDLE", IDLE))
    time.sleep(idle)
    written = (int(world.told(look).split()[0]) - before) * 512
    world.figures[f"bytes written to the state partition in {idle / 60:.0f} idle minutes"] = written
    world.figures["RAM in use after it, page cache aside, MiB"] = memory(world)
    machine.cut_power()
    assert written == 0, f"{written} bytes were written"


def scenario_arm64_boots(world):
    """The arm64 image boots by its UEFI path and connects"""
    machine = world.machine("arm64", board="arm64-uefi", provision=settings(world.hub), memory=512).start()
    machine.expect(r"slot a verified", 2 * BOOT)
    connect(world, machine, timeout=2 * BOOT)
    assert health()["status"] == "healthy"
    machine.cut_power()
