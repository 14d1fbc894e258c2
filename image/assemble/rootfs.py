"""Builds the root directory: the files named in image/rootfs.toml, their libraries, our own files, the kernel modules."""
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import tomllib

from . import modules
from .packages import unpack


def _needed(path):
    """(names of the libraries, path of the loader or None) of an ELF file."""
    header = subprocess.run(["readelf", "--wide", "-l", "-d", str(path)], capture_output=True, text=True, check=False).stdout
    loader = re.search(r"\[Requesting program interpreter: /(.+)\]", header)
    return re.findall(r"\(NEEDED\).*\[(.+)\]", header), loader and loader.group(1)


def _is_elf(path):
    with open(path, "rb") as f:
        return f.read(4) == b"\x7fELF"


class Root:
    """The directory that becomes the root file system."""

    def __init__(self, directory, pool, files):
        self.directory, self.pool, self.files = directory, pool, files
        self.owners = {}
        self.used = set()
        # Package: packages whose programs are linked to it.
        self.linked = {}

    def skeleton(self):
        for link in ("bin", "sbin", "lib", "lib64"):
            if link == "lib64" and not (self.pool / "usr/lib64").exists():
                continue
            (self.directory / "usr" / link).mkdir(parents=True, exist_ok=True)
            (self.directory / link).symlink_to(f"usr/{link}")
        for name in ("boot", "dev", "etc", "home", "proc", "root", "run", "state", "sys", "tmp", "var"):
            (self.directory / name).mkdir(exist_ok=True)

    def take(self, relative):
        """Copies one path of the pool, its parent directories and, for a link, its target."""
        source, target = self.pool / relative, self.directory / relative
        if target.exists() or target.is_symlink():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        self.used.add(self.owners.get(relative, ""))
        if source.is_symlink():
            to = os.readlink(source)
            target.symlink_to(to)
            # Through the root's usrmerge links: /lib/x is usr/lib/x.
            pointed = pathlib.PurePosixPath(to) if to.startswith("/") else pathlib.PurePosixPath("/", relative).parent / to
            pointed = os.path.normpath(str(pointed)).lstrip("/")
            if (self.pool / pointed).exists() and not (self.pool / pointed).is_dir():
                self.take(pointed)
        else:
            shutil.copy2(source, target)

    def keep(self, package, patterns):
        for pattern in patterns:
            found = sorted(str(p.relative_to(self.pool)) for p in self.pool.glob(pattern))
            found = [f for f in found if not (self.pool / f).is_dir() or (self.pool / f).is_symlink()]
            if not found:
                raise SystemExit(f"image/rootfs.toml: {package}: {pattern} matches nothing in its packages")
            for relative in found:
                self.take(relative)

    def libraries(self):
        """Copies the libraries of all ELF files in the root, transitively."""
        places = {}
        for directory in sorted((self.pool / "usr/lib").glob("*-linux-gnu*")):
            for path in sorted([*directory.glob("*.so*"), *directory.glob("systemd/*.so*")]):
                places.setdefault(path.name, str(path.relative_to(self.pool)))
        pending = [p for p in self.directory.rglob("*") if p.is_file() and not p.is_symlink()]
        while pending:
            path = pending.pop()
            if not _is_elf(path):
                continue
            names, loader = _needed(path)
            needer = self.owners.get(str(path.relative_to(self.directory)), "")
            if loader:
                self.take(re.sub(r"^(lib|lib64)/", r"usr/\1/", loader))
            for name in names:
                if name.startswith("ld-linux") and name not in places:
                    continue
                if name not in places:
                    raise SystemExit(f"{path.relative_to(self.directory)} needs {name}, which no package brings")
                self.linked.setdefault(self.owners.get(places[name], ""), set()).add(needer)
                if not (self.directory / places[name]).exists():
                    self.take(places[name])
                    pending.append((self.directory / places[name]).resolve())

    def overlay(self):
        for source in sorted(self.files.rglob("*")):
            target = self.directory / source.relative_to(self.files)
            if source.is_symlink():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(os.readlink(source))
            elif source.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
                os.chmod(target, 0o755 if os.access(source, os.X_OK) else 0o644)

    def links(self, table):
        for target, names in table.items():
            for name in names:
                path = self.directory / "usr/bin" / name
                if not path.exists() and not path.is_symlink():
                    path.symlink_to(target)

    def prune_wants(self):
        """Fails if a unit that the overlay enables is not in the image."""
        for link in self.directory.glob("etc/systemd/system/*.wants/*"):
            if not os.path.lexists(self.directory / os.readlink(link).lstrip("/")):
                raise SystemExit(f"{link.relative_to(self.directory)} points to a unit that is not in the image")


