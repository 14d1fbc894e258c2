"""The agent API of the running product in a real kernel; run by scripts/test-agent as root of that kernel."""
import argparse
import fcntl
import fnmatch
import json
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import sys
import termios
import threading
import time
import traceback

import contract
import flow
import refusals
from node import FAR, NEAR, Far, Node, file_of, key_of, run, wait_for
from panel import PORT, Panel, exchange, inside, sign, status_of, trusting

SLASHED = "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s="
HEADER_LIMIT = 10


def is_(found, wanted, what=""):
    if found != wanted:
        raise AssertionError(f"{what}: found {found!r}, wanted {wanted!r}")


def answered(answer, status, body=None):
    if answer.status != status or (body is not None and answer.json != body):
        raise AssertionError(f"{answer}, wanted {status} {body or ''}")
    return answer


def refused(address):
    """Whether the connection is refused."""
    try:
        socket.create_connection((address, PORT), timeout=5).close()
        return False
    except ConnectionRefusedError:
        return True


def api_is_off_by_default_and_never_on_outer_addresses(spoke, far):
    with_defaults = Node(spoke, agent='tunnel = true\n# no listen')
    text = with_defaults.config.read_text()
    off = Node(spoke)
    off.config.write_text(off.config.read_text().replace("enabled = true", "enabled = false"))
    off.start()
    is_([refused(a) for a in ("127.0.0.1", NEAR, "10.8.0.1")], [True] * 3, "off")
    off.__exit__(None)
    assert "listen =" not in text.replace("listen_port", ""), text
    with with_defaults:
        wait_for("the tunnel address is served", lambda: not refused("10.8.0.1"))
        is_(refused(NEAR), True, "the address of the outer network")


def every_call_of_a_panel_works(spoke, far):
    with Node(spoke) as node:
        ask, key = node.panel.ask, key_of(1)
        health = answered(node.panel.send("GET", "/health"), 200).json
        is_((sorted(health), health["status"]), (["status", "timestamp", "uptime", "version"], "ok"))
        peer = {"public_key": key, "allowed_ips": ["10.0.1.2/32", "fd00::2/128"], "preshared_key": None, "persistent_keepalive": 25}
        added = {"status": "success", "message": "Peer added successfully",
                 "peer": {"public_key": key, "allowed_ips": ["10.0.1.2/32", "fd00::2/128"]}}
        answered(ask("POST", "/v1/wg/wg0/peers", peer), 200, added)
        answered(ask("POST", "/v1/wg/wg0/peers", peer), 200, added)
        is_(node.peers(), {key: {"10.0.1.2/32", "fd00::2/128"}}, "in the kernel")
        shown = {"public_key": key, "preshared_key": None, "endpoint": None, "allowed_ips": ["10.0.1.2/32", "fd00::2/128"],
                 "latest_handshake": None, "transfer_rx": 0, "transfer_tx": 0, "persistent_keepalive": 25}
        answered(ask("GET", "/v1/wg/wg0/dump"), 200, {"interface": "wg0", "peers": [shown], "recent_repairs": 0})
        done = {"status": "success", "message": "Peer updated successfully"}
        answered(ask("PUT", f"/v1/wg/wg0/peers/{key}", {"allowed_ips": [], "persistent_keepalive": 0}), 200, done)
        is_(ask("GET", "/v1/wg/wg0/dump").json["peers"][0]["allowed_ips"], [], "cleared")
        answered(ask("PUT", f"/v1/wg/wg0/peers/{key_of(2)}", {"allowed_ips": []}), 404)
        gone = {"status": "success", "message": "Peer removed successfully"}
        answered(ask("DELETE", f"/v1/wg/wg0/peers/{key}"), 200, gone)
        answered(ask("DELETE", f"/v1/wg/wg0/peers/{key}"), 200, gone)
        is_(node.peers(), {})
        synced = {"status": "success", "message": "Configuration synchronized successfully"}
        answered(node.panel.syncconf("wg0", file_of([1, 2])), 200, synced)
        is_(set(node.peers()), {key_of(1), key_of(2)})
        answered(node.panel.syncconf("wg0", ""), 200, synced)
        is_(node.peers(), {}, "an empty file removes all")

        device = {"private_key": far.private, "listen_port": 6000, "address": "10.9.0.1/24, fd09::1/64", "mtu": 1400,
                  "post_up": "", "pre_down": None, "dns": "10.9.0.53, corp.example", "table": "off"}
        text = "Interface configuration updated successfully"
        answered(ask("PUT", "/v1/wg/wg7/config", device), 200, {"status": "success", "message": text, "reloaded": True})
        answered(ask("PUT", "/v1/wg/wg7/config", device), 200, {"status": "success", "message": text, "reloaded": False})
        is_(run("wg", "show", "wg7", "public-key").strip(), far.public)
        addresses = run("ip", "-br", "addr", "show", "dev", "wg7")
        assert "10.9.0.1/24" in addresses and "fd09::1/64" in addresses and "mtu 1400" in run("ip", "link", "show", "wg7")
        config = answered(ask("GET", "/v1/wg/wg7/config"), 200).json
        raw = config["config"].pop("raw_config")
        is_(config, {"interface": "wg7", "config": {"private_key": None, "listen_port": 6000, "address": "10.9.0.1/24, fd09::1/64",
            "post_up": None, "pre_down": None, "mtu": 1400, "dns": "10.9.0.53, corp.example", "table": "off"}})
        assert "ListenPort = 6000" in raw and "PrivateKey" not in raw, raw
        for call, key_, up in (("disable", "was_up", False), ("disable", "was_up", False), ("enable", "was_down", True), ("enable", "was_down", True)):
            before = ",UP" in run("ip", "link", "show", "wg7")
            answer = answered(ask("POST", f"/v1/wg/wg7/{call}"), 200).json
            is_((answer["status"], answer[key_]), ("success", before if call == "disable" else not before), call)
            is_(",UP" in run("ip", "link", "show", "wg7"), up, call)
        status = answered(ask("GET", "/v1/status"), 200).json
        is_(sorted(status["wireguard"]["interfaces"]), ["wg0", "wg7"])
        is_(status["wireguard"]["interface_count"], 2)
        assert status["system"]["memory"]["total"] > status["system"]["memory"]["used"] > 0
        deleted = {"status": "success", "message": "Interface wg7 deleted successfully"}
        answered(ask("DELETE", "/v1/wg/wg7"), 200, deleted)
        answered(ask("DELETE", "/v1/wg/wg7"), 200, deleted)
        assert "wg7" not in run("wg", "show", "interfaces")
        metrics = node.panel.send("GET", "/v1/metrics")
        is_((metrics.status, metrics.headers["content-type"]), (200, "text/plain; version=0.0.4; charset=utf-8"))
        for name in ("wgdashboard_agent_cpu_percent", "wgdashboard_agent_memory_used_bytes", "wgdashboard_agent_memory_percent",
                     "wgdashboard_agent_disk_used_bytes", "wireguard_interface_count", 'wireguard_peers_total{interface="wg0"}',
                     'wireguard_peers_active{interface="wg0"}', 'wireguard_interface_receive_bytes_total{interface="wg0"}',
                     'wireguard_interface_transmit_bytes_total{interface="wg0"}'):
            assert f"\n{name} " in "\n" + metrics.body.decode(), name


