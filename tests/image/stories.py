"""What an image must do, told over its serial console; run by scripts/test-image in a network namespace of its own."""
import argparse
import contextlib
import functools
import http.server
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import hub as hubs
from machine import Failed, Machine, boot_file, boot_files, emulated_cpu_seconds, partition, put_boot_file

CONNECTED = r"slot (\w): connected \(healthy\), ([\d.]+) s"
KEY = r"public key of wg0: (\S{44})"
# Emulated and shared CPUs: a whole boot takes 40 to 120 s. Waits end as soon as what they wait for is there.
BOOT = 600
UPDATE_PORT = 8000


def settings(hub, **update):
    """The provisioning file."""
    rules = "".join(f"{k} = {json.dumps(v)}\n" for k, v in update.items())
    return f"""\
[node]
id = "image-test"

[[interface]]
name = "wg0"
addresses = ["{hubs.NODE}/24"]

[uplink]
interface = "wg0"

[[uplink.hub]]
name = "hub"
address = "{hubs.ADDRESS}"
public_key = "{hub.public}"
endpoint = "10.0.2.2:{hubs.PORT}"
allowed_ips = ["{hubs.ADDRESS}/32"]

[health]
listen = ["127.0.0.1:8080"]
tunnel = true

[update]
source = "http://10.0.2.2:{UPDATE_PORT}"
probes = ["10.0.2.2:{UPDATE_PORT}"]
{rules}"""


class World:
    """Hub, update server, image directories, and fresh copies of disks."""

    def __init__(self, images, work):
        self.images, self.work = images, work
        self.hub = hubs.Hub(work)
        self.served = work / "served"
        self.served.mkdir()
        handler = functools.partial(Quiet, directory=str(self.served))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", UPDATE_PORT), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.machines = []

    def machine(self, name, board="x86-64-uefi", provision=None, build="a", **more):
        directory = self.work / name
        directory.mkdir()
        image_dir = self.images / build / board
        disk = directory / "disk.img"
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(image_dir / "disk.img"), str(disk)], check=True)
        if provision is not None:
            put_boot_file(disk, "spoke.toml", provision.encode())
        machine = Machine(board, disk, directory, image_dir=image_dir, **more)
        self.machines.append(machine)
        return machine

    def offer(self, build, board="x86-64-uefi"):
        """Serves a build's bundle as the update."""
        shutil.copyfile(self.images / f"{build}-{board}.spoke", self.served / f".{board}")
        os.replace(self.served / f".{board}", self.served / f"{board}.spoke")

    def close(self):
        for machine in self.machines:
            machine.cut_power()
        self.hub.stop()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        # Whoever only looks at a bundle's header hangs up after it.
        with contextlib.suppress(ConnectionError):
            super().copyfile(source, outputfile)


def connect(world, machine, since=0, timeout=BOOT, slot="a"):
    """Waits for the key, lets the hub admit it, waits for the connection; returns (line, seconds after the kernel's start)."""
    at, key = machine.expect(KEY, timeout, since)
    world.hub.admit(key.group(1))
    at, found = machine.expect(CONNECTED, timeout, since)
    if found.group(1) != slot:
        raise Failed(f"slot {found.group(1)} is connected, not {slot}")
    return at, float(found.group(2))


def story_boots(world):
    """Boots by UEFI, takes its settings once, connects, answers through the tunnel."""
    machine = world.machine("boots", provision=settings(world.hub)).start()
    machine.expect(r"slot a verified", BOOT)
    machine.expect(r"settings taken from the boot partition", BOOT)
    _, up = connect(world, machine)
    health = json.loads(hubs.ask("/health"))
    assert health["status"] == "healthy" and health["node_id"] == "image-test", health
    assert hubs.ask("/ready"), "/ready answers 200"
    names = boot_files(machine.image)
    assert "spoke.toml" not in names, f"the settings are still on the boot partition: {names}"
    world.figures["kernel start to tunnel up, s (emulated)"] = up
    machine.cut_power()
    start, size = partition(machine.image, "boot")
    with open(machine.image, "rb") as disk:
        disk.seek(start)
        assert world.hub.public.encode() not in disk.read(size), "the settings' text is still readable on the boot partition"


