"""Malformed and unauthentic requests: each is refused with its status and changes nothing."""
import base64
import json
import os
import time
import urllib.parse

from node import file_of, key_of, run
from panel import exchange, sign, status_of

PEERS = "/v1/wg/wg0/peers"
KEY = key_of(1)


def short_and_long():
    return [base64.b64encode(bytes(range(n))).decode() for n in (31, 33)]


def peer(**more):
    return {"public_key": KEY, **more}


def sync(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return {"config": base64.b64encode(raw).decode()}


def bodies():
    """(what, method, path, body, status)"""
    deep = b'{"public_key":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    yield "no body", "POST", PEERS, b"", 400
    yield "a body that ends early", "POST", PEERS, b'{"public_key": "', 400
    yield "two documents", "POST", PEERS, b"{}{}", 400
    yield "invalid UTF-8", "POST", PEERS, b'{"public_key": "\xff\xfe"}', 400
    yield "UTF-16", "POST", PEERS, json.dumps(peer()).encode("utf-16"), 400
    yield "nesting without end", "POST", PEERS, deep, 400
    yield "nesting beyond need", "POST", PEERS, b'{"allowed_ips":' + b"[" * 20 + b"]" * 20 + b"}", 400
    yield "a key twice", "POST", PEERS, b'{"public_key":"%s","allowed_ips":[],"allowed_ips":["10.0.0.0/8"]}' % KEY.encode(), 400
    yield "NaN", "POST", PEERS, b'{"public_key":"%s","persistent_keepalive":NaN}' % KEY.encode(), 400
    for other in (b"[]", b"null", b"7", b'"text"', b"true"):
        yield f"no object: {other}", "POST", PEERS, other, 422
    yield "no key", "POST", PEERS, {}, 422
    for bad in [*short_and_long(), "", "x", KEY[:-1], KEY + "=", KEY.replace("=", "-"), "A" * 43 + "=="]:
        yield f"public key {bad!r}", "POST", PEERS, {"public_key": bad}, 422
        if bad != "":
            yield f"preshared key {bad!r}", "POST", PEERS, peer(preshared_key=bad), 422
            yield f"public key in a file {bad!r}", "POST", "/v1/wg/wg0/syncconf", sync(f"[Peer]\nPublicKey = {bad}\n"), 422
            quoted = urllib.parse.quote(bad, safe="")
            yield f"key in the path {bad!r}", "PUT", f"{PEERS}/{quoted}", {"allowed_ips": []}, 400
            yield f"key in the path {bad!r}", "DELETE", f"{PEERS}/{quoted}", b"", 400
        yield f"private key {bad!r}", "PUT", "/v1/wg/wg8/config", {"private_key": bad}, 422
    for bad in (65536, -1, 1.5, "25", True, [], 10**30, -(10**30)):
        yield f"keepalive {bad}", "POST", PEERS, peer(persistent_keepalive=bad), 422
        yield f"listen port {bad}", "PUT", "/v1/wg/wg8/config", {"private_key": KEY, "listen_port": bad}, 422
    yield "keepalive in a file", "POST", "/v1/wg/wg0/syncconf", sync(f"[Peer]\nPublicKey = {KEY}\nPersistentKeepalive = 65536\n"), 422
    for bad in ("::ffff:10.0.0.0/104", "::ffff:10.0.0.1", "10.0.0.0/33", "fd00::/129", "10.0.0.0/-1",
                "10.0.0.0/ 8", "", "0/0", "010.0.0.0/8", "10.0.0.0/8; id", "a.example/32", "+10.0.0.0/8"):
        yield f"allowed ip {bad!r}", "POST", PEERS, peer(allowed_ips=[bad]), 422
        # Blanks count nowhere in a file.
        if bad not in ("", "10.0.0.0/ 8"):
            yield f"allowed ip {bad!r} in a file", "POST", "/v1/wg/wg0/syncconf", sync(f"[Peer]\nPublicKey = {KEY}\nAllowedIPs = {bad}\n"), 422
    for bad in ("10.0.0.0/8", {}, None, 7, [7], [None], [["10.0.0.0/8"]]):
        yield f"allowed ips {bad}", "POST", PEERS, peer(allowed_ips=bad), 422
    yield "too many allowed ips", "POST", PEERS, peer(allowed_ips=[f"10.{i // 256}.{i % 256}.0/24" for i in range(20_000)]), 422
    for bad in ("%%%", "not base64", base64.b64encode(b"\xff\xfe[Peer]").decode(), 7, None, [], {}):
        yield f"file {bad!r}", "POST", "/v1/wg/wg0/syncconf", {"config": bad}, 422
    lines = {
        "a peer twice": f"[Peer]\nPublicKey={KEY}\n[Peer]\nPublicKey={KEY}\n",
        "a peer without a key": "[Peer]\nAllowedIPs=10.0.0.0/8\n",
        "two interfaces": "[Interface]\n[Interface]\n",
        "a key before any section": f"PublicKey={KEY}\n",
        "an unknown section": "[Include]\n",
        "an unknown key": f"[Peer]\nPublicKey={KEY}\nRun=id\n",
        "a line without a key": f"[Peer]\nPublicKey={KEY}\nnonsense\n",
        "an endpoint without a port": f"[Peer]\nPublicKey={KEY}\nEndpoint=192.0.2.1\n",
        "an endpoint with port 0": f"[Peer]\nPublicKey={KEY}\nEndpoint=192.0.2.1:0\n",
        "an endpoint with port 65536": f"[Peer]\nPublicKey={KEY}\nEndpoint=192.0.2.1:65536\n",
        "an endpoint that is a command": f"[Peer]\nPublicKey={KEY}\nEndpoint=$(id):1\n",
        "a zero byte": f"[Peer]\nPublicKey={KEY}\n\0\n",
        "a mark": "[Interface]\nFwMark = 0x1ffffffff\n",
        "a port": "[Interface]\nListenPort = 65536\n",
        "a hook": "[Interface]\nPostUp = id\n",
        "an endless line": "[Peer]\nAllowedIPs = " + "10.0.0.0/8," * 40_000,
    }
    for what, text in lines.items():
        yield what, "POST", "/v1/wg/wg0/syncconf", sync(text), 422
    for hook in ("post_up", "pre_down", "pre_up", "post_down"):
        yield hook, "PUT", "/v1/wg/wg8/config", {"private_key": KEY, hook: "touch /run/owned"}, 422
    for field, values in {"mtu": (575, 65536, "x", -1), "address": ("10.0.0.1/33", "x", 7, "::ffff:10.0.0.1/120", "0.0.0.0/32", "::1/128", "ff02::1/64", "010.0.0.1/24"), "dns": ("one one", "8.8.8", 7), "table": ("local", 0, -1, 2**32, "x; id")}.items():
        for bad in values:
            yield f"{field} {bad!r}", "PUT", "/v1/wg/wg8/config", {"private_key": KEY, field: bad}, 422
    for bad in (0, -1, 3601, 10**30, "30", 1.5):
        yield f"confirm within {bad}", "POST", PEERS, peer(confirm_within=bad), 422
        yield f"confirm within {bad}", "POST", "/v1/wg/wg0/disable", {"confirm_within": bad}, 422
    for path in ("/v1/confirm", "/v1/rollback"):
        for bad in (-1, "1", 1.5, [], 10**30):
            yield f"{path} {bad}", "POST", path, {"generation": bad}, 422
    yield "nothing to confirm", "POST", "/v1/confirm", {"generation": 99}, 409
    yield "no such generation", "POST", "/v1/rollback", {"generation": 99}, 404
    yield "a flag that is a word", "POST", "/v1/drift/reconcile", {"dry_run": "no"}, 422


def paths():
    """(method, path): invalid interface names for every call that takes one, and paths outside of the API."""
    bad = ["..", ".", "-h", "--help", "wg 0", "wg%200", "a" * 16, "wg0%00", "wg0%0a", "%ff", "$(id)", "wg0;id", "%2e%2e", "w%2Fg", "", "é", "wg*", "all%"]
    for name in bad:
        for method, tail in (("GET", "/dump"), ("POST", "/peers"), ("POST", "/syncconf"), ("GET", "/config"), ("PUT", "/config"),
                             ("POST", "/enable"), ("POST", "/disable"), ("DELETE", "")):
            yield method, f"/v1/wg/{name}{tail}"
    for path in ("/", "/v1", "/v1/", "/v1/wg", "/v1/wg/wg0/peers/../dump", "/v1/wg/../../etc/passwd", "/v1/status/", "//v1/status", "/V1/status"):
        yield "GET", path


def all_of_them(node):
    node.panel.ask("POST", PEERS, {"public_key": key_of(2), "allowed_ips": ["10.2.0.0/16"]})
    def state():
        return run("wg", "show", "all", "dump"), run("ip", "-o", "addr").replace(" tentative", ""), node.generation()

    before, count = state(), 0
    for what, method, path, body, status in bodies():
        answer = node.panel.ask(method, path, body)
        if answer.status != status or not ("error" in answer.json or "detail" in answer.json):
            raise AssertionError(f"{what}: {answer}, wanted {status}")
        if KEY in answer.body.decode() and "private_key" in str(body):
            raise AssertionError(f"{what}: the answer holds the private key")
        count += 1
    for method, path in paths():
        if " " in path or "é" in path:
            # No valid request line: written as bytes.
            raw = exchange(node.panel.connect(), f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode(), half_close=False)
            status = status_of(raw)
        else:
            status = node.panel.ask(method, path, None if method in ("GET", "DELETE") else {"public_key": KEY, "config": "", "private_key": KEY}).status
        if status not in (400, 401, 404, 405):
            raise AssertionError(f"{method} {path}: {status}")
        count += 1
    for method, path, allowed in (("PATCH", PEERS, "POST"), ("GET", PEERS, "POST"), ("POST", "/v1/status", "GET"), ("PUT", "/v1/wg/wg0", "DELETE"),
                                  ("TRACE", "/v1/wg/wg0/config", "GET, PUT"), ("POST", "/health", "GET")):
        # An open path takes no body, whatever the method.
        answer = node.panel.ask(method, path, None if method == "GET" or path == "/health" else {})
        if (answer.status, answer.headers.get("allow")) != (405, allowed):
            raise AssertionError(f"{method} {path}: {answer} {answer.headers}")
        count += 1
    answer = node.panel.ask("POST", "/health", {})
    if answer.status != 413:
        raise AssertionError(f"a body on an open path: {answer}")
    now = int(time.time())
    for off in (-3600, 3600, -301, 301, -now, 10**18):
        answer = node.panel.ask("POST", PEERS, peer(), timestamp=now + off)
        if (answer.status, answer.json) != (401, {"error": "Request timestamp too old"}):
            raise AssertionError(f"a clock {off} s off: {answer}")
        count += 1
    body = json.dumps(peer()).encode()
    good = node.panel.headers("POST", PEERS, body, "q1")
    for changed, error in (
        ({"X-Signature": None}, "Missing X-Signature or X-Timestamp header"),
        ({"X-Timestamp": None}, "Missing X-Signature or X-Timestamp header"),
        ({"X-Timestamp": "soon"}, "Invalid timestamp"),
        ({"X-Timestamp": f"+{now}"}, "Invalid timestamp"),
        ({"X-Timestamp": f"{now}.0"}, "Invalid timestamp"),
        ({"X-Signature": good["X-Signature"].upper()}, "Invalid signature"),
        ({"X-Signature": good["X-Signature"][:-1]}, "Invalid signature"),
        ({"X-Signature": "0" * 64}, "Invalid signature"),
        ({"X-Nonce": None}, "Invalid signature"),
        ({"X-Nonce": "a|b"}, "Invalid X-Nonce: 1 to 64 characters out of A-Z a-z 0-9 _ -"),
        ({"X-Nonce": "n" * 65}, "Invalid X-Nonce: 1 to 64 characters out of A-Z a-z 0-9 _ -"),
    ):
        headers = {k: v for k, v in {**good, **changed}.items() if v is not None}
        answer = node.panel.send("POST", PEERS, body, headers)
        if (answer.status, answer.json) != (401, {"error": error}):
            raise AssertionError(f"{changed}: {answer}")
        count += 1
    # The signature belongs to another method, path or body.
    for method, path, sent in (("PUT", PEERS, body), ("POST", "/v1/wg/wg1/peers", body), ("POST", PEERS, body + b" ")):
        answer = node.panel.send(method, path, sent, good)
        if answer.status != 401:
            raise AssertionError(f"{method} {path}: {answer}")
        count += 1
    answer = node.panel.send("POST", PEERS + "?force=1", body, good)
    if answer.status != 400:
        raise AssertionError(f"a query: {answer}")
    if state() != before:
        raise AssertionError(f"a refused request had an effect: {before} → {state()}")
    if os.path.exists("/run/owned"):
        raise AssertionError("a hook was run")
    print(f"  ({count} requests refused)")


def flipped_bits(node):
    """Flips one bit of each byte of each header: the request is refused, or, if the flip does not change its meaning, applied."""
    done, refused = set(), 0
    number = 100
    sample, parts = request(node, number, "s")
    spans = []
    at = 0
    for part in sample.split(b"\r\n\r\n")[0].split(b"\r\n"):
        spans.append((at, at + len(part)))
        at += len(part) + 2
    for start, end in spans:
        for at in range(start, end):
            number += 1
            raw, _ = request(node, number, f"n{number:05}")
            bit = number % 8
            changed = bytearray(raw)
            changed[at] ^= 1 << bit
            status = status_of(exchange(node.panel.connect(), bytes(changed), half_close=False))
            if status >= 500:
                raise AssertionError(f"{status} for {bytes(changed)!r}")
            if status == 200:
                done.add(key_of(number))
                line = raw[start:end].lower()
                name_end = start + raw[start:end].find(b":")
                signed = line.startswith((b"x-signature:", b"x-timestamp:", b"x-nonce:", b"post "))
                # Header names are case-insensitive; the HTTP version and unsigned headers may change.
                if signed and at > name_end + 1 and not line.startswith(b"post "):
                    raise AssertionError(f"accepted: {bytes(changed)!r}")
                if line.startswith(b"post ") and at < start + len(b"POST " + PEERS.encode()):
                    raise AssertionError(f"accepted: {bytes(changed)!r}")
            else:
                refused += 1
    if set(node.peers()) != done:
        raise AssertionError("a refused request had an effect, or an accepted one had none")
    if refused < 150 or not done:
        raise AssertionError(f"{refused} refused, {len(done)} accepted")
    print(f"  ({refused} refused, {len(done)} accepted with unchanged meaning)")


def request(node, number, nonce):
    """A request as bytes, and its head lines."""
    body = json.dumps({"public_key": key_of(number)}).encode()
    now = str(int(time.time()))
    lines = [f"POST {PEERS} HTTP/1.1", "Host: 127.0.0.1:8081", "User-Agent: panel/1.0", "Accept: */*", "Connection: close",
             "Content-Type: application/json", f"Content-Length: {len(body)}", f"X-Timestamp: {now}", f"X-Nonce: {nonce}",
             f"X-Signature: {sign(node.secret, 'POST', PEERS, body, now, nonce)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body, lines
