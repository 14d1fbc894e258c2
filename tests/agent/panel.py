"""A client of the agent API as existing multi-node panels implement it: signed requests, independent of Spoke's code."""
import base64
import ctypes
import hashlib
import hmac
import http.client
import itertools
import json
import os
import socket
import ssl
import threading
import time
import urllib.parse

PORT = 8081
NONCES = itertools.count(1)
libc = ctypes.CDLL(None, use_errno=True)


def sign(secret, method, path, body, timestamp, nonce=None):
    """The signature: HMAC-SHA256 of METHOD|PATH|BODY|TIMESTAMP; with a nonce v2|METHOD|PATH|BODY|TIMESTAMP|NONCE."""
    text = f"{method}|{urllib.parse.unquote(path.split('?')[0])}|".encode() + body + f"|{timestamp}".encode()
    if nonce is not None:
        text = b"v2|" + text + f"|{nonce}".encode()
    return hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


class Answer:
    """An HTTP response."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.body[:300]!r}"


class Panel:
    """One panel, in the network namespace `within` or in the current one."""

    def __init__(self, secret, host="127.0.0.1", within=None, tls=None):
        self.secret, self.host, self.within, self.tls = secret, host, within, tls

    def connect(self, timeout=60):
        """A connected socket."""
        with inside(self.within):
            raw = socket.create_connection((self.host, PORT), timeout=timeout)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.tls.wrap_socket(raw, server_hostname="node.example") if self.tls else raw

    def headers(self, method, path, body, nonce=None, timestamp=None):
        timestamp = str(int(time.time()) if timestamp is None else timestamp)
        out = {"X-Signature": sign(self.secret, method, path, body, timestamp, nonce), "X-Timestamp": timestamp}
        if nonce is not None:
            out["X-Nonce"] = nonce
        return out

    def send(self, method, path, body=b"", headers=None, sock=None):
        """Sends one request unchanged and reads the response."""
        connection = http.client.HTTPConnection(self.host, PORT)
        connection.sock = sock or self.connect()
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if body or method in ("POST", "PUT"):
                connection.putheader("Content-Length", str(len(body)))
                connection.putheader("Content-Type", "application/json")
            connection.endheaders(body or None)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            if sock is None:
                connection.close()

    def ask(self, method, path, value=None, sock=None, timestamp=None):
        """Signs and sends; every changing request gets a new nonce."""
        body = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
        nonce = None if method == "GET" else f"n{os.getpid()}-{next(NONCES)}"
        return self.send(method, path, body, self.headers(method, path, body, nonce, timestamp), sock)

    def syncconf(self, link, text, **more):
        return self.ask("POST", f"/v1/wg/{link}/syncconf", {"config": base64.b64encode(text.encode()).decode(), **more})


def trusting(certificate):
    """A TLS context that trusts this certificate alone."""
    return ssl.create_default_context(cafile=certificate)


def exchange(sock, data, half_close=True):
    """Writes bytes and reads until the other side closes; returns what was read until then."""
    out = b""
    try:
        sock.sendall(data)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        while chunk := sock.recv(65536):
            out += chunk
    except (ConnectionError, TimeoutError):
        pass
    finally:
        sock.close()
    return out


def status_of(raw):
    """The status of the first response in these bytes; 0 if there is none."""
    parts = raw.split(b" ", 2)
    return int(parts[1]) if len(parts) > 2 and parts[0].startswith(b"HTTP/1.") else 0


class inside:
    """Enters a network namespace for the sockets opened meanwhile; this thread only."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        if self.name:
            self.back = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
            there = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
            self.go(there)
            os.close(there)

    def __exit__(self, *_):
        if self.name:
            self.go(self.back)
            os.close(self.back)

    @staticmethod
    def go(fd):
        if libc.setns(fd, 0x40000000) != 0:
            raise OSError(ctypes.get_errno(), "setns")