def keys_with_a_slash_work_raw_and_encoded(spoke, far):
    with Node(spoke) as node:
        def curl(method, path, body=""):
            now, nonce = str(int(time.time())), os.urandom(6).hex()
            headers = [f"X-Signature: {sign(node.secret, method, path, body.encode(), now, nonce)}", f"X-Timestamp: {now}", f"X-Nonce: {nonce}"]
            words = [w for h in headers for w in ("-H", h)] + (["--data-binary", body] if body else [])
            return run("curl", "-sS", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", "-X", method, *words,
                       f"http://127.0.0.1:{PORT}{path}")

        body = json.dumps({"public_key": SLASHED, "allowed_ips": ["10.0.1.2/32"]})
        encoded = SLASHED.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
        for form in (SLASHED, SLASHED.replace("/", "%2F"), SLASHED.replace("/", "%2f"), encoded):
            is_(curl("POST", "/v1/wg/wg0/peers", body), "200")
            is_(curl("PUT", f"/v1/wg/wg0/peers/{form}", '{"persistent_keepalive": 7}'), "200", form)
            assert f"{SLASHED}\t7" in run("wg", "show", "wg0", "persistent-keepalive"), form
            is_(curl("DELETE", f"/v1/wg/wg0/peers/{form}"), "200", form)
            is_(node.peers(), {}, form)


