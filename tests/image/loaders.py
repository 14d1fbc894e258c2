"""The real boot loaders on the disk layout of an image, with a small EFI program in place of each kernel: which slot starts after
which damage. A start takes seconds, so that whole tables can be run. Called by scripts/test-loaders."""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zlib

from assemble import board as boards
from assemble import disk, loader, slot
from assemble.packages import Packages, unpack
from machine import boot_files, partition, put_boot_file

TOP = pathlib.Path(__file__).resolve().parents[2]
SIZE, SECOND = 0x1000, 0x20000
NAMES = ["a", "b"]
# Seconds for one start under emulation.
START = 90


def block(variables):
    """A copy of U-Boot's environment."""
    data = b"".join(f"{k}={v}\0".encode() for k, v in variables.items()).ljust(SIZE - 4, b"\0")
    return zlib.crc32(data).to_bytes(4, "little") + data


def copies(image):
    """Both copies of the environment; None for one whose checksum is wrong."""
    start, _ = partition(image, "bootenv")
    found = []
    with open(image, "rb") as f:
        for at in (0, SECOND):
            f.seek(start + at)
            data = f.read(SIZE)
            right = zlib.crc32(data[4:]) == int.from_bytes(data[:4], "little")
            found.append(dict(v.decode().split("=", 1) for v in data[4:].split(b"\0") if b"=" in v) if right else None)
    return found


def write_bootenv(image, at, data):
    start, _ = partition(image, "bootenv")
    with open(image, "r+b") as f:
        f.seek(start + at)
        f.write(data)


