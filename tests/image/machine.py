"""An emulated board: serial console, disk, power switch, network cable."""
import contextlib
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>()][0-9A-B]?|\x1b\][^\x07]*\x07")


KEY_LINE = r"public key of wg0: \S{44}"


class Failed(AssertionError):
    """An expectation failed; has the end of the console output."""


class Machine:
    """One emulated board, without KVM: timeouts are generous, and every wait ends early on success.

    Its clock starts in 2001 at every start, as on a board without an RTC.
    `journal` is a file that logs every write in order, so that a power cut can lose unflushed writes.
    `read_only` is a card that takes no writes; `faults` are errors of the disk as of qemu's blkdebug.
    `screen` adds a screen with a keyboard on USB; `extra` are further arguments.
    """

    def __init__(self, board, image, work, memory=256, image_dir=None, direct=False, journal=None, firmware=None, screen=False, extra=()):
        self.board, self.image, self.work = board, pathlib.Path(image), pathlib.Path(work)
        self.memory, self.direct, self.image_dir = memory, direct, image_dir
        self.journal, self.firmware = journal, firmware
        self.screen, self.extra, self.read_only, self.faults = screen, extra, False, None
        self.lines, self.partial = [], ""
        self.changed = threading.Condition()
        self.process = None
        self.log = open(self.work / "console.log", "a", buffering=1)

    def command(self, append=""):
        if self.board.startswith("x86"):
            base = ["qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max", "-device", "i6300esb", "-action", "watchdog=reset",
                    # The kernel's timer check panics on missed ticks, which a busy host causes.
                    "-smbios", "type=11,value=io.systemd.stub.kernel-cmdline-extra=no_timer_check"]
            firmware, variables = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
        else:
            base = ["qemu-system-aarch64", "-machine", "virt,accel=tcg", "-cpu", "cortex-a53"]
            firmware, variables = "/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"
        if self.direct:
            command = (self.image_dir / "cmdline").read_text().strip() + " no_timer_check " + append
            boot = ["-kernel", str(self.image_dir / "vmlinuz"), "-initrd", str(self.image_dir / "initrd"), "-append", command]
        elif self.firmware:
            boot = ["-bios", self.firmware]
        else:
            own = self.work / "uefi-variables.fd"
            if not own.exists():
                shutil.copyfile(variables, own)
            boot = ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={firmware}", "-drive", f"if=pflash,format=raw,unit=1,file={own},cache=unsafe"]
        return base + boot + [
            "-smp", os.environ.get("SPOKE_TEST_CPUS", "2"), "-m", str(self.memory), "-display", "none", "-monitor", "none", "-nodefaults", "-serial", "stdio",
            "-qmp", f"unix:{self.work}/qmp,server,nowait",
            *self.drive(), "-device", "virtio-blk-pci,drive=disk", "-rtc", "base=2001-01-01T00:00:00",
            "-device", "virtio-rng-pci", "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,id=nic",
            *(("-device", "VGA", "-device", "qemu-xhci", "-device", "usb-kbd") if self.screen else ()), *self.extra,
        ]

    def drive(self):
        if self.faults:
            options = {"driver": "blkdebug", "node-name": "disk", "image": {"driver": "file", "filename": str(self.image)}, "inject-error": self.faults}
            return ["-blockdev", json.dumps(options)]
        if self.read_only:
            return ["-drive", f"file={self.image},format=raw,if=none,id=disk,readonly=on"]
        if not self.journal:
            # The host itself does not lose power: its disk needs no flushes.
            return ["-drive", f"file={self.image},format=raw,if=none,id=disk,cache=unsafe"]
        pathlib.Path(self.journal).write_bytes(b"")
        return ["-blockdev", f"driver=file,node-name=image,filename={self.image},cache.no-flush=on",
                "-blockdev", f"driver=file,node-name=journal,filename={self.journal},cache.no-flush=on",
                "-blockdev", "driver=blklogwrites,node-name=disk,file=image,log=journal"]

    def start(self, append=""):
        (self.work / "qmp").unlink(missing_ok=True)
        self.started = time.monotonic()
        self.process = subprocess.Popen(self.command(append), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
        return self

    def _read(self, process):
        buffer = b""
        while chunk := process.stdout.read(65536):
            buffer += chunk
            *whole, buffer = buffer.split(b"\n")
            with self.changed:
                for line in whole:
                    self._line(line)
                self.partial = ESCAPES.sub("", buffer.decode(errors="replace"))
                self.changed.notify_all()
        with self.changed:
            self._line(buffer)
            self.changed.notify_all()

    def _line(self, raw):
        text = ESCAPES.sub("", raw.decode(errors="replace")).strip("\r")
        self.lines.append(text)
        self.log.write(f"{time.monotonic() - self.started:7.1f} {text}\n")

    def kept_waiting(self):
        """Seconds in which the busiest thread of the emulator was runnable and did not run."""
        waits = [0]
        for path in pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                waits.append(int(path.read_text().split()[1]))
        return max(waits) / 1e9

    def expect(self, pattern, timeout, since=0, never=None):
        """Waits for a line that matches; returns (index of the next line, match). Time in which the emulator was runnable and did not
        run is not counted."""
        wanted, forbidden = re.compile(pattern), never and re.compile(never)
        waited, at = self.kept_waiting(), since
        began = time.monotonic()
        with self.changed:
            while True:
                for i in range(at, len(self.lines)):
                    if found := wanted.search(self.lines[i]):
                        return i + 1, found
                    if forbidden and forbidden.search(self.lines[i]):
                        raise Failed(f"found {self.lines[i]!r} instead of {pattern!r}")
                at = len(self.lines)
                if found := wanted.search(self.partial):
                    return at, found
                if self.process.poll() is not None and at == len(self.lines):
                    raise Failed(f"the machine ended before {pattern!r}:\n" + "\n".join(self.lines[-20:]))
                left = timeout + self.kept_waiting() - waited - (time.monotonic() - began)
                if left <= 0:
                    raise Failed(f"{pattern!r} not found within {timeout} s:\n" + "\n".join(self.lines[-30:]))
                self.changed.wait(left)

    def follow(self, pattern, timeout):
        """Yields key lines as they are printed, and finally the line that matches."""
        at = 0
        while True:
            at, found = self.expect(rf"{pattern}|{KEY_LINE}", timeout, at)
            yield found.string
            if re.search(pattern, found.string):
                return

    def pause(self, seconds):
        """Lets the board run for this long, not counting time in which it was runnable and did not run."""
        began, waited = time.monotonic(), self.kept_waiting()
        while (left := seconds + self.kept_waiting() - waited - (time.monotonic() - began)) > 0:
            time.sleep(min(left, 0.5))

    def cpu(self):
        """CPU time of the emulator, in seconds."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def send(self, text):
        self.process.stdin.write(text.encode() + b"\n")

    def cable(self, plugged):
        """Plugs the network cable in or out."""
        self.control("set_link", name="nic", up=plugged)

    def type(self, text):
        """Types a line on the keyboard."""
        for letter in [*text, "ret"]:
            self.control("send-key", keys=[{"type": "qcode", "data": {" ": "spc"}.get(letter, letter)}])
            time.sleep(0.2)

    def screen_rows(self):
        """Rows of text on the screen that are not empty, at 16 pixels each."""
        path = self.work / "screen.ppm"
        self.control("screendump", filename=str(path))
        _, size, _, pixels = path.read_bytes().split(b"\n", 3)
        width, height = map(int, size.split())
        row = width * 3 * 16
        return sum(any(pixels[y * row:(y + 1) * row]) for y in range(height // 16))

    def control(self, command, **arguments):
        """Runs a command of the emulator."""
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(f"{self.work}/qmp")
            stream = s.makefile("rw")
            stream.readline()
            for question in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                stream.write(json.dumps(question) + "\n")
                stream.flush()
                while "return" not in (answer := json.loads(stream.readline())):
                    if "error" in answer:
                        raise Failed(answer["error"]["desc"])

    def cut_power(self):
        """Kills the emulator. Unflushed writes are in the image all the same: see `replay` in damage.py."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def seconds(self):
        return time.monotonic() - self.started


def emulated_cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def partition(image, name):
    """(start, size) of a named partition, in bytes."""
    table = json.loads(subprocess.run(["sfdisk", "-J", str(image)], check=True, capture_output=True, text=True).stdout)
    for part in table["partitiontable"]["partitions"]:
        if part.get("name") == name:
            return part["start"] * 512, part["size"] * 512
    raise Failed(f"{image} has no partition {name}")


def boot_files(image, directory="::"):
    """File names on the boot partition."""
    start, _ = partition(image, "boot")
    done = subprocess.run(["mdir", "-b", "-i", f"{image}@@{start}", directory], capture_output=True, text=True, check=False, env=dict(os.environ, MTOOLS_SKIP_CHECK="1"))
    return [line.removeprefix(directory).strip("/") for line in done.stdout.splitlines()]


def boot_room(image):
    """Free bytes on the boot partition."""
    start, _ = partition(image, "boot")
    done = subprocess.run(["mdir", "-i", f"{image}@@{start}"], capture_output=True, text=True, check=True, env=dict(os.environ, MTOOLS_SKIP_CHECK="1"))
    return int(re.search(r"([\d ]+) bytes free", done.stdout).group(1).replace(" ", ""))


def boot_file(image, name):
    """Content of a file on the boot partition; None if it is not there."""
    start, _ = partition(image, "boot")
    done = subprocess.run(["mcopy", "-i", f"{image}@@{start}", f"::{name}", "-"], capture_output=True, check=False, env=dict(os.environ, MTOOLS_SKIP_CHECK="1"))
    return done.stdout if done.returncode == 0 else None


def put_boot_file(image, name, content):
    start, _ = partition(image, "boot")
    subprocess.run(["mcopy", "-o", "-i", f"{image}@@{start}", "-", f"::{name}"], input=content, check=True, env=dict(os.environ, MTOOLS_SKIP_CHECK="1"))