def replays_are_refused_after_restarts_and_clock_jumps(spoke, far):
    with Node(spoke) as node:
        ask, send = node.panel.ask, node.panel.send
        path, body = "/v1/wg/wg0/peers", json.dumps({"public_key": key_of(1)}).encode()
        signed = node.panel.headers("POST", path, body)
        again = lambda: send("POST", path, body, signed)
        used = {"error": "Request was used before; sign a new one, or add an X-Nonce"}
        answered(again(), 200)
        answered(ask("DELETE", f"{path}/{key_of(1)}"), 200)
        answered(again(), 401, used)
        nonced = node.panel.headers("POST", path, body, "abc")
        answered(send("POST", path, body, nonced), 200)
        # At once it would be given the first answer.
        time.sleep(3)
        answered(send("POST", path, body, nonced), 401, used)
        answered(send("POST", path, body, {**nonced, "X-Nonce": "abd"}), 401, {"error": "Invalid signature"})
        answered(ask("DELETE", f"{path}/{key_of(1)}"), 200)
        reading = node.panel.headers("GET", "/v1/wg/wg0/dump", b"")
        is_([send("GET", "/v1/wg/wg0/dump", b"", reading).status for _ in range(3)], [200] * 3, "reads may be repeated")
        for how in (signal.SIGTERM, signal.SIGKILL):
            node.stop(how)
            node.start().listening()
            answered(again(), 401, used)
        true = time.time()
        for jump in (3600, -3600, 10 * 365 * 86400):
            time.clock_settime(time.CLOCK_REALTIME, true + jump)
            answered(again(), 401, {"error": "Request timestamp too old"})
            # A panel whose clock jumped as well is served; its requests displace old ones in the replay cache.
            answered(ask("DELETE", f"{path}/{key_of(1)}"), 200)
            time.clock_settime(time.CLOCK_REALTIME, true + 1)
            assert "used before" in answered(again(), 401).json["error"]
        time.clock_settime(time.CLOCK_REALTIME, true + 3600)
        node.stop(signal.SIGKILL)
        node.start().listening()
        time.clock_settime(time.CLOCK_REALTIME, true + 2)
        assert "used before" in answered(again(), 401).json["error"]
        is_(node.peers(), {}, "no replay had an effect")
        answered(ask("POST", path, {"public_key": key_of(3)}), 200)


def agent_is_not_served(spoke, config, words):
    """The log names the fault, the API has no listener, and the supervisor goes on. Returns the log."""
    log = config.with_suffix(".log")
    with open(log, "w") as out:
        process = subprocess.Popen([spoke, "--config", config, "run"], stderr=out, stdout=out)
    try:
        wait_for(f"the log says {words!r}", lambda: words in log.read_text() or process.poll() is not None, 30)
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", PORT)), "the agent API is served"
        assert process.poll() is None, f"the tunnel goes with the agent: {log.read_text()}"
    finally:
        process.terminate()
        process.wait(30)
    return log.read_text()


def weak_secrets_and_hooks_are_refused_at_start(spoke, far):
    node = Node(spoke)
    for secret, words in (("short", "fewer than 32 bytes"), ("change-me-in-production-please-now!", "can be guessed"), ("a" * 64, "can be guessed"), ("", "fewer than 32")):
        node.write("secret", secret)
        log = agent_is_not_served(spoke, node.config, words)
        assert not secret or secret not in log, "the secret is not printed"
    node.write("secret", node.secret, mode=0o644)
    agent_is_not_served(spoke, node.config, "chmod 600")


def malformed_requests_are_refused_without_effect(spoke, far):
    with Node(spoke) as node:
        refusals.all_of_them(node)


def a_flipped_bit_in_any_header_has_no_effect(spoke, far):
    with Node(spoke) as node:
        refusals.flipped_bits(node)


def conflicts_name_the_holder(spoke, far):
    declared = f'[[interface.peer]]\npublic_key = "{key_of(9)}"\nallowed_ips = ["10.0.9.0/24"]\n'
    with Node(spoke, interface=declared) as node:
        ask = node.panel.ask
        answered(ask("POST", "/v1/wg/wg0/peers", {"public_key": key_of(1), "allowed_ips": ["10.0.1.0/24"]}), 200)
        before = node.peers()
        for method, path, body, holder in (
            ("POST", "/v1/wg/wg0/peers", {"public_key": key_of(2), "allowed_ips": ["10.0.1.0/24"]}, key_of(1)),
            ("POST", "/v1/wg/wg0/peers", {"public_key": key_of(2), "allowed_ips": ["10.0.9.0/24"]}, key_of(9)),
            ("PUT", f"/v1/wg/wg0/peers/{key_of(1)}", {"allowed_ips": ["10.0.9.0/24"]}, key_of(9)),
            ("DELETE", f"/v1/wg/wg0/peers/{key_of(9)}", None, "the configuration"),
            ("POST", "/v1/wg/wg0/peers", {"public_key": key_of(2), "allowed_ips": ["10.0.9.7/32"]}, key_of(9)),
            ("PUT", "/v1/wg/wg0/config", {"private_key": far.private}, "PrivateKey differs"),
            ("DELETE", "/v1/wg/wg0", None, "the configuration"),
            ("PUT", "/v1/wg/wg7/config", {"private_key": far.private, "listen_port": 51820}, "wg0"),
        ):
            answer = ask(method, path, body)
            assert answer.status == 409 and holder in answer.json["error"], f"{method} {path}: {answer}"
        twice = f"[Peer]\nPublicKey={key_of(3)}\nAllowedIPs=10.3.0.0/24\n[Peer]\nPublicKey={key_of(4)}\nAllowedIPs=10.3.0.0/24\n"
        answer = node.panel.syncconf("wg0", twice)
        assert answer.status == 409 and key_of(3) in answer.json["error"] and key_of(4) in answer.json["error"], answer
        is_(node.peers(), before)


