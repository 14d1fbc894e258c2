"""The calls of a WGDashboard fork's panel, sent to Spoke's agent and compared with what the fork's own agent answers.

The fork's answers are recorded in fork.json, made by running it in this kernel:
    SPOKE_FORK_AGENT=DIRECTORY scripts/test-agent --only 'panel_of_the_fork*'
where DIRECTORY holds its wgdashboard-agent/app.py and, in lib/, fastapi, uvicorn and psutil. Then both run side by side, and the
recording is written to fork.json of SPOKE_TEST_DIR. Every difference is one of DIFFERENCES, and each of those a row of
docs/agent-api.md.
"""
import base64
import json
import os
import pathlib
import subprocess
import sys
import time

from node import key_of, run, wait_for
from panel import Panel, sign

HERE = pathlib.Path(__file__).parent
LINK, PORT = "wg7", 6000
SLASHED = "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s="
# The fork refuses keys with a slash, which has steps of its own.
ONE, TWO, THREE, FOUR, *_ = (key_of(n) for n in range(31, 60) if "/" not in key_of(n))
PRESHARED = key_of(99)
# Of the fork's repository github.com/gabzou364/WGDashboard.
COMMIT = "41b72a7993577066f576c799574223673730945c"

# Steps whose answer or effect differs on purpose: how it is named in docs/agent-api.md, and the status of ours.
DIFFERENCES = {
    "create": ("An interface is created by `PUT …/config`", 200),
    "enable": ("An interface is created by `PUT …/config`", 200),
    "config": ("Keys are not revealed", 200),
    "add": ("A network with host bits is one host", 200),
    "add the next of the pool": ("A network with host bits is one host", 200),
    "dump": ("A network with host bits is one host", 200),
    "reconcile allowed ips": ("A network with host bits is one host", 200),
    "reconcile keepalive": ("A network with host bits is one host", 200),
    "add with a preshared key": ("A network with host bits is one host", 200),
    "dump with a preshared key": ("Keys are not revealed", 200),
    "change a key with a slash": ("Keys with `/` work", 200),
    "remove a key with a slash": ("Keys with `/` work", 200),
    "remove": ("A network with host bits is one host", 200),
    "remove again": ("A network with host bits is one host", 200),
    "give a network": ("A network with host bits is one host", 200),
    "give it to another peer": ("A network that another peer has is refused", 409),
    "dump after it": ("A network that another peer has is refused", 200),
    "synchronise without a keepalive": ("A file is the whole of its peers", 200),
    "interface without address": ("What is left out stays", 200),
    "interface with a hook": ("Hooks are refused", 422),
    "disable": ("A disabled interface keeps its peers", 200),
    "disable again": ("A disabled interface keeps its peers", 200),
    "dump while down": ("A disabled interface keeps its peers", 200),
    "enable again": ("A disabled interface keeps its peers", 200),
    "a key that is none": ("Faults have codes of their own", 422),
    "a file that is none": ("Faults have codes of their own", 422),
    "an interface that is none": ("Faults have codes of their own", 404),
    "dump after the interface": ("Faults have codes of their own", 404),
    "config after the interface": ("Faults have codes of their own", 404),
    "the same call twice": ("A call is carried out once", 200),
}


# A repetition at once has the same answer from both; a later one is a step of `replays_are_refused_after_restarts_and_clock_jumps`.
SHOWN_ELSEWHERE = {"A call is carried out once"}


def file_of(*peers):
    text = "".join(f"[Peer]\nPublicKey = {key}\nAllowedIPs = {nets}\n{more}\n" for key, nets, more in peers)
    return {"config": base64.b64encode(text.encode()).decode()}


