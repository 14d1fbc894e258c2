"""Prints the size of a binary with symbols by crate: size.py BINARY.

Code and data of a symbol count for the crate of its path (for a method of a trait, the crate of the type), so generic code of a
library that is compiled for our types counts for the library. C code and symbols without a path count as `C and assembly`; what
the machine outliner has taken out of functions of several crates as `shared sequences`."""
import collections
import re
import subprocess
import sys

binary = sys.argv[1]
OURS = "spoke_"
KINDS = {"t": "code", "r": "data", "d": "data", "b": "bss"}
sizes = collections.defaultdict(collections.Counter)
rows = subprocess.run(["nm", "--print-size", "--demangle", binary], check=True, capture_output=True, text=True).stdout
seen = set()
for row in rows.splitlines():
    fields = row.split(None, 3)
    if len(fields) < 4 or fields[0] in seen or (kind := KINDS.get(fields[2].lower())) in (None, "bss"):
        continue
    seen.add(fields[0])
    size, name = int(fields[1], 16), fields[3]
    path = re.match(r"[<&*\[( ]*(?:dyn |mut |const )*([A-Za-z_][A-Za-z0-9_]*)(?:\[[0-9a-f]+\])?::", name)
    crate = path.group(1) if path else "C and assembly"
    if name.startswith("OUTLINED_FUNCTION"):
        crate = "shared sequences"
    if crate in ("core", "alloc", "std", "compiler_builtins"):
        crate = "std"
    sizes[crate][kind] += size

total = collections.Counter()
for counter in sizes.values():
    total.update(counter)
print("| crate | code, KB | data, KB |\n|---|---|---|")
order = sorted(sizes, key=lambda c: -sum(sizes[c].values()))
small = collections.Counter()
for crate in order:
    row = sizes[crate]
    if sum(row.values()) < 10_000 and not crate.startswith(OURS):
        small.update(row)
        continue
    print(f"| {crate} | {row['code'] / 1000:.0f} | {row['data'] / 1000:.0f} |")
print(f"| crates below 10 KB | {small['code'] / 1000:.0f} | {small['data'] / 1000:.0f} |")
print(f"| all symbols | {total['code'] / 1000:.0f} | {total['data'] / 1000:.0f} |")