def foreign_interfaces_are_left_alone(spoke, far):
    with Node(spoke) as node:
        for words in ("link add wg8 type wireguard", "link add dummy8 type dummy", "link set wg8 up"):
            run("ip", *words.split())
        run("wg", "set", "wg8", "private-key", "/dev/stdin", "peer", key_of(8), "allowed-ips", "10.88.0.0/16", text=far.private)
        before = run("wg", "show", "wg8", "dump")
        wait_for("the interface is observed", lambda: node.panel.ask("DELETE", "/v1/wg/wg8").status == 409)
        for method, path, body in (("PUT", "/v1/wg/wg8/config", {"private_key": far.private}), ("DELETE", "/v1/wg/wg8", None),
                                   ("PUT", "/v1/wg/dummy8/config", {"private_key": far.private})):
            part = "another program" if "dummy" in path else "not declared: to manage it here, add [[interface]]"
            assert part in answered(node.panel.ask(method, path, body), 409).json["error"]
        seen = answered(node.panel.ask("GET", "/v1/wg/wg8/dump"), 200).json["peers"]
        is_([(p["public_key"], p["allowed_ips"]) for p in seen], [(key_of(8), ["10.88.0.0/16"])], "it can be read")
        config = answered(node.panel.ask("GET", "/v1/wg/wg8/config"), 200).json["config"]
        assert key_of(8) in config["raw_config"] and far.private not in config["raw_config"], config
        answered(node.panel.ask("GET", "/v1/wg/wg99/dump"), 404)
        is_(run("wg", "show", "wg8", "dump"), before)
        assert "dummy" in run("ip", "-d", "link", "show", "dummy8") and node.status()["clean"]
        run("ip", "link", "del", "dummy8")


def equal_values_of_a_declared_interface_are_accepted(spoke, far):
    with Node(spoke) as node:
        ask = node.panel.ask
        private = (node.dir / "state" / "wg0.key").read_text().strip()
        same = {"private_key": private, "listen_port": 51820, "address": "10.8.0.1/24"}
        for body in (same, {"private_key": private}):
            is_(answered(ask("PUT", "/v1/wg/wg0/config", body), 200).json["reloaded"], False)
        for field, body in (("ListenPort", {**same, "listen_port": 51821}), ("Address", {**same, "address": ""}), ("PrivateKey", {"private_key": far.private})):
            assert f"{field} differs" in answered(ask("PUT", "/v1/wg/wg0/config", body), 409).json["error"]
        is_(node.generation(), 0, "nothing was changed")


def dump_reports_recent_repairs(spoke, far):
    with Node(spoke) as node:
        ask = node.panel.ask
        answered(ask("POST", "/v1/wg/wg0/peers", {"public_key": key_of(1), "allowed_ips": ["10.0.1.2/32"]}), 200)
        is_(ask("GET", "/v1/wg/wg0/dump").json["recent_repairs"], 0)
        run("wg", "set", "wg0", "peer", key_of(1), "remove")
        # The kernel reports no event for it, and a state younger than a second is served again.
        time.sleep(1.5)
        dump = answered(ask("GET", "/v1/wg/wg0/dump"), 200).json
        is_((len(dump["peers"]), dump["recent_repairs"]), (1, 1), "repaired before it was answered")


def panel_of_the_fork_is_served(spoke, far):
    with Node(spoke) as node:
        flow.check(node, far.private, PORT)


