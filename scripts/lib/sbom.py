"""Removes from a CycloneDX bill what the build does not contain: sbom.py BILL PROGRAM < <(cargo tree …).

cargo-cyclonedx reads cargo's metadata, which lists optional packages of features that are off; cargo's tree of the same
build does not. Fails if the bill lacks a package of the tree."""
import json
import sys

path = sys.argv[1]
bill = json.load(open(path))
built = {tuple(line.split()[:2]) for line in sys.stdin if line.strip()}
root = bill["metadata"]["component"]
kept = [c for c in bill["components"] if (c["name"], "v" + c["version"]) in built]
listed = {(c["name"], "v" + c["version"]) for c in kept} | {(root["name"], "v" + root["version"])}
if missing := built - listed:
    sys.exit(f"{path} does not list {sorted(missing)}")
refs = {c["bom-ref"] for c in kept} | {root["bom-ref"]}
# The package is spoke-node, the program spoke.
root["name"] = sys.argv[2]
bill["components"] = kept
bill["dependencies"] = [{**d, **({"dependsOn": [r for r in d["dependsOn"] if r in refs]} if "dependsOn" in d else {})}
                        for d in bill["dependencies"] if d["ref"] in refs]
json.dump(bill, open(path, "w"), indent=1)