def story_update_commits(world):
    """A good update is installed by itself, tried, committed; the next start is on it."""
    world.offer("b")
    machine = world.machine("update", provision=settings(world.hub, automatic=True, every="60s", settle="10s")).start()
    at, _ = connect(world, machine)
    at, _ = machine.expect(r"starts on trial", BOOT, at)
    at, _ = machine.expect(r"slot b verified", BOOT, at)
    at, _ = connect(world, machine, at, slot="b")
    machine.expect(r"update committed", BOOT, at)
    time.sleep(1)
    names = boot_files(machine.image, "::/EFI/Linux")
    assert sorted(names) == ["spoke-000001-a.efi", "spoke-000002-b.efi"], names
    machine.cut_power()


def falls_back(world, build, why, **rules):
    """Offers a bad build; the old slot must run again, by itself, and say why."""
    world.offer(build)
    machine = world.machine(f"bad-{build}", provision=settings(world.hub, automatic=True, every="60s", settle="10s", patience="90s", outage="400s", **rules)).start()
    at, _ = connect(world, machine)
    at, _ = machine.expect(r"starts on trial", BOOT, at)
    at, _ = machine.expect(r"slot b verified", BOOT, at)
    at, _ = machine.expect(r"slot a verified", 4 * BOOT, at, never="update committed")
    at, _ = connect(world, machine, at)
    machine.expect(why, BOOT, at - 400 if at > 400 else 0)
    # It is not tried again: the next look at the source finds a release that was given up.
    try:
        machine.expect(r"starts on trial", 90, at)
    except Failed:
        return machine.cut_power()
    raise Failed("a release that was given up is installed again")


def story_panicking_update(world):
    """An update whose kernel panics comes back after its three tries."""
    falls_back(world, "panics", r"update given up.*did not stay up")


def story_broken_supervisor(world):
    """An update whose supervisor does not run comes back."""
    falls_back(world, "broken", r"update given up")


def story_no_hub_update(world):
    """An update that cannot reach the hub, while the way out works, is rejected by itself."""
    falls_back(world, "nohub", r"update given up.*network outside answered")


def story_outage_during_trial(world):
    """An outage during a trial is waited for, not blamed."""
    world.offer("b")
    machine = world.machine("outage", provision=settings(world.hub, automatic=True, every="60s", settle="10s", patience="60s", outage="1h")).start()
    at, _ = connect(world, machine)
    at, _ = machine.expect(r"starts on trial", BOOT, at)
    machine.expect(r"slot b verified", BOOT, at)
    machine.cable(False)
    at, _ = machine.expect(r"slot b: provisioned", BOOT, at)
    # Twice the patience, without a word from outside.
    try:
        machine.expect(r"slot a verified|update given up", 150, at)
    except Failed:
        pass
    else:
        raise Failed("an outage was taken for a bad image")
    machine.cable(True)
    at, _ = connect(world, machine, at, slot="b")
    machine.expect(r"update committed", BOOT, at)
    machine.cut_power()


def story_faulty_settings(world):
    """Faults in the settings are all told, on the console and on the partition; mended settings are taken without a restart."""
    machine = world.machine("faulty", provision='[node]\nid = "bad id"\nstate_dri = "/x"\n').start()
    at, _ = machine.expect(r"node\.id", BOOT)
    machine.expect(r"state_dri.*unknown key", BOOT)
    time.sleep(2)
    told = (boot_file(machine.image, "spoke-faults.txt") or b"").decode()
    assert "node.id" in told and "state_dri" in told, told
    machine.cut_power()
    put_boot_file(machine.image, "spoke.toml", settings(world.hub).encode())
    machine.start()
    connect(world, machine, at)
    assert "spoke-faults.txt" not in boot_files(machine.image)
    machine.cut_power()


def story_lost_state(world):
    """A state partition beyond repair is made anew; the identity comes from its second copy."""
    machine = world.machine("lost", provision=settings(world.hub)).start()
    at, _ = connect(world, machine)
    _, key = machine.expect(KEY, 1)
    machine.expect(r"second copy of the identity written", BOOT)
    machine.cut_power()
    start, size = partition(machine.image, "state")
    with open(machine.image, "r+b") as disk:
        disk.seek(start)
        disk.write(random.Random(1).randbytes(size))
    since = len(machine.lines)
    machine.start()
    at, _ = machine.expect(r"beyond repair", BOOT, since)
    machine.expect(r"brought back from the second copy", BOOT, at)
    _, again = machine.expect(KEY, BOOT, at)
    assert again.group(1) == key.group(1), "the identity changed"
    connect(world, machine, at)
    machine.cut_power()