def large_bodies_and_slow_clients_are_bounded(spoke, far):
    with Node(spoke) as node:
        panel = node.panel
        before = node.memory("RssAnon")
        # 100 MB from a client that reads nothing before it has sent everything: it still receives the response.
        claims = f"X-Signature: {'0' * 64}\r\nX-Timestamp: {int(time.time())}\r\n"
        block = b"x" * 65536
        for within, claim, length, wanted in (
            (None, claims, "Content-Length: 100000000", 413),
            (far.name, claims, "Transfer-Encoding: chunked", 413),
            (None, "", "Content-Length: 100000000", 401),
            (None, claims, "Content-Length: 99999999999999999999", 400),
        ):
            with inside(within):
                sock = socket.create_connection((NEAR if within else "127.0.0.1", PORT), timeout=60)
            sock.sendall(f"POST /v1/wg/wg0/peers HTTP/1.1\r\nHost: x\r\n{claim}{length}\r\n\r\n".encode())
            for _ in range(1526 if wanted != 400 else 0):
                sock.sendall(block if "Length" in length else b"10000\r\n" + block + b"\r\n")
            got = exchange(sock, b"")
            assert status_of(got) == wanted and b'"error"' in got or wanted == 400, f"{length}: {got}"
        # 0 and 1 MB.
        answered(panel.ask("POST", "/v1/wg/wg0/peers", b""), 400)
        answered(panel.ask("POST", "/v1/wg/wg0/peers", b"x" * (1 << 20)), 400)
        # Unauthenticated bodies on as many connections as possible: their sum is bounded too.
        socks = []
        for _ in range(60):
            sock = panel.connect()
            size = 7 << 20
            sock.sendall(f"POST /v1/wg/wg0/peers HTTP/1.1\r\nHost: x\r\nX-Signature: {'0' * 64}\r\nX-Timestamp: {int(time.time())}\r\n"
                         f"Content-Length: {size}\r\n\r\n".encode())
            sock.setblocking(False)
            socks.append(sock)
        for _ in range(40):
            for sock in socks:
                try:
                    sock.send(b"x" * 131072)
                except OSError:
                    pass
            answered(panel.send("GET", "/health"), 200)
        grown = node.memory("RssAnon") - before
        for sock in socks:
            sock.close()
        assert grown < 24 << 10, f"{grown} KiB more than before"
        is_(node.peers(), {})


def forged_long_body_costs_its_source_a_minute(spoke, far):
    with Node(spoke) as node:
        outer = Panel(node.secret, NEAR, within=far.name)
        stranger = Panel("x" * 44, NEAR, within=far.name)
        path, long = "/v1/wg/wg0/peers", json.dumps({"public_key": key_of(1), "pad": "x" * 40_000}).encode()
        answered(stranger.ask("POST", path, long), 401, {"error": "Invalid signature"})
        refusal = answered(stranger.ask("POST", path, long), 429)
        assert 0 < int(refusal.headers["retry-after"]) <= 61, refusal.headers
        answered(stranger.ask("POST", path, b"{}"), 401)
        # A call with a valid signature lifts it, whatever its length.
        answered(outer.ask("GET", "/v1/status"), 200)
        answered(outer.ask("POST", path, long), 200)


