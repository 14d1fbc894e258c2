"""Scenarios of updates: good, bad, refused, requested by the control plane, rolled back."""
import json
import os
import pathlib
import subprocess
import time

import hub as hubs
from machine import Failed, boot_files
from world import BOOT, CONNECTED, KEY, connect, health, settings, silence, until

X86 = "x86-64-uefi"


def bundle(world, name, *, board=X86, version="9.9.9", sequence=9, floor=0, root=b"root", keys="keys", files=None):
    """Builds a small signed bundle of placeholder parts; returns its bytes."""
    directory = world.work / f"bundle-{name}"
    directory.mkdir()
    (directory / "root.img").write_bytes(root)
    (directory / "boot.efi").write_bytes(b"kernel")
    (directory / "contents.json").write_text(json.dumps({"board": board, "version": version}))
    keys = world.images / keys
    subprocess.run(
        [os.environ["SPOKE_IMAGE_BIN"], "bundle", "--image", str(directory), "--sequence", str(sequence), "--floor", str(floor),
         "--certificate", str(keys / "certificate.json"), "--key", str(keys / "signing.key"), "--output", str(directory / "out")],
        check=True, stdout=subprocess.DEVNULL)
    return (directory / "out").read_bytes()


def refused_bundles(world):
    """Truncated, wrongly signed, oversized bundles and those of another board are refused with the reason; slots are unchanged"""
    good = bundle(world, "good")
    huge = bundle(world, "huge", root=b"\0" * (65 << 20))
    signed_by_others = bundle(world, "others", keys="other-keys")
    at = good.index(b"9.9.9")
    table = {
        "short.spoke": (good[:-9], "truncated: fetch it again"),
        "damaged.spoke": (good[:-1] + b"X", "kernel is damaged: fetch it again"),
        "changed.spoke": (good[:at] + b"9.9.8" + good[at + 5:], "its signature is wrong"),
        "others.spoke": (signed_by_others, "not certified by a root key of this device"),
        "board.spoke": (bundle(world, "board", board="lamobo-r1"), "it is for board lamobo-r1, this is x86-64-uefi"),
        "huge.spoke": (huge, "this update is for a larger disk layout"),
        "none.spoke": (b"#!/bin/sh\necho no\n", "this is not an update bundle"),
    }
    commands = []
    for name, (content, _) in table.items():
        address = world.serve(name, content)
        commands.append(f"echo == {name}; spoke update install {address} 2>&1 && echo INSTALLED")
    _, printed = world.shell("; ".join(commands), timeout=600)
    for name, (_, words) in table.items():
        part = printed.partition(f"== {name}\n")[2].partition("\n== ")[0]
        assert words in part and "INSTALLED" not in part, f"{name}: {part!r}"
    status = json.loads(world.output_of("spoke update status --json"))
    assert status["slots"]["running"] == "a" and status["slots"]["trust"] == "good" and status["record"]["trial"] is None, status
    assert status["slots"]["other"] is None, f"slot b has a bootable entry: {status}"


def on_trial(machine, at):
    """Waits until an update is written and slot b runs it on trial; returns the line's index."""
    at, _ = machine.expect(r"starts on trial", BOOT, at)
    at, _ = machine.expect(r"slot b verified", BOOT, at)
    return at


def committed(world, machine, at, slot="b"):
    """Waits until the slot is connected and committed; returns the line's index."""
    at, _ = connect(world, machine, at, slot=slot)
    at, _ = machine.expect(r"update committed", BOOT, at)
    return at


def update_wanted_by_the_control_plane(world, machine, at):
    """A release requested by the control plane is installed, tried, committed and reported; older ones are refused afterwards"""
    world.offer("b")
    before = health()["timestamp"]
    world.control.ask("release", "want", "0.2.0", "--network", "field")
    at = on_trial(machine, at)
    committed(world, machine, at)
    # Both are committed: two starts left that do not reach the first process.
    committed_names = ["spoke-000001-a+2-2.efi", "spoke-000002-b+2-2.efi"]
    until(30, "the commit", lambda: sorted(boot_files(machine.image, "::/EFI/Linux")) == committed_names)

    def reported():
        update = world.control.node()["update"]
        return update and update["last"] and update
    update = until(120, "the report", reported)
    assert update["version"] == "0.2.0" and update["last"]["reason"] is None and update["slot"] == "b", update
    report = health()
    assert report["update"]["last"]["version"] == "0.2.0", report
    assert report["timestamp"] > before, "the clock went back with the restart"
    old = world.serve("old.spoke", bundle(world, "old", sequence=1))
    status, words = world.shell(f"spoke update install {old}; spoke update status")
    assert "release 1 is older than allowed here (2 or later)" in words, words
    assert "slot b  0.2.0  committed, running" in words and "slot a  0.1.0  committed" in words, words


