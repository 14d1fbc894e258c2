"""Scenarios of the image as a host in its network: names, time servers, listeners, forwarding, watchdog, memory, screen."""
import contextlib
import re
import socket
import struct
import subprocess
import threading
import time

import hub as hubs
from world import BOOT, CONNECTED, connect, settings, until

# Seconds between the epochs of NTP (1900) and Unix.
NTP_EPOCH = 2_208_988_800


@contextlib.contextmanager
def time_server():
    """An NTP server of the tests, which the boards reach at 10.0.2.2; yields its requests."""
    requests = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 123))

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    question, client = server.recvfrom(512)
                    requests.append(client)
                    now = struct.pack(">II", int(time.time()) + NTP_EPOCH, 0)
                    # Version 4, mode server, stratum 1; origin is the client's transmit time.
                    head = struct.pack(">BBBbII4s", 0x24, 1, 6, -20, 0, 0, b"TEST")
                    server.sendto(head + now + question[40:48] + now + now, client)
        threading.Thread(target=serve, daemon=True).start()
        yield requests


def facts(world):
    """Machine id, which systemd-networkd's DUID is derived from, and host name of the running board."""
    return world.output_of("cat /etc/machine-id; hostname").split()


def scenario_one_host_of_many(world):
    """Machine id and host name are a board's own and stay; time servers are settable; SSH listens in the tunnel; no unit warns"""
    given = settings(world.hub, ssh=world.ssh_key()) + 'ntp = ["10.0.2.2"]\n'
    with time_server() as requests:
        machine = world.machine("host", provision=given).start()
        connect(world, machine)
        before = facts(world)
        assert re.fullmatch("[0-9a-f]{32}", before[0]) and before[1] == "image-test", before
        until(120, "a request to the time server", lambda: requests)
        until(60, "the time", lambda: abs(int(world.output_of("date +%s")) - time.time()) < 60)
        # Local addresses of listening sockets (state 0A), port 22 = 0016; addresses are little-endian words.
        listed = world.output_of("cat /proc/net/tcp /proc/net/tcp6")
        listening = {m.group(1) for m in re.finditer(r"^ *\d+: ([0-9A-F]+):0016 \S+ 0A ", listed, re.M)}
        tunnel = "".join(f"{int(part):02X}" for part in reversed(hubs.NODE.split(".")))
        assert listening == {tunnel}, listening
        warnings = world.output_of("journalctl -b -o cat -p warning")
        assert "autofs4" not in warnings and "RestartMaxDelaySec" not in warnings, warnings
        machine.expect(r"second copy of the identity written", BOOT)
        world.shell("sync")
        machine.cut_power()
        since = len(machine.lines)
        machine.start()
        machine.expect(CONNECTED, BOOT, since)
        assert facts(world) == before
        machine.cut_power()
    other = world.machine("other", provision=settings(world.hub, ssh=world.ssh_key())).start()
    world.hub.peers.clear()
    connect(world, other)
    assert facts(world)[0] != before[0]
    other.cut_power()


def in_namespace(name, *command):
    return subprocess.run(["nsenter", f"--net=/proc/{name}/ns/net", *command], capture_output=True, text=True, check=False)


def scenario_third_host(world):
    """A host of the LAN reaches neither the hub through the node nor the node's tunnel address by ARP"""
    lan = "10.66.0"
    hubs.run("ip", "tuntap", "add", "lan0", "mode", "tap")
    card = ["-netdev", "tap,id=lan,ifname=lan0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=lan,mac=52:54:00:66:00:01"]
    machine = world.machine("third", provision=settings(world.hub, ssh=world.ssh_key()), extra=card).start()
    connect(world, machine)
    third = subprocess.Popen(["unshare", "--net", "sleep", "1000"])
    try:
        time.sleep(1)
        hubs.run("ip", "link", "set", "lan0", "netns", str(third.pid))
        in_namespace(third.pid, "ip", "address", "add", f"{lan}.2/24", "dev", "lan0")
        in_namespace(third.pid, "ip", "link", "set", "lan0", "up")
        name = world.output_of("grep -l 52:54:00:66:00:01 /sys/class/net/*/address").split("/")[4]
        world.output_of(f"ip link set {name} up; ip address add {lan}.1/24 dev {name}")
        until(60, "the LAN", lambda: in_namespace(third.pid, "ping", "-c", "1", "-W", "1", f"{lan}.1").returncode == 0)
        in_namespace(third.pid, "ip", "route", "add", f"{hubs.ADDRESS}/32", "via", f"{lan}.1")

        def sent():
            """Packets that entered the tunnel while the host pinged the hub."""
            count = "cat /sys/class/net/wg0/statistics/tx_packets"
            before = int(world.output_of(count))
            in_namespace(third.pid, "ping", "-c", "100", "-i", "0.02", "-W", "1", hubs.ADDRESS)
            return int(world.output_of(count)) - before
        assert world.output_of("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding").split() == ["0", "0"]
        # SSH itself takes some.
        idle = sent()
        # The canary: without the rule, and with forwarding, they do enter.
        world.output_of("echo 1 >/proc/sys/net/ipv4/ip_forward")
        assert sent() < 60, "the rule holds without the sysctl"
        world.output_of("nft add rule inet spoke_image forward_extra accept")
        open_ = sent()
        world.output_of("nft flush chain inet spoke_image forward_extra")
        assert idle < 60 <= 100 <= open_, (idle, open_)
        # ARP for the tunnel's address on the LAN.
        in_namespace(third.pid, "ip", "route", "add", f"{hubs.NODE}/32", "dev", "lan0")
        in_namespace(third.pid, "ping", "-c", "2", "-W", "1", hubs.NODE)
        neighbour = in_namespace(third.pid, "ip", "neighbour", "show", hubs.NODE).stdout
        assert "lladdr" not in neighbour, neighbour
    finally:
        third.kill()
        third.wait()
    machine.cut_power()


def scenario_early_watchdog(world):
    """A first process that never feeds the watchdog is reset: it runs before systemd"""
    machine = world.machine("watchdog", direct=True).start(append="init=/usr/bin/cat")
    machine.expect(r"watchdog started", BOOT)
    at, _ = machine.expect(r"slot a verified", BOOT)
    machine.expect(r"slot a verified", BOOT, at)
    machine.cut_power()


def scenario_little_memory(world):
    """With the documented least memory the board connects; with less it says so on the console"""
    machine = world.machine("small", provision=settings(world.hub, ssh=world.ssh_key()), memory=160).start()
    connect(world, machine)
    world.figures["RAM in use of a board with 160 MiB, page cache aside, MiB"] = memory(world)
    machine.cut_power()
    machine = world.machine("too-small", provision=settings(world.hub), memory=96, direct=True).start()
    machine.expect(r"has \d+ MiB of memory, and Spoke needs", BOOT)
    machine.cut_power()


def scenario_screen(world):
    """The stages and the key are on the screen as well"""
    machine = world.machine("screen", provision=settings(world.hub), screen=True).start()
    connect(world, machine)
    machine.pause(5)
    rows = machine.screen_rows()
    assert rows >= 4, f"the screen shows {rows} rows"
    machine.cut_power()


def memory(world):
    """RAM in use without page cache, in MiB."""
    read = dict(re.findall(r"(\w+): +(\d+) kB", world.output_of("cat /proc/meminfo")))
    kib = {k: int(v) for k, v in read.items()}
    return round((kib["MemTotal"] - kib["MemFree"] - kib["Buffers"] - kib["Cached"] - kib["SReclaimable"] + kib["Shmem"]) / 1024, 1)
