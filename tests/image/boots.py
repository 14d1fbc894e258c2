"""Scenarios from the first boot to the fleet: stages, settings, clock, boot time."""
import json
import os
import time

import hub as hubs
from host import memory
from machine import boot_file, boot_files, partition, put_boot_file
from updates import refused_bundles, update_wanted_by_the_control_plane
from world import BOOT, CONNECTED, KEY, ControlPlane, connect, health, settings, until

FAULTY = '[node]\nid = "bad id"\nstate_dri = "/x"\n'
IDLE = 3600


def from_the_box(world):
    """First boot: waits, reports faults, accepts corrected settings without a restart, connects with the right time"""
    world.control = ControlPlane(os.environ["SPOKE_CONTROL_BIN"], world.work)
    machine = world.machine("box").start()
    at, _ = machine.expect(r"slot a verified", BOOT)
    # The console prints the stage of /health.
    machine.expect(r"preconfigured, waiting for spoke.toml", BOOT, at)
    put_boot_file(machine.image, "spoke.toml", FAULTY.encode())
    machine.expect(r"node\.id", BOOT, at)
    machine.expect(r"state_dri.*unknown key", BOOT, at)
    faults = until(60, "spoke-faults.txt", lambda: boot_file(machine.image, "spoke-faults.txt")).decode()
    assert "node.id" in faults and "state_dri" in faults, faults
    given = settings(world.hub, ssh=world.ssh_key(), control=world.control, interface=False, settle="10s")
    put_boot_file(machine.image, "spoke.toml", given.encode())
    machine.expect(r"settings taken from the boot partition", BOOT, at)
    machine.expect(r"slot a: provisioned", BOOT, at)
    at, _ = connect(world, machine, at)
    assert sum("slot a verified" in line for line in machine.lines) == 1, "the machine rebooted"
    report = health()
    assert report["status"] == "healthy" and report["stage"] == "connected" and report["node_id"] == "image-test", report
    # Published by a process of its own.
    update = until(60, "the state of updates", lambda: health().get("update"))
    assert update["slot"] == "a" and update["trial"] is None, update
    assert hubs.ask("/ready"), "/ready answers 200"
    # The board booted in 2001 without a time server: its earliest possible time is that of its build.
    built = world.output_of("spoke clock show | sed -n 's/^build *//p'").strip()
    assert report["timestamp"] >= built > "2025", (report["timestamp"], built)
    names = until(60, "removal of spoke.toml", lambda: (n := boot_files(machine.image)) and "spoke.toml" not in n and n)
    assert "spoke-faults.txt" not in names, names
    # The token has done its work.
    secrets = world.output_of("stat -c '%a %U' /state/spoke/secrets; ls -A /state/spoke/secrets")
    assert secrets.split() == ["700", "spoke"], secrets
    start, size = partition(machine.image, "boot")
    with open(machine.image, "rb") as disk:
        disk.seek(start)
        content = disk.read(size)
    assert world.hub.public.encode() not in content and world.control.token.encode() not in content, "the settings are still readable on the boot partition"
    return machine, at


def scenario_from_the_box(world):
    """First boot to a committed update"""
    machine, at = from_the_box(world)
    world.passed(from_the_box.__doc__)
    world.figures["RAM in use with the tunnel up, page cache aside, MiB"] = memory(world)
    refused_bundles(world)
    world.passed(refused_bundles.__doc__)
    update_wanted_by_the_control_plane(world, machine, at)
    world.passed(update_wanted_by_the_control_plane.__doc__)


def scenario_boot_time(world):
    """Boot time: userspace start to tunnel up, relative to power-on to a bare shell (aim: at most three times)"""
    # Both without firmware, in CPU time of the emulator, which depends little on the host's load.
    bare = world.machine("bare", direct=True).start(append="init=/usr/bin/sh")
    bare.expect(r"slot a verified", BOOT)
    # The prompt of a shell without a profile.
    bare.expect(r"# $", BOOT)
    bare_cpu, bare_wall = bare.cpu(), bare.seconds()
    bare.cut_power()
    machine = world.machine("whole", direct=True, provision=settings(world.hub, ssh=world.ssh_key())).start()
    connect(world, machine)
    # The second start is measured: the first creates keys and provisions. After a clean poweroff, which stamps the clock: after a power
    # cut the hub would drop the first handshakes.
    until(120, "the second copy", lambda: any("second copy of the identity written" in line for line in machine.lines))
    world.shell("systemctl poweroff")
    machine.process.wait(BOOT)
    since = len(machine.lines)
    machine.start()
    # Printed just before the root's init is started.
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
    # Before or after the line of the connection.
    machine.expect(r"second copy of the identity written", BOOT)
    device = world.output_of("basename $(readlink -f /run/slot/dev/state)").strip()
    # Sectors written: field 10 of /proc/diskstats.
    read = f"sync; awk '$3 == \"{device}\" {{ print $10 }}' /proc/diskstats 2>/dev/null || grep ' {device} ' /proc/diskstats | tr -s ' ' | cut -d' ' -f11"
    time.sleep(30)
    before = int(world.output_of(read).split()[0])
    idle = float(os.environ.get("SPOKE_TEST_IDLE", IDLE))
    time.sleep(idle)
    written = (int(world.output_of(read).split()[0]) - before) * 512
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
