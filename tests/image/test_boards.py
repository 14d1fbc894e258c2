"""The data of every board is valid, and all faults of an invalid one are reported."""
import pathlib
import sys
import tempfile

from assemble import board as boards

TOP = pathlib.Path(__file__).resolve().parents[2]


def refused(text):
    with tempfile.TemporaryDirectory() as directory:
        (pathlib.Path(directory) / "board.toml").write_text(text)
        try:
            boards.read(pathlib.Path(directory))
        except boards.BoardError as e:
            return str(e)
    raise AssertionError(f"accepted:\n{text}")


def main():
    all_boards = boards.all_boards(TOP / "board")
    assert len(all_boards) >= 4, [b.name for b in all_boards]
    good = (TOP / "board/lamobo-r1/board.toml").read_text()
    faults = refused(good.replace("[network]", "[netwrok]").replace('"armhf"', "7"))
    assert "netwrok" in faults and "network: is missing" in faults and "architecture" in faults, faults
    assert "partition table" in refused(good.replace("table_entries = 48", "")), "a loader inside the table is refused"
    assert "first partition" in refused(good.replace("offset = 8192", "offset = 9000000"))
    assert "u-boot" in refused(good.replace('loader = "u-boot"', 'loader = "systemd-boot"'))
    for wrong, words in ((('console = ["ttyS0,115200"]', "console = [9600]"), "list of texts"), (('console = ["ttyS0,115200"]', "console = []"), "is empty"),
                         (("boot_mib = 80", 'boot_mib = "80"'), "a whole number"), (("blob = [{", "blob = [1, {"), "list of tables"),
                         (('verified = "assembled"', 'verified = "yes"'), "booted or assembled")):
        assert good.replace(*wrong) != good, wrong
        assert words in refused(good.replace(*wrong)), (wrong, refused(good.replace(*wrong)))
    # A loader in the board's own flash is declared by an empty list.
    own = boards.read(TOP / "tests/image/boards/arm64-u-boot")
    assert own.uses_u_boot and own.data["u-boot"]["blob"] == []
    assert "blob: is missing" in refused("\n".join(line for line in good.split("\n") if not line.startswith("blob =")))
    # A board is verified as booted only if a scenario boots it.
    scenarios = "".join(p.read_text() for p in (TOP / "tests/image").glob("*.py") if p.name != pathlib.Path(__file__).name)
    for board in all_boards:
        assert board.verified != "booted" or f'"{board.name}"' in scenarios, f"{board.name} is verified as booted, and no scenario in tests/image boots it"
    # Every key is documented.
    readme = (TOP / "board/README.md").read_text()
    for table, schema in boards.SCHEMA.items():
        for key in schema if not table else [table]:
            assert f"`{key}`" in readme or f"[{key}]" in readme, f"board/README.md does not document {key}"
    print(f"{len(all_boards)} boards: " + ", ".join(f"{b.name} ({b.verified})" for b in all_boards))


if __name__ == "__main__":
    sys.exit(main())
