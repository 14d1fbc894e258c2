"""Runs image/container/compose.yaml as `docker compose` would, with Debian's crun, in the test kernel.

compose.py -f FILE up -d [SERVICE…] | exec -T SERVICE COMMAND… | logs SERVICE | health SERVICE | stop SERVICE | state SERVICE

It supports the keys that file uses and refuses all others. Root file systems and defaults of the images come from
$SPOKE_BUNDLES/IMAGE, unpacked by umoci."""
import ipaddress
import json
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import sys

import yaml

BUNDLES = pathlib.Path(os.environ["SPOKE_BUNDLES"])
WORK = pathlib.Path(os.environ["SPOKE_COMPOSE_STATE"])
KNOWN = {
    "": {"name", "x-node", "services", "networks", "volumes", "secrets"},
    "service": {"image", "restart", "read_only", "cap_drop", "cap_add", "security_opt", "sysctls", "tmpfs", "healthcheck", "environment",
                "volumes", "networks", "secrets"},
    "healthcheck": {"test", "interval", "timeout", "start_period"},
}


def check(table, kind, where):
    unknown = set(table) - KNOWN[kind]
    if unknown:
        sys.exit(f"{where}: compose.py does not support {', '.join(sorted(unknown))}")


def read(path):
    """The file with variables substituted from the environment and from .env beside it."""
    variables = dict(os.environ)
    beside = path.parent / ".env"
    if beside.exists():
        variables.update(line.split("=", 1) for line in beside.read_text().splitlines())

    def fill(match):
        name, kind, rest = match.groups()
        value = variables.get(name, "")
        if value or kind == ":-":
            return value or rest
        sys.exit(f"{name}: {rest}")

    text = re.sub(r"\$\{(\w+)(:-|:\?)([^}]*)\}", fill, path.read_text())
    compose = yaml.safe_load(text)
    check(compose, "", path.name)
    for name, service in compose["services"].items():
        check(service, "service", name)
        check(service.get("healthcheck", {}), "healthcheck", name)
    return compose


def run(*command, **more):
    return subprocess.run([str(c) for c in command], check=True, **more)


def crun(*arguments, **more):
    return subprocess.run(["crun", "--root", str(WORK / "crun"), "--cgroup-manager=disabled", *arguments], check=False, **more)


def namespace(compose, name, service):
    """Makes a network namespace on the bridge of the service's network, with its address; returns its path."""
    (network, wanted), = service["networks"].items()
    subnet = ipaddress.ip_network(compose["networks"][network]["ipam"]["config"][0]["subnet"])
    path = pathlib.Path("/run/netns") / name
    if not path.exists():
        if subprocess.run(["ip", "link", "show", network], capture_output=True, check=False).returncode:
            run("ip", "link", "add", network, "type", "bridge")
            run("ip", "link", "set", network, "up")
        run("ip", "netns", "add", name)
        run("ip", "link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", f"to-{name}")
        run("ip", "link", "set", f"to-{name}", "master", network, "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", name, "addr", "add", f"{wanted['ipv4_address']}/{subnet.prefixlen}", "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")
    return path


