"""Every board's data is right, and a wrong one is told in full."""
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
    said = refused(good.replace("[network]", "[netwrok]").replace('"armhf"', "7"))
    assert "netwrok" in said and "network: is missing" in said and "architecture" in said, said
    assert "partition table" in refused(good.replace("table_entries = 48", "")), "a loader inside the table is refused"
    assert "first partition" in refused(good.replace("offset = 8192", "offset = 9000000"))
    assert "u-boot" in refused(good.replace('loader = "u-boot"', 'loader = "systemd-boot"'))
    print(f"{len(all_boards)} boards: " + ", ".join(f"{b.name} ({b.verified})" for b in all_boards))


if __name__ == "__main__":
    sys.exit(main())
