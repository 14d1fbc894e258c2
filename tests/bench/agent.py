"""Measures the calls of a panel on an agent with many peers; run by scripts/bench-agent."""
import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "agent"))
import node as nodes
from node import key_of, run, wait_for
from panel import Panel

PEERS = 10_000


def ms(seconds):
    return f"{seconds * 1000:.1f}"


def row(what, times, aim="", than=None):
    """Prints a line of the table: median, 99th percentile (empty for one sample), and the ratio to `wg`."""
    times = sorted(times)
    p99 = ms(times[min(len(times) - 1, int(len(times) * 0.99))]) if len(times) > 1 else ""
    ratio = f"{times[len(times) // 2] / than:.2f}" if than else ""
    print(f"| {what} | {ms(times[len(times) // 2])} | {p99} | {len(times)} | {ms(than) if than else ''} | {ratio} | {aim} |", flush=True)


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ask(panel, sock, method, path, value=None):
    answer = panel.ask(method, path, value, sock=sock)
    assert answer.status == 200, answer
    return answer


def load(seconds, pace=None):
    """Requests/s of /health by 100 clients, the 99th percentile in ms, and errors.

    Each client sends its next request at once, or, with `pace`, after this many ms on average.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        if pace:
            script.write(f"function delay() return math.random(0, {2 * pace}) end")
            script.flush()
        paced = ["-s", script.name] if pace else []
        printed = run("wrk", "-t2", "-c100", f"-d{seconds}s", "--latency", *paced, "http://127.0.0.1:8081/health")
    unit = {"us": 0.001, "ms": 1, "s": 1000}
    number, of = re.search(r"99%\s+([\d.]+)(us|ms|s)", printed).groups()
    errors = re.search(r"Non-2xx.*|Socket errors.*", printed)
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", printed).group(1))
    return rate, float(number) * unit[of], errors.group(0) if errors else ""


def cpu_wait(pid):
    """Seconds in which the busiest thread of a process was runnable and did not run (not in user-mode-linux)."""
    return max(int(p.read_text().split()[1]) for p in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--real", help="a spoke binary, on a real kernel and relative to wireguard-tools")
    options.add_argument("--memory", help="the server over a kernel in memory")
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--seconds", type=int, default=10, help="of load")
    options = options.parse_args()
    server = nodes.Node(options.real or options.memory, agent='listen = ["127.0.0.1:8081"]\nmax_body = 8388608')
    if options.memory:
        log = open(server.dir / "log", "w")
        server.process = subprocess.Popen([options.memory, server.config], stderr=log)
        server.listening()
    else:
        server.__enter__()
    try:
        measure(server, options)
    finally:
        server.process.kill()
        server.process.wait()
        if options.real:
            run("ip", "link", "del", "wg0", check=False)
        shutil.rmtree(server.dir)


def measure(server, options):
    panel, idle = server.panel, server.memory("VmRSS")
    peers = "/v1/wg/wg0/peers"
    plain = nodes.file_of(range(PEERS))
    other = plain.replace("10.100.0.7/32", "10.99.0.7/32")
    assert plain != other
    wg = {}
    if options.real:
        private = run("wg", "genkey")
        directory = pathlib.Path(tempfile.mkdtemp())
        # With the private key: without it `wg` clears the interface's, and the kernel computes no shared secrets.
        for name, text in (("plain", plain), ("other", other)):
            (directory / name).write_text(f"[Interface]\nPrivateKey = {private}\n{text}")
        run("ip", "link", "add", "wg9", "type", "wireguard")
        run("wg", "set", "wg9", "private-key", "/dev/stdin", text=private)
        median = lambda works: sorted(timed(w) for w in works)[len(works) // 2]
        wg["whole"] = timed(lambda: run("wg", "setconf", "wg9", directory / "plain"))
        wg["dump"] = median([lambda: run("wg", "show", "wg9", "dump")] * 5)
        wg["peer"] = median([lambda: run("wg", "set", "wg9", "peer", key_of(5), "persistent-keepalive", 1)] * 9)
        wg["one"] = median([lambda f=f: run("wg", "syncconf", "wg9", directory / f) for f in ("other", "plain") * 3])
        run("ip", "link", "del", "wg9")
        shutil.rmtree(directory)
    print(f"{PEERS} peers on one interface; ms")
    print("| call | p50 | p99 | n | wg | ratio | aim |\n|---|---|---|---|---|---|---|")
    sync = lambda text: panel.syncconf("wg0", text)

    def whole(text):
        answer = sync(text)
        assert answer.status == 200, answer

    waited = cpu_wait(server.process.pid) if options.memory else 0
    row("syncconf of the whole file, from nothing", [timed(lambda: whole(plain))], than=wg.get("whole"))
    if options.memory:
        waited = cpu_wait(server.process.pid) - waited
    sock = panel.connect()
    observed, cached = [], []
    for _ in range(options.rounds):
        # An observation is reused for a second.
        time.sleep(1.1)
        observed.append(timed(lambda: ask(panel, sock, "GET", "/v1/wg/wg0/dump")))
        cached.append(timed(lambda: ask(panel, sock, "GET", "/v1/wg/wg0/dump")))
    row("dump with a new observation", observed, "< 50", than=wg.get("dump"))
    row("dump within a second of it", cached, "< 50", than=wg.get("dump"))
    count = 10 * options.rounds
    change = lambda i: ask(panel, sock, "PUT", f"{peers}/{key_of(i)}", {"persistent_keepalive": 20 + i % 2})
    row("one peer changed", [timed(lambda: change(i)) for i in range(count)], "< 10", than=wg.get("peer"))
    add = lambda i: ask(panel, sock, "POST", peers, {"public_key": key_of(PEERS + i), "allowed_ips": [f"10.98.{i // 256}.{i % 256}/32"]})
    row("one peer added", [timed(lambda: add(i)) for i in range(options.rounds)], "< 10")
    row("one peer removed", [timed(lambda: ask(panel, sock, "DELETE", f"{peers}/{key_of(PEERS + i)}")) for i in range(options.rounds)], "< 10")
    whole(plain)
    row("syncconf of the whole file, one difference", [timed(lambda: whole((other, plain)[i % 2])) for i in range(options.rounds)], "< 60", than=wg.get("one"))
    row("syncconf of the whole file, no difference", [timed(lambda: whole(plain)) for _ in range(options.rounds)])
    if options.memory:
        print(f"\nin the first row {ms(waited)} ms were spent waiting for a CPU (about 0 on an idle machine)")
    rate, p99, errors = load(options.seconds)
    print(f"\n/health by 100 clients: {rate:.0f} requests/s, p99 {p99:.1f} ms {errors}")
    over, files = threading.Event(), 0

    def sync_until_over():
        nonlocal files
        while not over.is_set():
            whole((other, plain)[files % 2])
            files += 1

    busy = threading.Thread(target=sync_until_over)
    busy.start()
    for how, pace in (("without pause", None), ("each every 4 ms", 4)):
        files = 0
        rate, p99, errors = load(options.seconds, pace)
        print(f"… while whole files are synchronised ({files} of them), {how}: {rate:.0f} requests/s, p99 {p99:.1f} ms {errors} (aim: ≥ 20000, < 5 ms)")
    over.set()
    busy.join()
    print(f"memory: {idle} KiB before, {server.memory('VmRSS')} KiB after, {server.memory()} KiB at most (aim: < {24 << 10} KiB)", flush=True)


if __name__ == "__main__":
    main()