def bundle(compose, directory, name, service):
    """Writes the runtime's configuration from the image's, as umoci translated it, and the service's."""
    image = BUNDLES / service["image"].split(":")[0]
    # A copy, as a runtime's upper layer: mount points are created in it before it becomes read-only.
    root = WORK / "roots" / name
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        run("cp", "-a", image / "rootfs", root)
    config = json.loads((image / "config.json").read_text())
    process = config["process"]
    process["terminal"] = False
    process["env"] += [f"{k}={v}" for k, v in service.get("environment", {}).items()]
    process["noNewPrivileges"] = "no-new-privileges:true" in service.get("security_opt", [])
    assert service["cap_drop"] == ["ALL"], name
    rights = [f"CAP_{c}" for c in service.get("cap_add", [])]
    # As docker: root gets them as effective, other users only in the bounding set.
    of_root = rights if process["user"]["uid"] == 0 else []
    process["capabilities"] = {"bounding": rights, "effective": of_root, "permitted": of_root}
    config["root"] = {"path": str(root), "readonly": service["read_only"]}
    config["hostname"] = name
    keep = ("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue")
    mounts = [m for m in config["mounts"] if m["destination"] in keep]
    for place in service.get("tmpfs", []):
        mounts.append({"destination": place, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "noexec"]})
    for volume in service.get("volumes", []):
        source, place = volume.split(":")
        if source not in compose["volumes"]:
            sys.exit(f"{name}: no volume {source}")
        held = WORK / "volumes" / source
        if not held.exists():
            # A new volume starts with the image's content, owner and mode included.
            held.parent.mkdir(parents=True, exist_ok=True)
            run("cp", "-a", str(image / "rootfs") + place, held)
        mounts.append({"destination": place, "type": "bind", "source": str(held), "options": ["bind", "rw"]})
    for secret in service.get("secrets", []):
        source = (directory / compose["secrets"][secret]["file"]).resolve()
        mounts.append({"destination": f"/run/secrets/{secret}", "type": "bind", "source": str(source), "options": ["bind", "ro"]})
    config["mounts"] = mounts
    config["linux"] = {
        "namespaces": [{"type": "network", "path": str(namespace(compose, name, service))}, *({"type": t} for t in ("pid", "ipc", "uts", "mount"))],
        "sysctl": {k: str(v) for k, v in service.get("sysctls", {}).items()},
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"], "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
    }
    config.pop("annotations", None)
    place = WORK / "bundles" / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps(config))
    return place


def state(name):
    done = crun("state", name, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {"status": "absent"}


def up(compose, directory, names):
    for name in names or compose["services"]:
        if state(name)["status"] == "running":
            continue
        crun("delete", "--force", name, capture_output=True)
        place = bundle(compose, directory, name, compose["services"][name])
        with open(WORK / f"{name}.log", "ab") as log:
            if crun("run", "--detach", f"--bundle={place}", name, stdin=subprocess.DEVNULL, stdout=log, stderr=log).returncode:
                shutil.copyfileobj(open(WORK / f"{name}.log"), sys.stderr)
                sys.exit(f"{name} does not start")


def execute(name, command):
    # As the container's user: crun's default is root.
    user = json.loads((WORK / "bundles" / name / "config.json").read_text())["process"]["user"]
    # Through a pipe: crun changes the owner of its output to the container's user.
    done = crun("exec", f"--user={user['uid']}:{user['gid']}", name, *command, stdout=subprocess.PIPE)
    sys.stdout.buffer.write(done.stdout)
    return done.returncode


def stop(name):
    process = os.pidfd_open(state(name)["pid"])
    crun("kill", name, "SIGTERM")
    if not select.select([process], [], [], 15)[0]:
        sys.exit(f"{name} does not stop within 15 s of SIGTERM")
    crun("delete", "--force", name)


def main():
    arguments = sys.argv[1:]
    assert arguments[0] == "-f", __doc__
    path = pathlib.Path(arguments[1]).resolve()
    compose = read(path)
    command, *rest = arguments[2:]
    if command == "up":
        assert rest[0] == "-d"
        up(compose, path.parent, rest[1:])
    elif command == "exec":
        assert rest[0] == "-T"
        sys.exit(execute(rest[1], rest[2:]))
    elif command == "logs":
        sys.stdout.write((WORK / f"{rest[0]}.log").read_text())
    elif command == "health":
        test = compose["services"][rest[0]]["healthcheck"]["test"]
        assert test[0] == "CMD"
        sys.exit(execute(rest[0], test[1:]))
    elif command == "stop":
        stop(rest[0])
    elif command == "state":
        print(json.dumps(state(rest[0])))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()