def slow_headers_are_cut_off_while_others_are_served(spoke, far):
    with Node(spoke) as node:
        panel = node.panel
        # One byte of a header a second on each of the 128 connections allowed.
        held = [panel.connect() for _ in range(128)]
        start, gone = time.monotonic(), 0
        head = f"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: {'x' * 200}".encode()
        for i, byte in enumerate(head[: 3 * HEADER_LIMIT]):
            for sock in held:
                try:
                    sock.send(bytes([byte]))
                except OSError:
                    pass
            try:
                served = panel.send("GET", "/health").status == 200
            except OSError:
                served = False
            if served:
                break
            time.sleep(1)
        waited = time.monotonic() - start
        assert served and waited < HEADER_LIMIT + 5, f"served: {served} after {waited:.1f} s"
        gone = sum(exchange(s, b"", half_close=False) == b"" for s in held)
        is_(gone, len(held), "every slow connection was closed without a response")
        # One source on the network has at most 16 connections; others are still served.
        distant = Panel(node.secret, NEAR, far.name)
        few = [distant.connect() for _ in range(16)]
        is_(exchange(distant.connect(), b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"), b"", "the 17th")
        answered(panel.send("GET", "/health"), 200)
        few.pop().close()
        wait_for("a connection is accepted again", lambda: exchange(distant.connect(), b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
        # A client that sends requests and does not read, and one that stops in the middle of its body.
        node.panel.syncconf("wg0", file_of(range(2000)))
        lazy = panel.connect()
        path = "/v1/wg/wg0/dump"
        lines = "".join(f"{n}: {v}\r\n" for n, v in panel.headers("GET", path, b"").items())
        for _ in range(20):
            lazy.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
        half = panel.connect()
        half.sendall(b"POST /v1/wg/wg0/peers HTTP/1.1\r\nHost: x\r\nX-Timestamp: %d\r\nX-Signature: %s\r\nContent-Length: 9\r\n\r\n{" % (time.time(), b"0" * 64))
        answered(panel.ask("POST", "/v1/wg/wg0/peers", {"public_key": key_of(5000)}), 200)
        is_(status_of(exchange(half, b"", half_close=False)), 408, "half a body")
        lazy.close()


def requests_of_one_source_are_rate_limited(spoke, far):
    with Node(spoke, agent="rate = 10") as node:
        distant = Panel(node.secret, NEAR, far.name)
        answers = [distant.send("GET", "/health") for _ in range(120)]
        limited = [a for a in answers if a.status == 429]
        served = [a for a in answers if a.status == 200]
        assert len(served) >= 50 and limited, f"{len(served)} served, {len(limited)} refused"
        assert int(limited[0].headers["retry-after"]) >= 1 and "error" in limited[0].json
        answered(node.panel.send("GET", "/health"), 200)
        time.sleep(int(limited[-1].headers["retry-after"]))
        answered(distant.send("GET", "/health"), 200)


def syncconf_accepts_the_whole_file_format(spoke, far):
    with Node(spoke) as node:
        psk = run("wg", "genpsk").strip()
        text = (f"# a comment\r\n[Interface]\r\nListenPort = 51820 # as it is\r\nFwMark = off\r\n\r\n[Peer]\r\nPublicKey={key_of(1)}\r\n"
                f"presharedkey = {psk}\r\nAllowedIPs = 10.0.1.0/24,\r\nALLOWEDIPS = fd00::/64, 10.0.2.7\r\nEndpoint = [2001:db8::1]:1234\r\n"
                f"PersistentKeepalive = 25\r\n[peer]\nPublicKey = {key_of(2)}\nEndpoint = localhost:7\nPersistentKeepalive = off")
        answered(node.panel.syncconf("wg0", text), 200)
        is_(node.peers(), {key_of(1): {"10.0.1.0/24", "fd00::/64", "10.0.2.7/32"}, key_of(2): set()})
        assert f"{key_of(1)}\t{psk}" in run("wg", "show", "wg0", "preshared-keys")
        ends = dict(line.split("\t") for line in run("wg", "show", "wg0", "endpoints").splitlines())
        assert ends[key_of(1)] == "[2001:db8::1]:1234" and ends[key_of(2)] in ("127.0.0.1:7", "[::1]:7"), ends
        assert psk not in node.panel.ask("GET", "/v1/wg/wg0/dump").body.decode() + node.panel.ask("GET", "/v1/wg/wg0/config").body.decode()
        # The output of `wg showconf` is accepted, keys of the interface included.
        answered(node.panel.syncconf("wg0", run("wg", "showconf", "wg0")), 200)
        before = run("wg", "show", "wg0", "dump")
        generation = node.generation()
        # In a file for wg-quick its keys are ignored and its hooks are refused by name.
        quick = "[Interface]\nAddress = 10.8.0.1/24\nDNS = 1.1.1.1, corp.example\nMTU = 1420\nTable = auto\nSaveConfig = false\n"
        answered(node.panel.syncconf("wg0", quick + text.split("[Interface]")[1]), 200)
        for hook in ("PostUp", "PreUp", "PostDown", "predown"):
            answer = answered(node.panel.syncconf("wg0", quick + f"{hook} = touch /run/owned\n" + file_of([7])), 422)
            message = answer.json["detail"][0]["msg"]
            assert hook.lower() in message.lower() and "line 7" in message, message
        is_((run("wg", "show", "wg0", "dump"), node.generation()), (before, generation), "nothing changed")
        assert not os.path.exists("/run/owned")


def replacing_peers_loses_no_packet_of_the_others(spoke, far):
    with Node(spoke) as node:
        stays = f"[Peer]\nPublicKey = {far.public}\nAllowedIPs = 10.8.0.2/32\n\n"
        sets = [stays + file_of(range(0, 1000)), stays + file_of(range(1000, 2000))]
        answered(node.panel.syncconf("wg0", sets[1]), 200)
        far.join(node)
        run(*far.command("ping", "-c", 3, "-W", 10, "10.8.0.1"))
        shaken = lambda: dict(l.split("\t") for l in run("wg", "show", "wg0", "latest-handshakes").splitlines())[far.public]
        first, count, floods, over = shaken(), 5000, [], threading.Event()

        def flood():
            while not over.is_set():
                floods.append(run(*far.command("ping", "-f", "-q", "-c", count, "10.8.0.1"), check=False))

        flooding = threading.Thread(target=flood)
        flooding.start()
        wait_for("the first flood ended", lambda: floods)
        for text in (*sets, *sets):
            answered(node.panel.syncconf("wg0", text), 200)
            is_(len(node.peers()), 1001)
        over.set()
        flooding.join()
        for printed in floods:
            assert f"{count} packets transmitted, {count} received, 0% packet loss" in printed, printed
        print(f"  (4 times 1,000 peers replaced during {count * len(floods)} echoes, none lost)")
        is_(shaken(), first, "the session is the same")
        # Control: without its peer the flood does lose packets.
        answered(node.panel.syncconf("wg0", sets[0].removeprefix(stays)), 200)
        assert "100% packet loss" in run(*far.command("ping", "-f", "-q", "-c", 20, "-w", 3, "10.8.0.1"), check=False)


def a_kill_during_syncconf_leaves_all_or_nothing(spoke, far):
    old, new = {key_of(n) for n in range(300)}, {key_of(n) for n in range(300, 4300)}
    for remove_unknown in ("true", "false"):
        with Node(spoke, interface=f"remove_unknown = {remove_unknown}\n") as node:
            answered(node.panel.syncconf("wg0", file_of(range(300))), 200)
            def send():
                try:
                    node.panel.syncconf("wg0", file_of(range(300, 4300)))
                except OSError:
                    pass
            sender = threading.Thread(target=send)
            sender.start()
            wait_for("the kernel has a part of the file", lambda: set(node.peers()) != old, 120)
            node.stop(signal.SIGKILL)
            sender.join()
            mixed = set(node.peers())
            node.start().listening()
            found = wait_for("the kernel has one whole set", lambda: (s := set(node.peers())) in (old, new) and s)
            newest = [g for g in node.panel.ask("GET", "/v1/history").json["generations"] if g["current"]][0]
            is_("4000 peers" in newest["what"], found == new, "the history agrees with the kernel")
            print(f"  (killed with {len(mixed & old)} old and {len(mixed & new)} new peers in the kernel; back to {len(found)})")


def tls_certificate_is_reloaded_while_running(spoke, far):
    def certificate(directory, serial, name="node.example"):
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650",
            "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-set_serial", serial,
            "-keyout", directory / "new.key", "-out", directory / "new.crt")
        for part in ("key", "crt"):
            (directory / f"new.{part}").chmod(0o600)
            os.replace(directory / f"new.{part}", directory / f"tls.{part}")

    def serial(panel):
        with panel.connect() as sock:
            return int(sock.getpeercert()["serialNumber"], 16)

    node = Node(spoke)
    node.config.write_text(node.config.read_text().replace("[agent]\n", f'[agent]\ntls_certificate = "{node.dir}/tls.crt"\ntls_key = "{node.dir}/tls.key"\n'))
    certificate(node.dir, 1)
    node.panel.tls = trusting(node.dir / "tls.crt")
    with node:
        is_(serial(node.panel), 1)
        answered(node.panel.ask("POST", "/v1/wg/wg0/peers", {"public_key": key_of(1)}), 200)
        url = f"https://node.example:{PORT}/health"
        is_(json.loads(run("curl", "-sS", "--cacert", node.dir / "tls.crt", "--resolve", f"node.example:{PORT}:127.0.0.1", url))["status"], "ok")
        plain = Panel(node.secret)
        is_(status_of(exchange(plain.connect(), b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", half_close=False)), 0, "no plain HTTP")
        silent = plain.connect()
        old = run("openssl", "s_client", "-connect", f"127.0.0.1:{PORT}", "-tls1_1", "-cipher", "ALL@SECLEVEL=0", check=False)
        assert "Cipher is (NONE)" in old, old
        kept = node.panel.connect()
        certificate(node.dir, 2)
        node.panel.tls = trusting(node.dir / "tls.crt")
        def reloaded():
            try:
                return serial(node.panel) == 2
            except ssl.SSLError:
                return False
        wait_for("the new certificate is served", reloaded, 30)
        answered(node.panel.ask("GET", "/v1/status", sock=kept), 200)
        # With an invalid key file the current certificate stays.
        (node.dir / "tls.key").write_text("nonsense")
        wait_for("the log names the fault", lambda: (serial(node.panel), "the old one stays" in node.log()) == (2, True), 30)
        certificate(node.dir, 3)
        node.panel.tls = trusting(node.dir / "tls.crt")
        wait_for("the third certificate is served", reloaded_to(serial, node, 3), 30)
        is_(exchange(silent, b"", half_close=False), b"", "a connection without a handshake is closed")
    bad = Node(spoke)
    bad.config.write_text(bad.config.read_text().replace("[agent]\n", f'[agent]\ntls_certificate = "{bad.dir}/none.crt"\ntls_key = "{bad.dir}/none.key"\n'))
    agent_is_not_served(spoke, bad.config, "none.crt")


def reloaded_to(serial, node, wanted):
    def reached():
        try:
            return serial(node.panel) == wanted
        except ssl.SSLError:
            return False

    return reached


def requests_are_served_during_a_large_syncconf(spoke, far):
    with Node(spoke) as node:
        sets = [file_of(range(0, 3000)), file_of(range(1500, 4500))]
        over, waits = threading.Event(), []

        def ask():
            while not over.is_set():
                start = time.monotonic()
                answered(node.panel.send("GET", "/health"), 200)
                waits.append(time.monotonic() - start)

        asker = threading.Thread(target=ask)
        asker.start()
        took = []
        for text in sets:
            start, before = time.monotonic(), len(waits)
            answered(node.panel.syncconf("wg0", text), 200)
            took.append((time.monotonic() - start, len(waits) - before))
        # Not counted: an empty file may be applied before a second request is sent.
        answered(node.panel.syncconf("wg0", ""), 200)
        over.set()
        asker.join()
        assert all(count >= 3 for _, count in took), f"{took}: fewer than 3 requests were served meanwhile"
        assert max(waits) < max(t for t, _ in took), f"one waited {max(waits):.2f} s; the files took {took}"
        assert node.status()["clean"], "the reconcile loop is not clean"


def the_documented_example_works(spoke, far):
    top = pathlib.Path(__file__).resolve().parents[2]
    pages = "\n".join(page.read_text() for page in (top / "README.md", *sorted((top / "docs").glob("*.md"))))
    blocks = [block.split("```")[0] for block in pages.split("```sh\n")[1:]]
    # Both blocks of the page: the functions that sign, and the confirmation by them.
    first = next(i for i, block in enumerate(blocks) if "X-Signature" in block)
    example = blocks[first] + next(block for block in blocks[first:] if "/v1/confirm" in block)
    with Node(spoke) as node:
        example = example.replace("/var/lib/spoke/agent.secret", str(node.write("agent.secret", node.secret + "\n")))
        # The example confirms generation 2.
        answered(node.panel.ask("POST", "/v1/wg/wg0/peers", {"public_key": key_of(1)}), 200)
        done = subprocess.run(["bash", "-euc", example], cwd=node.dir, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and '"interface":"wg0"' in done.stdout.replace(" ", "") and '"success"' in done.stdout, done
        assert {"10.9.0.9/32"} in node.peers().values(), node.peers()
        newest = [g for g in node.panel.ask("GET", "/v1/history").json["generations"] if g["current"]][0]
        assert newest["confirm_within"] is None, newest


def status_watch_ends_with_control_c(spoke, far):
    with Node(spoke) as node:
        master, slave = os.openpty()
        before = termios.tcgetattr(slave)
        watch = subprocess.Popen([spoke, "--config", node.config, "status", "--watch"], stdin=slave, stdout=slave, stderr=slave,
                                 start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        shown = b""
        # Twice: it refreshes.
        while shown.count(b"kernel: in sync") < 2:
            shown += os.read(master, 65536)
        os.write(master, b"\x03")
        is_(watch.wait(30), 0, "exit status after Ctrl-C")
        is_(termios.tcgetattr(slave), before, "terminal settings")
        for mode in (b"\x1b[?1049h", b"\x1b[?25l"):
            assert mode not in shown, "the alternate screen or a hidden cursor would have to be restored"
        os.close(master)
        os.close(slave)


def the_agent_conforms_to_its_openapi_document(spoke, far):
    with Node(spoke) as node:
        contract.check(node, os.environ["SPOKE_TEST_SCHEMATHESIS"])


SCENARIOS = [value for value in list(globals().values()) if callable(value) and getattr(value, "__module__", "") == __name__
           and value.__code__.co_varnames[:2] == ("spoke", "far")]


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--spoke", required=True, help="the binary")
    options.add_argument("--only", default="*", help="shell pattern of scenario names")
    options = options.parse_args()
    failed = 0
    with Far() as far:
        for scenario in SCENARIOS:
            if not fnmatch.fnmatch(scenario.__name__, options.only):
                continue
            start = time.monotonic()
            try:
                scenario(options.spoke, far)
                print(f"ok - {scenario.__name__} ({time.monotonic() - start:.0f} s)", flush=True)
            except Exception:
                traceback.print_exc()
                print(f"not ok - {scenario.__name__}", flush=True)
                failed += 1
    sys.exit(failed != 0)


if __name__ == "__main__":
    main()
