"""Reads and checks board/NAME/board.toml; reports all faults at once."""
import pathlib
import re
import tomllib
from dataclasses import dataclass

ARCHITECTURES = {
    # Debian's name: (kernel package, Rust target, systemd's EFI suffix, firmware's default loader)
    "amd64": ("linux-image-amd64", "x86_64-unknown-linux-musl", "x64", "BOOTX64.EFI"),
    "arm64": ("linux-image-arm64", "aarch64-unknown-linux-musl", "aa64", "BOOTAA64.EFI"),
    "armhf": ("linux-image-armmp", "armv7-unknown-linux-musleabihf", "arm", "BOOTARM.EFI"),
}

# key: (type, required, meaning) for the top level and each table.
SCHEMA = {
    "": {
        "title": (str, True, "name shown to users"),
        "architecture": (str, True, "one of " + ", ".join(ARCHITECTURES)),
        "loader": (str, True, "systemd-boot or u-boot"),
        "console": (list, True, "kernel consoles, the last one gets the login, e.g. [\"ttyS0,115200\"]"),
        "verified": (str, True, "booted (by tests/image, under emulation) or assembled (layout checked only)"),
        "notes": (str, False, "hints for whoever flashes it"),
        "disk": (dict, True, "sizes"),
        "network": (dict, True, "roles of its links"),
        "modules": (dict, True, "kernel modules"),
        "u-boot": (dict, False, "its boot loader; required with loader = \"u-boot\""),
    },
    "disk": {
        "first_mib": (int, True, "start of the first partition; the space before belongs to the boot loader"),
        "boot_mib": (int, True, "FAT partition: two kernels and the provisioning file"),
        "slot_mib": (int, True, "each root"),
        "state_mib": (int, True, "the writable partition"),
        "table_entries": (int, False, "size of the partition table, where the boot loader follows directly"),
    },
    "network": {
        "wan": (list, True, "link names (globs) that use DHCP"),
    },
    "modules": {
        "initrd": (list, True, "to reach the disk, and the watchdog"),
        "root": (list, True, "network, clock, LEDs"),
    },
    "u-boot": {
        "package": (str, True, "Debian package it comes from"),
        "device_tree": (str, False, "path below the kernel package's device trees; omitted where the loader has the right one"),
        "blob": (list, True, "files written at offsets: {file, offset}; [] where the loader is in the board's own flash"),
    },
}
BLOB = {"file": (str, True, "path in the package"), "offset": (int, True, "bytes from the start of the disk")}


class BoardError(Exception):
    """All faults of a board, one per line."""


@dataclass(frozen=True)
class Board:
    """A supported board."""

    name: str
    data: dict

    def __getattr__(self, key):
        return self.data[key]

    @property
    def kernel_package(self):
        return ARCHITECTURES[self.architecture][0]

    @property
    def rust_target(self):
        return ARCHITECTURES[self.architecture][1]

    @property
    def efi(self):
        return ARCHITECTURES[self.architecture][2]

    @property
    def default_loader(self):
        return ARCHITECTURES[self.architecture][3]

    @property
    def has_screen(self):
        return any(re.match(r"tty\d", c) for c in self.console)

    @property
    def uses_u_boot(self):
        return self.loader == "u-boot"


KINDS = {str: "text", int: "a whole number", list: "a list", dict: "a table"}


def required_content(key):
    """Whether an empty value is a fault."""
    return key not in ("notes", "root", "initrd", "blob")


def _check(table, schema, where, faults):
    for key, value in table.items():
        if key not in schema:
            faults.append(f"{where}{key}: unknown key; known here: {', '.join(schema)}")
        elif not isinstance(value, schema[key][0]) or isinstance(value, bool):
            faults.append(f"{where}{key}: must be {KINDS[schema[key][0]]}: {schema[key][2]}")
        elif isinstance(value, list) and not all(isinstance(v, dict if key == "blob" else str) for v in value):
            faults.append(f"{where}{key}: must be a list of {'tables' if key == 'blob' else 'texts'}: {schema[key][2]}")
        elif value in ("", []) and required_content(key):
            faults.append(f"{where}{key}: is empty: {schema[key][2]}")
    for key, (_, required, meaning) in schema.items():
        if required and key not in table:
            faults.append(f"{where}{key}: is missing: {meaning}")


def read(directory: pathlib.Path) -> Board:
    """The board in `directory`; raises BoardError with all faults."""
    path = directory / "board.toml"
    faults = []
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as e:
        raise BoardError(f"{path}: {e}") from None
    _check(data, SCHEMA[""], "", faults)
    for name, schema in SCHEMA.items():
        if name and isinstance(data.get(name), dict):
            _check(data[name], schema, name + ".", faults)
    loader = data.get("u-boot")
    blobs = loader.get("blob") if isinstance(loader, dict) else None
    for i, blob in enumerate(b for b in (blobs if isinstance(blobs, list) else []) if isinstance(b, dict)):
        _check(blob, BLOB, f"u-boot.blob[{i}].", faults)
    if not faults:
        _cross_check(data, faults)
    if faults:
        raise BoardError("\n".join(f"{path}: {f}" for f in faults))
    return Board(directory.name, data)


def _cross_check(data, faults):
    if data["architecture"] not in ARCHITECTURES:
        faults.append(f"architecture: {data['architecture']} is not one of {', '.join(ARCHITECTURES)}")
    if data["loader"] not in ("systemd-boot", "u-boot"):
        faults.append("loader: must be systemd-boot or u-boot")
    if (data["loader"] == "u-boot") != ("u-boot" in data):
        faults.append("u-boot: the table goes with loader = \"u-boot\"")
    if data["verified"] not in ("booted", "assembled"):
        faults.append("verified: must be booted or assembled")
    for key, value in data["disk"].items():
        if value < 1:
            faults.append(f"disk.{key}: must be at least 1")
    # GPT: one block of protective MBR, one of header, 128 bytes per entry.
    table_end = 1024 + 128 * data["disk"].get("table_entries", 128)
    for i, blob in enumerate(data.get("u-boot", {}).get("blob", [])):
        if blob["offset"] < table_end:
            faults.append(f"u-boot.blob[{i}].offset: {blob['offset']} lies in the partition table (ends at {table_end}); set disk.table_entries")
        if blob["offset"] >= data["disk"]["first_mib"] << 20:
            faults.append(f"u-boot.blob[{i}].offset: lies in the first partition; raise disk.first_mib")


def all_boards(directory: pathlib.Path):
    """All boards below `directory`; raises BoardError with the faults of all of them."""
    boards, faults = [], []
    for path in sorted(p for p in directory.iterdir() if p.is_dir()):
        try:
            boards.append(read(path))
        except BoardError as e:
            faults.append(str(e))
    if faults:
        raise BoardError("\n".join(faults))
    return boards