def story_both_slots_bad(world):
    """With both roots damaged the machine stops at the rescue console and says what to do."""
    machine = world.machine("rescue", provision=settings(world.hub))
    for slot in ("root_a", "root_b"):
        start, _ = partition(machine.image, slot)
        with open(machine.image, "r+b") as disk:
            disk.seek(start)
            disk.write(b"\xa5" * 65536)
    machine.start()
    machine.expect(r"neither system on this disk can be started", BOOT)
    machine.send("why")
    machine.expect(r"no root belongs to this kernel", 60)
    machine.cut_power()


def story_power_cuts(world, cuts=20):
    """Power cut at random moments of first boot, state writes and an update: always boots again as the same node."""
    world.offer("b")
    machine = world.machine("cuts", provision=settings(world.hub, automatic=True, every="60s", settle="10s"))
    chance = random.Random(int(os.environ.get("SPOKE_TEST_SEED", "1")))
    identity = None
    for cut in range(cuts):
        since = len(machine.lines)
        machine.start()
        moment = chance.uniform(5, 150)
        try:
            at, key = machine.expect(KEY, moment, since)
            world.hub.admit(key.group(1))
            assert identity in (None, key.group(1)), f"the identity changed after cut {cut}"
            identity = key.group(1)
            time.sleep(max(0, moment - machine.seconds()))
        except Failed:
            pass
        machine.cut_power()
        print(f"    cut {cut + 1} after {moment:.0f} s", flush=True)
    since = len(machine.lines)
    machine.start()
    at, found = machine.expect(CONNECTED, 2 * BOOT, since, never="beyond repair|neither system")
    _, key = machine.expect(KEY, 10, since)
    assert identity in (None, key.group(1)), "the identity changed"
    machine.cut_power()
    state, size = partition(machine.image, "state")
    copy = machine.work / "state.img"
    with open(machine.image, "rb") as disk, open(copy, "wb") as out:
        disk.seek(state)
        out.write(disk.read(size))
    assert subprocess.run(["e2fsck", "-p", str(copy)], capture_output=True, check=False).returncode < 2
    assert subprocess.run(["e2fsck", "-f", "-n", str(copy)], capture_output=True, check=False).returncode == 0, "the state file system has faults"


def story_arm64_boots(world):
    """The arm64 image boots by its UEFI path and connects."""
    machine = world.machine("arm64", board="arm64-uefi", provision=settings(world.hub), memory=512).start()
    machine.expect(r"slot a verified", BOOT)
    connect(world, machine, timeout=2 * BOOT)
    machine.cut_power()


QUICK = [story_boots, story_update_commits]
LONG = [story_boots, story_update_commits, story_faulty_settings, story_lost_state, story_both_slots_bad, story_no_hub_update,
        story_broken_supervisor, story_panicking_update, story_outage_during_trial, story_arm64_boots, story_power_cuts]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=pathlib.Path)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only")
    parser.add_argument("--results", type=pathlib.Path)
    options = parser.parse_args()
    # Ended from outside, what was started still ends with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = LONG if options.long else QUICK
    if options.only:
        chosen = [s for s in LONG if re.search(options.only, s.__name__)]
    figures, failed, results = {}, 0, []
    for story in chosen:
        title = story.__doc__.strip()
        with tempfile.TemporaryDirectory(prefix="spoke-machine.", dir=os.environ.get("TMPDIR", "/var/tmp")) as work:
            began = time.monotonic()
            world = World(options.images, pathlib.Path(work))
            world.figures = figures
            try:
                world.hub.start()
                story(world)
                outcome = "ok"
            except (Failed, AssertionError, subprocess.CalledProcessError) as e:
                outcome, failed = "FAILED", failed + 1
                print(e, file=sys.stderr)
                for log in pathlib.Path(work).glob("*/console.log"):
                    keep = options.images / f"failed-{story.__name__}.log"
                    shutil.copyfile(log, keep)
                    print(f"console: {keep}", file=sys.stderr)
            finally:
                world.close()
                world.server.shutdown()
                world.server.server_close()
            took = time.monotonic() - began
        results.append({"story": title, "outcome": outcome, "seconds": round(took)})
        print(f"{'ok' if outcome == 'ok' else 'not ok'} - {title} ({took:.0f} s)", flush=True)
    figures["emulator CPU, s"] = round(emulated_cpu_seconds())
    for name, value in figures.items():
        print(f"       {value}  {name}")
    if options.results:
        options.results.write_text(json.dumps({"results": results, "figures": figures}, indent=1) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
