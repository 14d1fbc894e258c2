"""Hooks of schemathesis: sign requests, and use existing interface names more often than chance would."""
import base64
import itertools
import os
import pathlib
import re
import time

import requests.auth
import schemathesis
from hypothesis import strategies

from panel import sign

SECRET = pathlib.Path(os.environ["AGENT_FILE"]).read_text().strip()
NONCES = itertools.count(1)
NONCE = re.compile("[A-Za-z0-9_-]{1,64}")
LINK = re.compile("[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")


class Signature(requests.auth.AuthBase):
    """Signs the prepared request."""

    def __call__(self, request):
        body = request.body or b""
        body = body.encode() if isinstance(body, str) else body
        now = str(int(time.time()))
        nonce = request.headers.get("X-Nonce")
        nonce = nonce.decode("latin-1") if isinstance(nonce, bytes) else nonce
        if request.method not in ("GET", "HEAD") and (nonce is None or NONCE.fullmatch(nonce)):
            # A valid nonce is replaced: it must not be used twice.
            nonce = request.headers["X-Nonce"] = f"s{next(NONCES)}"
        request.headers["X-Timestamp"] = now
        request.headers["X-Signature"] = sign(SECRET, request.method, request.path_url, body, now, nonce)
        return request


def peers(keys):
    """A file with these peers, in base64."""
    return base64.b64encode("".join(f"[Peer]\nPublicKey = {k}\nPersistentKeepalive = {len(k) % 30}\n" for k in keys).encode()).decode()


# Interface addresses, IPv4 only: IPv6 needs an MTU of 1280, which the schema cannot express.
own = strategies.ip_addresses(v=4).filter(lambda a: not (a.is_unspecified or a.is_multicast or str(a) == "255.255.255.255")).map(lambda a: f"{a}/32")
v4 = strategies.ip_addresses(v=4).map(lambda a: f"{a}/32")
v6 = strategies.ip_addresses(v=6).filter(lambda a: a.ipv4_mapped is None).map(lambda a: f"{a}/128")
wide = strategies.integers(0, 255).map(lambda n: f"10.{n}.0.0/16")
network = strategies.one_of(v4, v6, wide)
resolver = strategies.ip_addresses().filter(lambda a: a.version == 4 or a.ipv4_mapped is None).map(str)
key = strategies.binary(min_size=32, max_size=32).map(lambda b: base64.b64encode(b).decode())
few = lambda one: strategies.lists(one, max_size=3).map(", ".join)
for name, strategy in {
    "network": network, "addresses": few(own), "addresses-one": own, "resolvers": few(resolver), "resolvers-one": resolver,
    "wg-file": strategies.lists(key, max_size=4, unique=True).map(peers),
}.items():
    schemathesis.openapi.format(name, strategy)

schemathesis.auth.set_from_requests(Signature())


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    name = (path_parameters or {}).get("if")
    # Invalid names are kept.
    if isinstance(name, str) and LINK.fullmatch(name) and len(name) % 3:
        path_parameters["if"] = ("wg0", "wg5")[len(name) % 2]
    return path_parameters