def unpacked(cache, fetched):
    """Unpacks a set of packages into one directory, the kernel's beside it. Cached per set of versions, because unpacking dominates
    the build time. Returns (pool, kernel directory, {path: package})."""
    names = "\n".join(sorted(deb.name for _, deb in fetched.values()))
    place = cache / "unpacked" / hashlib.sha256(names.encode()).hexdigest()[:16]
    if not (place / "owners.json").exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = pathlib.Path(tempfile.mkdtemp(dir=place.parent))
        pool = fresh / "pool"
        for link in ("bin", "sbin", "lib", "lib64"):
            (pool / "usr" / link).mkdir(parents=True)
            (pool / link).symlink_to(f"usr/{link}")
        owners = {}
        for package, (_, deb) in sorted(fetched.items()):
            if package.startswith("linux-image-"):
                unpack(deb, fresh / "kernel")
                continue
            for path in unpack(deb, pool):
                owners.setdefault(path, package)
        if not any((pool / "usr/lib64").iterdir()):
            (pool / "usr/lib64").rmdir()
            (pool / "lib64").unlink()
        (fresh / "owners.json").write_text(json.dumps(owners))
        try:
            fresh.rename(place)
        except OSError:
            # A concurrent build finished first.
            shutil.rmtree(fresh)
    return place / "pool", place / "kernel", json.loads((place / "owners.json").read_text())


def build(board, manifest_file, files, packages, cache, root_dir, version, sequence, spoke, update_root):
    """Builds the root directory; returns (kernel directory, kernel release, manifest, contents with reasons)."""
    manifest = tomllib.loads(manifest_file.read_text())
    names = [p["name"] for p in manifest["package"]]
    fetched = packages.fetch([*names, board.kernel_package])
    pool_dir, kernel_dir, owners = unpacked(cache, fetched)
    root = Root(root_dir, pool_dir, files)
    root.owners = owners
    root.skeleton()
    root.overlay()
    for package in manifest["package"]:
        root.keep(package["name"], package["keep"])
        root.used.add(package["name"])
    root.links(manifest["links"])
    root.libraries()
    root.used.discard("")
    for package in sorted(root.used):
        notice = pool_dir / "usr/share/doc" / package / "copyright"
        if notice.is_file():
            root.take(str(notice.relative_to(pool_dir)))
    shutil.copy2(spoke, root_dir / "usr/bin/spoke")
    for unit in ("spoke.service", "spoke-clock.service"):
        shutil.copy2(manifest_file.parent.parent / "systemd" / unit, root_dir / "usr/lib/systemd/system" / unit)
    (root_dir / "usr/lib/spoke").mkdir(parents=True, exist_ok=True)
    shutil.copy2(update_root, root_dir / "usr/lib/spoke/update-root.pub")
    (root_dir / "usr/lib/os-release").write_text(
        f'ID=spoke\nID_LIKE=debian\nNAME="Spoke"\nPRETTY_NAME="Spoke {version}"\nVERSION_ID={version}\n'
        f"IMAGE_ID=spoke-{board.name}\nIMAGE_VERSION={version}\nVARIANT_ID={board.name}\n" + (f"IMAGE_SEQUENCE={sequence}\n" if sequence else ""))
    wan = " ".join(board.network["wan"])
    (root_dir / "usr/lib/systemd/network/20-wan.network").write_text(
        "# The wan links of board.toml use DHCP. The route's metric leaves room for a preferred one.\n"
        f"[Match]\nName={wan}\n\n[Network]\nDHCP=yes\nIPv6AcceptRA=yes\nLLDP=no\n\n"
        "[DHCPv4]\nClientIdentifier=mac\nRouteMetric=100\nUseHostname=no\n\n[DHCPv6]\nUseHostname=no\n")
    release = next((kernel_dir / "usr/lib/modules").iterdir()).name
    asked = {m: f"{group} (every board)" for group, names in manifest["modules"].items() for m in names}
    asked.update({m: f"{'start from' if use == 'initrd' else 'hardware of'} {board.name}" for use in ("root", "initrd") for m in board.modules[use]})
    modules.install(kernel_dir, release, asked, root_dir)
    root.prune_wants()
    return kernel_dir, release, manifest, _contents(root, manifest, fetched, asked)


def _contents(root, manifest, fetched, asked):
    """Contents of the root with reasons: packages, and the requested kernel modules without their dependencies."""
    why = {p["name"]: p["why"] for p in manifest["package"]}
    size = {}
    for path, package in root.owners.items():
        taken = root.directory / path
        if taken.is_file() and not taken.is_symlink():
            size[package] = size.get(package, 0) + taken.stat().st_size
    packages = []
    for package, (version, _) in sorted(fetched.items()):
        if package.startswith("linux-image-"):
            packages.append({"name": package, "version": version, "why": "the kernel, with the modules listed below"})
        elif package in root.used:
            needers = ", ".join(sorted(n for n in root.linked.get(package, ()) if n not in ("", package)))
            packages.append({"name": package, "version": version, "bytes": size.get(package, 0), "why": why.get(package) or f"a library of {needers}"})
    return {"packages": packages, "modules": [{"name": m, "why": w} for m, w in sorted(asked.items())]}