def scenario_update_by_itself(world):
    """A good update from the configured source is installed by itself, committed, and taken back by hand for good"""
    world.offer("b")
    machine = world.machine("update", provision=settings(world.hub, ssh=world.ssh_key(), automatic=True, every="60s", settle="10s")).start()
    at, _ = connect(world, machine)
    at = on_trial(machine, at)
    committed(world, machine, at)
    at = len(machine.lines)
    world.shell("spoke update rollback")
    at, _ = machine.expect(r"slot a verified", BOOT, at)
    at = committed(world, machine, at, slot="a")
    # The source still offers the version that was rolled back.
    silence(machine, r"starts on trial", 100, at)
    words = world.output_of("spoke update status; spoke update check")
    assert "slot a  0.1.0  committed, running" in words and "version 0.2.0 (0.2.0 was given up here)" in words, words


def tries(world, name, build, **rules):
    """Starts a board that finds the offered build and runs it on trial; returns (machine, line's index)."""
    world.offer(build)
    machine = world.machine(name, provision=settings(world.hub, automatic=True, every="60s", settle="10s", **rules)).start()
    at, _ = connect(world, machine)
    return machine, on_trial(machine, at)


def falls_back(world, build, why, compared=False):
    """Offers a bad build; the old slot must run again and report the reason. `compared`: after a second trial."""
    machine, at = tries(world, f"bad-{build}", build, patience="90s", outage="400s")
    if compared:
        at, _ = machine.expect(r"comparing with the old system", 2 * BOOT, at)
        at, _ = machine.expect(r"slot a verified", BOOT, at)
        at, _ = connect(world, machine, at)
        at, _ = machine.expect(r"slot b verified", BOOT, at)
    at, _ = machine.expect(r"slot a verified", 4 * BOOT, at, never="update committed")
    given_up = at
    at, _ = connect(world, machine, at)
    last = until(60, "the reason in /health", lambda: (health().get("update") or {}).get("last"))
    assert last["version"] == "0.2.1" and last["reason"] == why, last
    # It is not tried again: the next check finds a release that was given up.
    silence(machine, r"starts on trial", 90, given_up)
    machine.cut_power()
    return machine


def scenario_panicking_update(world):
    """An update whose kernel panics falls back after its three tries"""
    machine = falls_back(world, "panics", "did_not_start")
    starts = sum("slot b verified" in line for line in machine.lines)
    assert starts == 3, f"{starts} tries"


def scenario_hanging_update(world):
    """An update whose PID 1 hangs is reset by the hardware watchdog and falls back"""
    falls_back(world, "hangs", "did_not_start")


def scenario_broken_supervisor(world):
    """An update whose supervisor does not run falls back"""
    falls_back(world, "broken", "did_not_start")


def scenario_no_hub_update(world):
    """An update that cannot reach the hub while the WAN works is rejected"""
    falls_back(world, "nohub", "not_healthy", compared=True)


def scenario_outage_during_trial(world):
    """An outage during a trial does not reject the update"""
    machine, at = tries(world, "outage", "b", patience="60s", outage="1h")
    machine.cable(False)
    at, _ = machine.expect(r"slot b: provisioned", BOOT, at)
    # More than twice the patience.
    silence(machine, r"slot a verified|update given up", 150, at)
    machine.cable(True)
    committed(world, machine, at)
    machine.cut_power()


def scenario_long_outage(world):
    """An outage longer than a trial boots the old system once; the update is committed afterwards"""
    machine, at = tries(world, "long-outage", "b", patience="20s", outage="40s")
    machine.cable(False)
    at, _ = machine.expect(r"probing from the old system", BOOT, at)
    at, _ = machine.expect(r"slot a verified", BOOT, at)
    at, _ = machine.expect(r"slot a: provisioned", BOOT, at)
    silence(machine, r"slot b verified|update given up", 60, at)
    machine.cable(True)
    at, _ = machine.expect(r"the outage is over: the update is tried again", BOOT, at)
    at, _ = machine.expect(r"slot b verified", BOOT, at)
    committed(world, machine, at)
    machine.cut_power()
