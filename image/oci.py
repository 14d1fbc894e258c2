"""Makes an OCI image out of files: no daemon, no root, the same bytes each time. See scripts/build-oci."""
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
# What user 900 in the container may write. Without these nothing but the program is in the image.
PASSWD = "root:x:0:0:root:/:/sbin/nologin\nspoke:x:900:900:spoke:/var/lib/spoke:/sbin/nologin\n"


def layer(program, name):
    """The one layer: the program and the directories it writes to."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        def add(path, mode, content=None, owner=0):
            info = tarfile.TarInfo(path)
            info.mode, info.uid, info.gid, info.mtime = mode, owner, owner, 0
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))

        for path, owner in (("etc", 0), ("etc/spoke", 0), ("run", 0), ("run/spoke", 900), ("usr", 0), ("usr/bin", 0), ("var", 0), ("var/lib", 0), ("var/lib/spoke", 900)):
            add(path, 0o700 if owner else 0o755, owner=owner)
        add("etc/passwd", 0o644, PASSWD.encode())
        add(f"usr/bin/{name}", 0o755, program.read_bytes())
        if name != "spoke":
            add("usr/bin/spoke", 0o755, (program.parent / "spoke").read_bytes())
    return raw.getvalue()


def main():
    parser = argparse.ArgumentParser(prog="scripts/build-oci")
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--target", required=True)
    parser.add_argument("--version", required=True)
    options = parser.parse_args()
    name = options.program.name
    architecture, variant = ARCHITECTURES[options.target.split("-")[0]]
    blobs = options.output / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(content, kind):
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    plain = layer(options.program, name)
    packed = put(gzip.compress(plain, 9, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip")
    platform = {"architecture": architecture, "os": "linux", **({"variant": variant} if variant else {})}
    config = put(json.dumps({
        **platform,
        "created": "1970-01-01T00:00:00Z",
        "config": {
            # A node needs NET_ADMIN, which a container gives to root only; the control plane needs nothing.
            "User": "0:0" if name == "spoke" else "900:900",
            "Entrypoint": [f"/usr/bin/{name}"],
            "Cmd": ["run"] if name == "spoke" else [],
            "Env": ["PATH=/usr/bin"],
            "ExposedPorts": {"8080/tcp": {}, "51820/udp": {}} if name == "spoke" else {},
            "Volumes": {"/var/lib/spoke": {}},
            "Labels": {"org.opencontainers.image.title": name, "org.opencontainers.image.version": options.version},
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(plain).hexdigest()]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "scripts/build-oci"}],
    }, sort_keys=True).encode(), "application/vnd.oci.image.config.v1+json")
    manifest = put(json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [packed]}, sort_keys=True).encode(),
                   "application/vnd.oci.image.manifest.v1+json")
    manifest["platform"] = platform
    manifest["annotations"] = {"org.opencontainers.image.ref.name": options.version}
    (options.output / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}\n')
    (options.output / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}, indent=1) + "\n")


main()
