"""A node run by the product's binary, and a far end made with wireguard-tools."""
import json
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import tempfile
import time

import panel

NEAR, FAR = "192.0.2.1", "192.0.2.2"


def run(*command, text=None, check=True):
    """Runs a program to its end; returns its stdout."""
    done = subprocess.run([str(c) for c in command], input=text, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise AssertionError(f"{command}: {done.returncode}\n{done.stderr}{done.stdout}")
    return done.stdout


def wait_for(what, reached, limit=60):
    """Polls for a state that has no event."""
    end = time.monotonic() + limit
    while not (value := reached()):
        if time.monotonic() > end:
            raise AssertionError(f"timeout after {limit} s: {what}")
        time.sleep(0.05)
    return value


class Node:
    """`spoke run` with the agent API enabled; a context manager that stops it and cleans up."""

    def __init__(self, spoke, agent="", interface="", key=True, more=""):
        self.spoke, self.process = spoke, None
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="node-"))
        self.secret = secrets.token_urlsafe(33)
        self.write("secret", self.secret + "\n")
        listen = "" if "listen" in agent else f'listen = ["127.0.0.1:{panel.PORT}", "{NEAR}:{panel.PORT}"]\n'
        section = f'[agent]\nenabled = true\nsecret = "file:{self.dir}/secret"\n{listen}{agent}\n' if agent is not None else ""
        self.config = self.write(
            "spoke.toml",
            f'[node]\nid = "test-node"\nrole = "hub"\nstate_dir = "{self.dir}/state"\nruntime_dir = "{self.dir}/run"\n'
            f'[health]\nenabled = false\n{section}'
            f'[[interface]]\nname = "wg0"\nlisten_port = 51820\naddresses = ["10.8.0.1/24"]\n{interface}\n{more}',
        )
        self.panel = panel.Panel(self.secret)

    def write(self, name, text, mode=0o600):
        path = self.dir / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def start(self):
        with open(self.dir / "log", "a") as log:
            self.process = subprocess.Popen([self.spoke, "--config", self.config, "run"], stderr=log, stdout=log)
        wait_for("a clean pass", lambda: self.alive() and self.status().get("clean"))
        return self

    def alive(self):
        if self.process.poll() is not None:
            raise AssertionError(f"spoke exited with {self.process.returncode}")
        return True

    def status(self):
        out = self.cli("status", "--json", check=False)
        return json.loads(out) if out.startswith("{") else {}

    def cli(self, *arguments, check=True):
        return run(self.spoke, "--config", self.config, *arguments, check=check)

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait(30)

    def listening(self):
        """Waits until the API answers on the loopback."""

        def answers():
            try:
                return self.panel.send("GET", "/health").status == 200
            except OSError:
                return False

        wait_for("the API to listen", lambda: self.alive() and answers())
        return self

    def log(self):
        return (self.dir / "log").read_text()

    def memory(self, field="VmHWM"):
        """KiB, from /proc."""
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
        raise AssertionError(f"no {field}")

    def peers(self, link="wg0"):
        """The kernel's allowed-ips by public key."""
        out = {}
        for line in run("wg", "show", link, "allowed-ips").splitlines():
            key, nets = line.split("\t")
            out[key] = set() if nets == "(none)" else set(nets.split())
        return out

    def generation(self):
        """The number of the current generation; 0 before the first change."""
        list_ = self.panel.ask("GET", "/v1/history").json["generations"]
        return max((g["generation"] for g in list_), default=0)

    def __enter__(self):
        return self.start().listening()

    def __exit__(self, kind, *_):
        if kind:
            print("--- log of the node\n" + "\n".join(self.log().splitlines()[-40:]), flush=True)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for link in run("wg", "show", "interfaces").split():
            run("ip", "link", "del", link)
        shutil.rmtree(self.dir)


class Far:
    """The far end of a wire, in a namespace of its own, with a WireGuard interface made by `wg` and `ip`."""

    name = "far"

    def __enter__(self):
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", "wan", "type", "veth", "peer", "name", "wan", "netns", self.name)
        run("ip", "addr", "add", f"{NEAR}/24", "dev", "wan")
        run("ip", "link", "set", "wan", "up")
        for words in ("link set lo up", f"addr add {FAR}/24 dev wan", "link set wan up", "link add wg0 type wireguard",
                      "addr add 10.8.0.2/24 dev wg0"):
            run("ip", "-n", self.name, *words.split())
        self.private = run("wg", "genkey").strip()
        self.public = run("wg", "pubkey", text=self.private).strip()
        return self

    def join(self, node):
        """Adds the node as its peer."""
        public = run("wg", "show", "wg0", "public-key").strip()
        # A program of another namespace is given the key on its stdin.
        run("ip", "netns", "exec", self.name, "wg", "set", "wg0", "private-key", "/dev/stdin", "peer", public,
            "endpoint", f"{NEAR}:51820", "allowed-ips", "10.8.0.0/24", text=self.private)
        run("ip", "-n", self.name, "link", "set", "wg0", "up")
        assert node.peers(), "the node must know it first"

    def command(self, *words):
        return ["ip", "netns", "exec", self.name, *map(str, words)]

    def __exit__(self, *_):
        run("ip", "netns", "del", self.name)
        run("ip", "link", "del", "wan", check=False)


def key_of(number):
    """A public key by number; its private key is unknown."""
    import base64
    import hashlib

    return base64.b64encode(hashlib.sha256(f"peer {number}".encode()).digest()).decode()


def file_of(numbers, more=""):
    """A `wg` file with these peers."""
    peers = (f"[Peer]\nPublicKey = {key_of(n)}\nAllowedIPs = 10.{100 + n // 65536}.{n // 256 % 256}.{n % 256}/32\n" for n in numbers)
    return more + "\n".join(peers)


def pid_directory(pid):
    return os.path.join("/proc", str(pid))
