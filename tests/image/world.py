"""The environment of the emulated boards: a hub, a bundle server, a control plane; and patterns of console lines."""
import contextlib
import functools
import http.server
import json
import os
import pathlib
import re
import shutil
import subprocess
import threading
import time

import hub as hubs
from machine import Failed, Machine, put_boot_file

CONNECTED = r"slot (\w): connected \(healthy\), ([\d.]+) s"
KEY = r"public key of wg0: (\S{44})"
# Seconds. A boot on an emulated CPU takes 40 to 120 s; waits end early on success.
BOOT = 400
UPDATE_PORT = 8000
CONTROL_PORT = 8443


def settings(hub, *, ssh=None, control=None, interface=True, **update):
    """The provisioning file."""
    rules = "".join(f"{k} = {json.dumps(v)}\n" for k, v in update.items())
    text = f"""\
[node]
id = "image-test"

[[interface]]
name = "wg0"
{f'addresses = ["{hubs.NODE}/24"]' if interface else ""}

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
    if control:
        text += f"""
[control]
url = "https://10.0.2.2:{CONTROL_PORT}"
pin = "{control.pin}"
token = "file:/var/lib/spoke/secrets/token"
report_every = "5s"
"""
    if ssh or control:
        text += "\n[appliance]\n"
    if ssh:
        text += f"ssh_keys = [{json.dumps(ssh)}]\n"
    if control:
        text += f"[appliance.secrets]\ntoken = {json.dumps(control.token)}\n"
    return text


class World:
    """Hub, update server, image directories, and copies of disks."""

    def __init__(self, images, work):
        self.images, self.work = images, work
        self.hub = hubs.Hub(work)
        self.figures = {}
        self.served = work / "served"
        self.served.mkdir()
        handler = functools.partial(Quiet, directory=str(self.served))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", UPDATE_PORT), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.machines, self.control = [], None

    def machine(self, name, build="a", board="x86-64-uefi", provision=None, **more):
        """A board with a copy of an image as its disk."""
        directory = self.work / name
        directory.mkdir()
        image_dir = self.images / build / board
        disk = directory / "disk.img"
        copy_disk(image_dir / "disk.img", disk)
        if provision is not None:
            put_boot_file(disk, "spoke.toml", provision.encode())
        machine = Machine(board, disk, directory, image_dir=image_dir, **more)
        self.machines.append(machine)
        return machine

    def offer(self, build, board="x86-64-uefi"):
        """Serves a build's bundle as the update."""
        shutil.copyfile(self.images / f"{build}-{board}.spoke", self.served / f".{board}")
        os.replace(self.served / f".{board}", self.served / f"{board}.spoke")

    def serve(self, name, content):
        """Serves some other file; returns its address as the boards see it."""
        (self.served / name).write_bytes(content)
        return f"http://10.0.2.2:{UPDATE_PORT}/{name}"

    def ssh_key(self):
        """A key that may log in; its public half."""
        key = self.work / "ssh"
        if not key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        return key.with_suffix(".pub").read_text().strip()

    def shell(self, command, timeout=240):
        """Runs a command on the board, over SSH through the tunnel; returns (exit status, output)."""
        done = subprocess.run(
            ["ssh", "-i", str(self.work / "ssh"), "-oBatchMode=yes", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null",
             "-oLogLevel=ERROR", "-oConnectTimeout=60", "-oConnectionAttempts=5", f"root@{hubs.NODE}", command],
            capture_output=True, text=True, timeout=timeout, check=False)
        return done.returncode, done.stdout + done.stderr

    def output_of(self, command):
        """The output of a command on the board, which must succeed."""
        status, output = self.shell(command)
        if status != 0:
            raise Failed(f"{command!r} exited with {status}: {output}")
        return output

    def close(self):
        for machine in self.machines:
            machine.cut_power()
        if self.control:
            self.control.stop()
        self.hub.stop()
        self.server.shutdown()
        self.server.server_close()


def copy_disk(source, target):
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(source), str(target)], check=True)


class ControlPlane:
    """`spoke-control` on this machine, with a network whose first free address is the one the hub admits."""

    def __init__(self, program, work):
        self.program, self.work = program, work
        (work / "control.toml").write_text(
            f'[server]\nlisten = ["127.0.0.1:{CONTROL_PORT}"]\npublic = "10.0.2.2:{CONTROL_PORT}"\nstate_dir = "{work}/control"\n')
        self.log = open(work / "control.log", "w+")
        self.process = subprocess.Popen([program, "--config", str(work / "control.toml"), "serve"], stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 60
        while not (found := re.search(r"sha256:[0-9a-f]{64}", (work / "control.log").read_text())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed("the control plane does not start:\n" + (work / "control.log").read_text())
            time.sleep(0.1)
        self.pin = found.group(0)
        self.ask("network", "create", "field", "--pool4", "10.88.0.0/30", "--reserved", hubs.ADDRESS)
        self.token = self.ask("token", "create", "--network", "field").strip().splitlines()[-1]

    def ask(self, *arguments):
        return hubs.run(self.program, "--config", str(self.work / "control.toml"), *arguments)

    def node(self):
        return json.loads(self.ask("--json", "node", "show", "image-test"))

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        # A client that reads only a bundle's header closes the connection after it.
        with contextlib.suppress(ConnectionError):
            super().copyfile(source, outputfile)


def connect(world, machine, since=0, timeout=BOOT, slot="a"):
    """Waits for the key, admits it at the hub, waits for the connection; returns (line's index, seconds since kernel start)."""
    at, key = machine.expect(KEY, timeout, since)
    world.hub.admit(key.group(1))
    at, found = machine.expect(CONNECTED, timeout, since)
    if found.group(1) != slot:
        raise Failed(f"slot {found.group(1)} is connected, not {slot}")
    return at, float(found.group(2))


def health():
    """/health of the board, through the tunnel."""
    deadline = time.monotonic() + 60
    while (text := hubs.ask("/health")) is None:
        if time.monotonic() > deadline:
            raise Failed("/health does not answer through the tunnel")
    return json.loads(text)


def until(seconds, what, read):
    """Polls until `read()` is true, for states without a console line."""
    deadline = time.monotonic() + seconds
    while not (value := read()):
        if time.monotonic() > deadline:
            raise Failed(f"timeout after {seconds} s: {what}")
        time.sleep(1)
    return value


def silence(machine, pattern, seconds, since):
    """Fails if a line matches `pattern` within these seconds."""
    try:
        machine.expect(pattern, seconds, since)
    except Failed as e:
        if "not found within" in str(e):
            return
        raise
    raise Failed(f"unexpected line: {pattern!r}")
