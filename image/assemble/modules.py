"""Selects kernel modules by name with their dependencies, and decompresses them at build time."""
import lzma
import pathlib
import shutil
import subprocess


class Modules:
    """The modules of one unpacked kernel package."""

    def __init__(self, kernel_dir, release):
        self.base = kernel_dir / "usr/lib/modules" / release
        if not (self.base / "modules.dep").exists():
            subprocess.run(["depmod", "-b", str(kernel_dir / "usr"), release], check=True, capture_output=True)
        self.depends, self.by_name = {}, {}
        for line in (self.base / "modules.dep").read_text().splitlines():
            path, depends = line.split(":")
            self.depends[path] = depends.split()
            self.by_name[_name(path)] = path
        self.builtin = {_name(line) for line in (self.base / "modules.builtin").read_text().splitlines()}
        self.before = {}
        for line in (self.base / "modules.softdep").read_text().splitlines():
            words = line.split()
            if words[:1] == ["softdep"] and "pre:" in words:
                after = words[words.index("pre:") + 1:]
                self.before[_flat(words[1])] = [_flat(w) for w in after[:after.index("post:") if "post:" in after else None]]

    def closure(self, names):
        """Paths in loading order. A name that is neither a module nor built in is a fault of a board or the manifest."""
        order, unknown = [], []

        def add(path):
            if path in order:
                return
            for soft in self.before.get(_name(path), []):
                if soft in self.by_name:
                    add(self.by_name[soft])
            for needed in reversed(self.depends[path]):
                add(needed)
            if path not in order:
                order.append(path)

        for name in map(_flat, names):
            if name in self.by_name:
                add(self.by_name[name])
            elif name not in self.builtin:
                unknown.append(name)
        if unknown:
            raise SystemExit(f"this kernel has no module {', '.join(unknown)}")
        return order

    def copy(self, path, target):
        source = self.base / path
        if source.suffix == ".xz":
            target.write_bytes(lzma.decompress(source.read_bytes()))
        else:
            shutil.copyfile(source, target)


def _flat(name):
    return name.replace("-", "_")


def _name(path):
    return _flat(pathlib.PurePosixPath(path).name.split(".ko")[0])


def _plain(path):
    return path.removesuffix(".xz")


def install(kernel_dir, release, names, root_dir):
    """Copies the modules into a root and runs depmod."""
    modules = Modules(kernel_dir, release)
    target = root_dir / "usr/lib/modules" / release
    for path in modules.closure(names):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        modules.copy(path, target / _plain(path))
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copyfile(modules.base / name, target / name)
    subprocess.run(["depmod", "-b", str(root_dir / "usr"), release], check=True, capture_output=True)


def initrd(kernel_dir, release, names, directory):
    """Copies the modules into an initramfs directory, with a list in loading order."""
    modules = Modules(kernel_dir, release)
    (directory / "modules").mkdir()
    listed = []
    for path in modules.closure(names):
        name = pathlib.PurePosixPath(_plain(path)).name
        modules.copy(path, directory / "modules" / name)
        listed.append(name)
    (directory / "modules.list").write_text("".join(f"{n}\n" for n in listed))
