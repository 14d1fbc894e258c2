"""The hub of the image tests: wireguard-go on a TUN device, configured with wireguard-tools."""
import os
import pathlib
import subprocess
import time
import urllib.request

from machine import Failed

ADDRESS = "10.88.0.1"
NODE = "10.88.0.2"
PORT = 51821


def run(*command, **more):
    return subprocess.run(command, check=True, capture_output=True, text=True, **more).stdout


class Hub:
    """Runs in the network namespace of the tests; the emulated boards reach it at 10.0.2.2."""

    def __init__(self, work: pathlib.Path):
        self.work = work
        # Its control socket is outside of the network namespace: concurrent runs need different names.
        self.name = f"hub{os.getpid()}"
        private = run("wg", "genkey")
        self.public = run("wg", "pubkey", input=private).strip()
        (work / "hub.key").write_text(private)
        self.process = None
        self.peers = set()

    def start(self):
        self.process = subprocess.Popen(["wireguard-go", "-f", self.name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                run("wg", "set", self.name, "private-key", str(self.work / "hub.key"), "listen-port", str(PORT))
                break
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline:
                    raise Failed("wireguard-go does not start: check that /dev/net/tun exists") from None
                time.sleep(0.1)
        run("ip", "address", "replace", f"{ADDRESS}/24", "dev", self.name)
        run("ip", "link", "set", self.name, "up")
        for key in self.peers:
            self.admit(key)

    def admit(self, key):
        self.peers.add(key)
        run("wg", "set", self.name, "peer", key, "allowed-ips", f"{NODE}/32")

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process = None


def ask(path, timeout=5):
    """GET from the node through the tunnel; None if it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{NODE}:8080{path}", timeout=timeout) as answer:
            return answer.read().decode()
    except OSError:
        return None
