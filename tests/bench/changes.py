"""Changes a node's MTU repeatedly through the API of the control plane and prints the latency: from sending the request, over an
open connection, to the event of the device's kernel.

changes.py ADDRESS TOKEN-FILE EVENTS: EVENTS is what `ip -ts monitor link` of the device writes."""
import datetime
import http.client
import json
import os
import pathlib
import re
import ssl
import sys
import time

COUNT = int(os.environ.get("SPOKE_BENCH_CHANGES", "40"))


def announced(events, mtu):
    """Time of the kernel's event, in seconds since 1970. Polled rarely, since polling costs CPU; the event has its own time stamp."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if found := re.search(rf"^\[([^]]+)\].* mtu {mtu} ", events.read_text(), re.MULTILINE):
            return datetime.datetime.fromisoformat(found.group(1)).timestamp()
        time.sleep(0.2)
    sys.exit(f"timeout: the device's kernel reported no mtu {mtu}")


def main():
    address, token, events = sys.argv[1], pathlib.Path(sys.argv[2]).read_text().strip(), pathlib.Path(sys.argv[3])
    trust = ssl.create_default_context()
    # Self-signed certificate; authentication is not measured.
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    api = http.client.HTTPSConnection(address, context=trust)
    api.connect()
    took = []
    for mtu in range(1301, 1301 + COUNT):
        body = json.dumps({"overrides": {"override_mtu": mtu}})
        start = time.time()
        api.request("PUT", "/api/nodes/edge-1", body, {"authorization": f"Bearer {token}", "content-type": "application/json"})
        answer = api.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        took.append((announced(events, mtu) - start) * 1000)
        time.sleep(0.3)
    took.sort()
    p50, p90 = took[(len(took) - 1) // 2], took[round(len(took) * 0.9) - 1]
    print(f"\nchange requested → event of the device's kernel, {len(took)} changes: p50 {p50:.0f} ms, p90 {p90:.0f} ms, largest {took[-1]:.0f} ms")


if __name__ == "__main__":
    main()
