"""Records the last result of each part of a full build with its commit: record.py FILE PIECE OUTCOME FIGURES [KEY=VALUE…]."""
import json
import pathlib
import sys
import time

path, piece, outcome, figures = pathlib.Path(sys.argv[1]), *sys.argv[2:5]
kept = json.loads(path.read_text()) if path.exists() else {}
entry = {"outcome": outcome, "date": time.strftime("%Y-%m-%d", time.gmtime())}
entry |= dict(given.split("=", 1) for given in sys.argv[5:])
for line in pathlib.Path(figures).read_text().splitlines():
    name, value = line.split("\t", 1)
    entry[name] = value
kept[piece] = entry
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(json.dumps(dict(sorted(kept.items())), indent=1, ensure_ascii=False) + "\n")