def steps(private):
    """(name, method, path, data) as the panel sends them: add, poll, reconcile, migrate, synchronise, remove."""
    wg = f"/v1/wg/{LINK}"
    device = {"private_key": private, "listen_port": PORT, "mtu": 1400}
    peer = lambda key, *nets, psk=None, keepalive=0: {"public_key": key, "preshared_key": psk, "allowed_ips": list(nets), "persistent_keepalive": keepalive}
    yield "health", "GET", "/health", None
    yield "create", "PUT", f"{wg}/config", {**device, "address": "10.0.1.1/24"}
    yield "enable", "POST", f"{wg}/enable", None
    yield "config", "GET", f"{wg}/config", None
    yield "dump of no peer", "GET", f"{wg}/dump", None
    yield "add", "POST", f"{wg}/peers", peer(ONE, "10.0.1.2/24", keepalive=25)
    yield "add the next of the pool", "POST", f"{wg}/peers", peer(TWO, "10.0.1.3/24")
    yield "dump", "GET", f"{wg}/dump", None
    yield "reconcile allowed ips", "PUT", f"{wg}/peers/{ONE}", {"allowed_ips": ["10.0.1.2/24"]}
    yield "reconcile keepalive", "PUT", f"{wg}/peers/{ONE}", {"persistent_keepalive": 21}
    yield "add with a preshared key", "POST", f"{wg}/peers", peer(SLASHED, "10.0.9.1/32", psk=PRESHARED)
    yield "dump with a preshared key", "GET", f"{wg}/dump", None
    yield "change a key with a slash", "PUT", f"{wg}/peers/{SLASHED}", {"persistent_keepalive": 7}
    yield "remove a key with a slash", "DELETE", f"{wg}/peers/{SLASHED}", None
    yield "remove", "DELETE", f"{wg}/peers/{TWO}", None
    yield "remove again", "DELETE", f"{wg}/peers/{TWO}", None
    yield "give a network", "POST", f"{wg}/peers", peer(THREE, "10.0.5.0/24")
    yield "give it to another peer", "POST", f"{wg}/peers", peer(FOUR, "10.0.5.0/24")
    yield "dump after it", "GET", f"{wg}/dump", None
    yield "synchronise", "POST", f"{wg}/syncconf", file_of((ONE, "10.0.1.2/32", "PersistentKeepalive = 25"), (TWO, "10.0.1.3/32, 10.0.6.0/24", ""))
    yield "dump after synchronise", "GET", f"{wg}/dump", None
    yield "change one", "PUT", f"{wg}/peers/{TWO}", {"allowed_ips": ["10.0.1.4/32"], "persistent_keepalive": 5}
    yield "clear its networks", "PUT", f"{wg}/peers/{TWO}", {"allowed_ips": []}
    yield "status", "GET", "/v1/status", None
    yield "metrics", "GET", "/v1/metrics", None
    yield "no key", "POST", f"{wg}/peers", {"allowed_ips": []}
    yield "a key that is none", "POST", f"{wg}/peers", {"public_key": "x"}
    yield "a file that is none", "POST", f"{wg}/syncconf", {"config": base64.b64encode(b"nonsense").decode()}
    yield "an interface that is none", "GET", "/v1/wg/wg99/dump", None
    yield "the same call twice", "POST", f"{wg}/peers", peer(FOUR, "10.0.1.9/32")
    yield "synchronise without a keepalive", "POST", f"{wg}/syncconf", file_of((ONE, "10.0.1.2/32", ""))
    yield "synchronise to none", "POST", f"{wg}/syncconf", {"config": base64.b64encode(b"\n").decode()}
    yield "interface without address", "PUT", f"{wg}/config", device
    yield "disable", "POST", f"{wg}/disable", None
    yield "disable again", "POST", f"{wg}/disable", None
    yield "dump while down", "GET", f"{wg}/dump", None
    yield "enable again", "POST", f"{wg}/enable", None
    yield "interface with a hook", "PUT", f"{wg}/config", {**device, "post_up": "true"}
    yield "remove the interface", "DELETE", wg, None
    yield "remove the interface again", "DELETE", wg, None
    yield "dump after the interface", "GET", f"{wg}/dump", None
    yield "config after the interface", "GET", f"{wg}/config", None


def send(panel, port, method, path, data):
    """Sends a call as the panel's client does: no nonce, and an empty body is signed as none."""
    body = json.dumps(data).encode() if data else b""
    now = str(int(time.time()))
    headers = {"X-Signature": sign(panel.secret, method, path, body, now), "X-Timestamp": now, "Content-Type": "application/json"}
    out = subprocess.run(["curl", "-sS", "--path-as-is", "-w", "\n%{http_code}", "-X", method, *(w for n, v in headers.items() for w in ("-H", f"{n}: {v}")),
                          *(["--data-binary", "@-"] if body else []), f"http://127.0.0.1:{port}{path}"], input=body, capture_output=True, check=True).stdout.decode()
    text, _, status = out.rpartition("\n")
    try:
        return int(status), json.loads(text)
    except ValueError:
        return int(status), text


