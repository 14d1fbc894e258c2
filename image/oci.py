"""Builds an OCI image reproducibly, without a daemon or root. Called by scripts/build-oci."""
import argparse
import gzip
import hashlib
import io
import json
import pathlib
import tarfile

ARCHITECTURES = {
    "x86_64": ("amd64", None), "aarch64": ("arm64", "v8"), "armv7": ("arm", "v7"), "riscv64gc": ("riscv64", None), "mipsel": ("mipsle", None),
}
# Uid, command, state directory, configuration directory and ports of each program. A node configures the network of its container:
# root with CAP_NET_ADMIN alone (see container/compose.yaml). The control plane needs no capability.
PROGRAMS = {
    "spoke": {"user": 0, "command": ["run"], "state": "var/lib/spoke", "config": "etc/spoke", "ports": ["8080/tcp", "51820/udp"]},
    "spoke-control": {"user": 900, "command": ["serve"], "state": "var/lib/spoke-control", "config": "etc/spoke-control", "ports": ["8443/tcp"]},
}
PASSWD = "root:x:0:0:root:/:/sbin/nologin\nspoke:x:900:900:spoke:/:/sbin/nologin\n"


def layer(program, about):
    """The only layer: the program, its state directory, and an empty configuration file, to be overridden by variables."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        made = set()

        def add(path, mode, content=None, owner=0):
            for above in reversed(pathlib.PurePosixPath(path).parents[:-1]):
                if str(above) not in made:
                    add(str(above), 0o755)
            made.add(path)
            info = tarfile.TarInfo(path)
            info.mode, info.uid, info.gid, info.mtime = mode, owner, owner, 0
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))

        add("etc/passwd", 0o644, PASSWD.encode())
        add(f"{about['config']}/{program.name}.toml", 0o644, b"")
        add("run", 0o755)
        add(about["state"], 0o700, owner=about["user"])
        add(f"usr/bin/{program.name}", 0o755, program.read_bytes())
    return raw.getvalue()


def main():
    parser = argparse.ArgumentParser(prog="scripts/build-oci")
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--target", required=True)
    parser.add_argument("--version", required=True)
    options = parser.parse_args()
    name = options.program.name
    about = PROGRAMS[name]
    architecture, variant = ARCHITECTURES[options.target.split("-")[0]]
    blobs = options.output / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(content, kind):
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    plain = layer(options.program, about)
    packed = put(gzip.compress(plain, 9, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip")
    platform = {"architecture": architecture, "os": "linux", **({"variant": variant} if variant else {})}
    config = put(json.dumps({
        **platform,
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "User": f"{about['user']}:{about['user']}",
            "Entrypoint": [f"/usr/bin/{name}"],
            "Cmd": about["command"],
            "Env": ["PATH=/usr/bin"],
            "ExposedPorts": {port: {} for port in about["ports"]},
            "Volumes": {"/" + about["state"]: {}},
            "Labels": {"org.opencontainers.image.title": name, "org.opencontainers.image.version": options.version},
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(plain).hexdigest()]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "scripts/build-oci"}],
    }, sort_keys=True).encode(), "application/vnd.oci.image.config.v1+json")
    manifest = put(json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [packed]}, sort_keys=True).encode(),
                   "application/vnd.oci.image.manifest.v1+json")
    manifest["platform"] = platform
    # docker load reads the name from here.
    manifest["annotations"] = {"org.opencontainers.image.ref.name": options.version, "io.containerd.image.name": f"docker.io/library/{name}:{options.version}"}
    (options.output / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}\n')
    (options.output / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}, indent=1) + "\n")


main()
