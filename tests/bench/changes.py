"""Changes a node's MTU again and again by the API of the control plane, and says how long each took: from the moment the request
is sent, over a connection that stands, to the moment the device's kernel announces the change.

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
    """When the kernel said so, in seconds since 1970. Looking costs the one CPU that everybody shares, so it is done seldom: the
    time is the event's own."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if found := re.search(rf"^\[([^]]+)\].* mtu {mtu} ", events.read_text(), re.MULTILINE):
            return datetime.datetime.fromisoformat(found.group(1)).timestamp()
        time.sleep(0.2)
    sys.exit(f"the kernel of the device never had the mtu {mtu}")


def main():
    address, token, events = sys.argv[1], pathlib.Path(sys.argv[2]).read_text().strip(), pathlib.Path(sys.argv[3])
    trust = ssl.create_default_context()
    # Its certificate is its own; who it is does not matter to how long it takes.
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    api = http.client.HTTPSConnection(address, context=trust)
    api.connect()
    took = []
    for mtu in range(1301, 1301 + COUNT):
        body = json.dumps({"overrides": {"override_mtu": mtu}})
        start = time.time()
        api.request("PUT", "/api/nodes/edge-1", body, {"authorization": f"Bearer {token}", "content-type": "application/json"})
        answer = api.getresponse()
        said = answer.read()
        assert answer.status == 200, said
        took.append((announced(events, mtu) - start) * 1000)
        time.sleep(0.3)
    took.sort()
    p50, p90 = took[(len(took) - 1) // 2], took[round(len(took) * 0.9) - 1]
    print(f"\nchange requested → announced by the kernel of the device, {len(took)} changes: p50 {p50:.0f} ms, p90 {p90:.0f} ms, largest {took[-1]:.0f} ms")


if __name__ == "__main__":
    main()