def kernel():
    """The kernel's interface: peers with networks and keepalive, addresses; `None` if it does not exist."""
    if LINK not in run("wg", "show", "interfaces").split():
        return None
    peers = {}
    for line in run("wg", "show", LINK, "dump").splitlines()[1:]:
        key, _, _, nets, *_, keepalive = line.split("\t")
        peers[key] = [sorted(nets.split(",")) if nets != "(none)" else [], keepalive]
    found = json.loads(run("ip", "-j", "addr", "show", "dev", LINK))[0]["addr_info"]
    return {"peers": peers, "addresses": sorted(f"{a['local']}/{a['prefixlen']}" for a in found if a["scope"] == "global")}


def walk(panel, port, private):
    """Every step's answer, and the kernel after it."""
    out = {}
    for name, method, path, data in steps(private):
        # Timestamps are whole seconds; apart from one step no two calls are the same within one.
        time.sleep(1 - time.time() % 1 + 0.02)
        status, body = send(panel, port, method, path, data)
        if name == "the same call twice":
            again = send(panel, port, method, path, data)
            body = {"first": body, "again": again[1], "statuses": [status, again[0]]}
        out[name] = {"status": status, "body": body, "kernel": kernel()}
    return out


def kinds(value):
    """A value's form: types instead of values, and of a list its first item."""
    if isinstance(value, dict):
        return {k: kinds(v) for k, v in value.items()}
    if isinstance(value, list):
        return [kinds(v) for v in value[:1]]
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


def lacks(theirs, ours, at=""):
    """What a client reads in their form and does not find in ours."""
    if isinstance(theirs, dict):
        if not isinstance(ours, dict):
            yield f"{at}: {ours}"
            return
        for key, value in theirs.items():
            if key not in ours:
                yield f"{at}.{key} is missing"
            else:
                yield from lacks(value, ours[key], f"{at}.{key}")
    elif isinstance(theirs, list):
        if not isinstance(ours, list):
            yield f"{at}: {ours}"
        elif theirs and ours:
            yield from lacks(theirs[0], ours[0], f"{at}[]")
    elif theirs != ours and "NoneType" not in (theirs, ours):
        yield f"{at}: {ours} instead of {theirs}"


def rows_of_the_page():
    """The first column of the table of differences in docs/agent-api.md."""
    page = (HERE.parent.parent / "docs" / "agent-api.md").read_text()
    table = page.split("\n| difference | the fork |", 1)[1].split("\n\n", 1)[0]
    return {line.split("|")[1].strip() for line in table.splitlines()[2:]}