class Bench:
    """Firmware, boot loader and payloads of one architecture, and disks made of them."""

    def __init__(self, board, work, payloads):
        self.board, self.work = boards.read(board), work
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "spoke/image"
        packages = Packages(cache, self.board.architecture)
        cpu = {"amd64": "x86_64", "arm64": "aarch64"}[self.board.architecture]
        self.payload = {name: (payloads / f"{cpu}-{name}.efi").read_bytes() for name in NAMES}
        wanted = ["u-boot-qemu"] if self.board.uses_u_boot else ["systemd-boot-efi", "systemd-ukify"]
        for name, found in packages.fetch(wanted).items():
            if name in wanted:
                unpack(found[1], work / "packages")
        self.cpu, self.count = cpu, 0
        if not self.board.uses_u_boot:
            self.payload = {name: self._unified(payloads / f"{cpu}-{name}.efi") for name in NAMES}
        self.boot_image = self._boot_image(payloads)

    def _unified(self, payload):
        """The payload with the sections by which systemd-boot knows a unified kernel."""
        into = self.work / payload.name
        slot.unified_kernel(self.board, self.work / "packages/usr/bin/ukify", payload, payload, None, "x", None, into)
        return into.read_bytes()

    def _boot_image(self, payloads):
        fat = self.work / "fat"
        (fat / "EFI/Linux").mkdir(parents=True)
        if self.board.uses_u_boot:
            loader.u_boot(fat, TOP / "image")
        else:
            loader.systemd_boot(self.board, fat, self.work / "packages/usr/lib/systemd/boot/efi", TOP / "image", payloads)
        disk.fat(fat, self.board.disk["boot_mib"], self.work / "boot.img")
        for name in ("root.img", "state.img"):
            (self.work / name).write_bytes(b"-")
        return self.work / "boot.img"

    def disk(self, kernels):
        """A disk whose boot partition has these kernels: {file name: content}."""
        self.count += 1
        image = self.work / f"disk-{self.count}.img"
        disk.assemble(self.board, self.boot_image, self.work / "root.img", self.work / "state.img", [], image)
        for name, content in kernels.items():
            put_boot_file(image, f"EFI/Linux/{name}", content)
        return image

    def command(self, image):
        if self.cpu == "aarch64":
            base = ["qemu-system-aarch64", "-machine", "virt,accel=tcg", "-cpu", "cortex-a53"]
            code, variables = "/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"
        else:
            base = ["qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max"]
            code, variables = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
        if self.board.uses_u_boot:
            firmware = ["-bios", str(self.work / "packages/usr/lib/u-boot/qemu_arm64/u-boot.bin")]
        else:
            own = image.with_suffix(".fd")
            if not own.exists():
                shutil.copyfile(variables, own)
            firmware = ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}", "-drive", f"if=pflash,format=raw,unit=1,file={own}"]
        return base + firmware + ["-m", "256", "-display", "none", "-monitor", "none", "-nodefaults", "-serial", "stdio", "-net", "none",
                                  "-drive", f"file={image},format=raw,if=none,id=disk,cache=unsafe", "-device", "virtio-blk-pci,drive=disk"]

    def starts(self, image, count, timeout=START):
        """Switches on and returns the slots whose payloads ran, until `count` of them did; each resets the machine. Then the power is cut."""
        ran, said = self.output(image, r"payload (\w)", count, timeout)
        return [found.group(1) for found in ran], said

    def output(self, image, pattern, count, timeout=START):
        """Switches on until `pattern` was printed `count` times; returns the matches and the lines."""
        process = subprocess.Popen(self.command(image), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        timer = threading.Timer(timeout * count, process.kill)
        timer.start()
        ran, said = [], []
        try:
            for line in process.stdout:
                text = re.sub(r"\x1b\[[0-9;?=]*[A-Za-z]", "", line.decode(errors="replace")).strip()
                said.append(text)
                if os.environ.get("SPOKE_TEST_CONSOLE"):
                    print("   |", text, flush=True)
                if found := re.search(pattern, text):
                    ran.append(found)
                    if len(ran) == count:
                        break
        finally:
            timer.cancel()
            process.kill()
            process.wait()
        assert len(ran) == count, f"{[r.group(0) for r in ran]} and then nothing within {timeout * count} s:\n" + "\n".join(said[-25:])
        return ran, said


COMMITTED_B = {"spoke_a": "ok", "spoke_b": "ok", "spoke_order": "b a"}
COUNTED_B = {**COMMITTED_B, "spoke_la": "2", "spoke_lb": "2", "spoke_seq": "1f"}


def both(image, variables):
    write_bootenv(image, 0, block(variables))
    write_bootenv(image, SECOND, block(variables))


def u_boot(bench):
    good, broken, missing = bench.payload, {"a": b"no kernel" * 1000, "b": b"no kernel" * 1000}, None
    kernels = {f"spoke-{s}.efi": good[s] for s in NAMES}

    def started(environment, count, **changed):
        present = {name: changed.get(name[6], content) for name, content in kernels.items()}
        image = bench.disk({name: content for name, content in present.items() if content is not None})
        environment(image)
        ran, said = bench.starts(image, count)
        return "".join(ran), copies(image), said

    # A kernel that cannot be loaded, of a committed slot: the other one in the same start, and at every later one.
    for what in (broken["b"], missing):
        for variables in (COMMITTED_B, COUNTED_B):
            ran, (one, two), said = started(lambda i, v=variables: both(i, v) if "spoke_seq" in v else write_bootenv(i, 0, block(v)), 2, b=what)
            assert ran == "aa", (ran, said[-20:])
            assert one == two and one["spoke_lb"] == "0" and one["spoke_b"] == "ok", (one, two)
    # A kernel that starts and resets (the payload): a committed slot has two starts, then the other.
    ran, (one, two), _ = started(lambda i: both(i, COUNTED_B), 4)
    assert ran == "bbaa", ran
    assert one == two and (one["spoke_la"], one["spoke_lb"]) == ("0", "0"), one
    # No slot has starts left: both are still tried.
    ran, _, _ = started(lambda i: both(i, {**COUNTED_B, "spoke_la": "0", "spoke_lb": "0"}), 1, b=missing)
    assert ran == "a", ran
    # A release that does not set the starts back is not counted.
    ran, (one, two), _ = started(lambda i: write_bootenv(i, 0, block(COMMITTED_B)), 4)
    assert ran == "bbbb" and (one, two) == (COMMITTED_B, None), (ran, one, two)
    # A trial uses up its starts, then the committed slot.
    trial = {**COUNTED_B, "spoke_a": "3", "spoke_order": "a b"}
    trial.pop("spoke_la")
    ran, (one, two), _ = started(lambda i: both(i, trial), 4)
    assert ran == "aaab" and one == two and one["spoke_a"] == "0" and one["spoke_seq"] == "23", (ran, one, two)
    print("ok - U-Boot: a damaged kernel leads to the other slot, starts are counted")

    # One copy damaged, either one, at any of these bytes: nothing is lost.
    for at in (0, 3, 4, 20, 100, SIZE - 1):
        for copy in (0, SECOND):
            def spoil(image, at=at, copy=copy):
                both(image, COUNTED_B)
                damaged = bytearray(block(COUNTED_B))
                damaged[at] ^= 1
                write_bootenv(image, copy, bytes(damaged))
            ran, (one, two), _ = started(spoil, 1)
            assert ran == "b" and one == two and one["spoke_lb"] == "1" and one["spoke_seq"] == "20", (at, copy, ran, one, two)
        if "--quick" in sys.argv:
            break
    # A cut between the two writes: the newer one counts.
    newer = {**COUNTED_B, "spoke_order": "a b", "spoke_seq": "100"}
    for first, second in ((newer, COUNTED_B), (COUNTED_B, newer)):
        ran, (one, _), _ = started(lambda i, f=first, s=second: (write_bootenv(i, 0, block(f)), write_bootenv(i, SECOND, block(s))), 1)
        assert ran == "a" and one["spoke_seq"] == "101", (ran, one)
    # An older release wrote the first copy, which it alone knows.
    ran, (one, two), _ = started(lambda i: (write_bootenv(i, 0, block({**COMMITTED_B, "spoke_order": "a b"})), write_bootenv(i, SECOND, block(COUNTED_B))), 1)
    assert ran == "a", (ran, one, two)
    # Both copies lost: slot a, then b.
    both_lost = lambda i: (write_bootenv(i, 0, b"\xff" * SIZE), write_bootenv(i, SECOND, b"\0" * SIZE))
    assert started(both_lost, 1)[0] == "a" and started(both_lost, 1, a=missing)[0] == "b"
    print("ok - U-Boot: two copies of the environment, a damaged one is repaired")


def systemd_boot(bench):
    good, broken = bench.payload, b"no kernel" * 1000
    counted = lambda a, b: {f"spoke-000001-a{a}.efi": good["a"], f"spoke-000002-b{b}.efi": good["b"]}

    def started(kernels, count):
        image = bench.disk(kernels)
        ran, said = bench.starts(image, count)
        return "".join(ran), sorted(boot_files(image, "::/EFI/Linux")), said

    # A committed slot has two starts, then the other.
    ran, names, _ = started(counted("+2-2", "+2-2"), 4)
    assert ran == "bbaa" and names == ["spoke-000001-a+0-4.efi", "spoke-000002-b+0-4.efi"], (ran, names)
    # A kernel that the firmware refuses.
    for bad in (broken, b"", good["b"][:-512], good["b"].replace(b"PE\0\0", b"PE\0\1")):
        ran, names, said = started({**counted("+2-2", "+2-2"), "spoke-000002-b+2-2.efi": bad}, 1)
        assert ran == "a", (ran, names, said[-20:])
    # Neither can be read: a restart a minute, no prompt.
    image = bench.disk({"spoke-000001-a+2-2.efi": broken})
    said = bench.output(image, r"restart in 10 seconds", 2)
    assert said, "the firmware waits for a person"
    # A trial has three.
    ran, names, _ = started(counted("", "+3"), 5)
    assert ran == "bbbaa" and names == ["spoke-000001-a.efi", "spoke-000002-b+0-3.efi"], (ran, names)
    print("ok - systemd-boot: a damaged kernel leads to the other slot, starts are counted")


def main():
    payloads = pathlib.Path(sys.argv[1])
    only = [a for a in sys.argv[2:] if not a.startswith("-")]
    for name, board, table in (("u-boot", "tests/image/boards/arm64-u-boot", u_boot), ("x86-64", "board/x86-64-uefi", systemd_boot),
                               ("arm64", "board/arm64-uefi", systemd_boot)):
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory(prefix="spoke-loaders.", dir=os.environ.get("TMPDIR", "/var/tmp")) as work:
            began = time.monotonic()
            table(Bench(TOP / board, pathlib.Path(work), payloads))
            print(f"ok - {name} ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