def differs(theirs, ours):
    """Whether a value of theirs is another one in ours; what ours has in addition, and times, count for nothing."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return any(differs(value, ours.get(key)) for key, value in theirs.items() if key not in ("timestamp", "latest_handshake", "uptime"))
    if isinstance(theirs, list) and isinstance(ours, list):
        return len(theirs) != len(ours) or any(map(differs, theirs, ours))
    return theirs != ours


def compare(theirs, ours):
    named = {row for row, _ in DIFFERENCES.values()}
    faults = [f"docs/agent-api.md has the row {row!r}, which no step shows" for row in rows_of_the_page() - named]
    # What the table says has to be so: each of its rows has a step whose answer or effect differs.
    differ = {row for name, (row, _) in DIFFERENCES.items() if differs(theirs[name], ours[name])}
    faults += [f"{row!r}: nothing differs from the fork" for row in named - differ - SHOWN_ELSEWHERE]
    text = " ".join((HERE.parent.parent / "docs" / "agent-api.md").read_text().split())
    for name in ours:
        a, b = theirs[name], ours[name]
        row, status = DIFFERENCES.get(name, (None, a["status"]))
        if b["status"] != status:
            faults.append(f"{name}: {b['status']} {b['body']}, wanted {status} (the fork: {a['status']})")
        if 200 <= a["status"] < 300 and 200 <= b["status"] < 300:
            # Names of metrics, and fields.
            if isinstance(a["body"], str):
                wanted = {line.split("{")[0].split(" ")[0] for line in a["body"].splitlines() if not line.startswith(("#", "wireguard_peer_"))}
                faults += [f"{name}: no {m}" for m in wanted if f"\n{m}" not in "\n" + b["body"]]
            else:
                faults += [f"{name}: {fault}" for fault in lacks(kinds(a["body"]), kinds(b["body"]))]
        elif b["status"] >= 400 and not ("error" in b["body"] or "detail" in b["body"]):
            faults.append(f"{name}: no text in {b['body']}")
        if row is None and a["kernel"] != b["kernel"]:
            faults.append(f"{name}: the kernel has {b['kernel']}, with the fork {a['kernel']}")
        if row and f"| {row}" not in text:
            faults.append(f"docs/agent-api.md has no row {row!r}")
    if faults:
        raise AssertionError("\n".join(faults))


def effects(ours):
    """What the differing steps do."""
    after = lambda name: ours[name]["kernel"]["peers"]
    assert after("add")[ONE] == [["10.0.1.2/32"], "25"], after("add")
    assert after("add the next of the pool")[ONE][0] == ["10.0.1.2/32"] and after("add the next of the pool")[TWO][0] == ["10.0.1.3/32"]
    assert after("reconcile allowed ips") == after("dump") and after("reconcile keepalive")[ONE][1] == "21"
    assert after("change a key with a slash")[SLASHED][1] == "7" and SLASHED not in after("remove a key with a slash")
    assert after("give it to another peer")[THREE][0] == ["10.0.5.0/24"] and FOUR not in after("give it to another peer")
    twice = ours["the same call twice"]["body"]
    assert twice["statuses"] == [200, 200] and twice["first"] == twice["again"], twice
    assert after("synchronise without a keepalive") == {ONE: [["10.0.1.2/32"], "off"]}
    assert ours["interface without address"]["kernel"]["addresses"] == ["10.0.1.1/24"]
    assert ours["dump while down"]["kernel"] is not None and ours["enable again"]["body"]["was_down"] is True
    private = [ours[n]["body"] for n in ("config", "dump with a preshared key")]
    assert private[0]["config"]["private_key"] is None and PRESHARED not in json.dumps(private[1])


class Fork:
    """The fork's own agent, in this kernel."""

    PORT = 8090

    def __init__(self, home):
        self.home = pathlib.Path(home)

    def __enter__(self):
        os.makedirs("/run/wireguard", exist_ok=True)
        run("mount", "--bind", "/run/wireguard", "/etc/wireguard")
        self.panel = Panel(key_of(7))
        environment = {**os.environ, "WG_AGENT_SECRET": self.panel.secret, "PYTHONPATH": f"{self.home / 'lib'}:{self.home}", "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(["/usr/bin/python3", "-m", "uvicorn", "app:app", "--host", "127.0.0.1", "--port", str(self.PORT), "--log-level", "warning"],
                                        env=environment, cwd=self.home)

        def answers():
            try:
                return send(self.panel, self.PORT, "GET", "/health", None)[0] == 200
            except subprocess.CalledProcessError:
                return False

        wait_for("the fork's agent", answers, 300)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        run("umount", "/etc/wireguard")


def check(node, private, port):
    recording = HERE / "fork.json"
    if home := os.environ.get("SPOKE_FORK_AGENT"):
        with Fork(home) as fork:
            theirs = {"commit": COMMIT, "steps": walk(fork.panel, fork.PORT, private)}
        recording = pathlib.Path(os.environ.get("SPOKE_TEST_DIR", "/run")) / "fork.json"
        recording.write_text(json.dumps(theirs, indent=1, sort_keys=True).replace(private, "PRIVATE") + "\n")
    theirs = json.loads(recording.read_text())["steps"]
    ours = walk(node.panel, port, private)
    print(f"  ({len(ours)} calls; the fork's answers from {recording.name})", file=sys.stderr)
    compare(theirs, ours)
    effects(ours)
