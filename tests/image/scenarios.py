"""Runs the scenarios of an image; called by scripts/test-image in a network namespace of its own."""
import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import boots
import damage
import host
import storage
import table
import updates
import uboot
from machine import Failed, emulated_cpu_seconds
from world import World

QUICK = [boots.scenario_from_the_box]
LONG = [
    boots.scenario_from_the_box,
    updates.scenario_update_by_itself,
    updates.scenario_no_hub_update,
    updates.scenario_broken_supervisor,
    updates.scenario_panicking_update,
    updates.scenario_hanging_update,
    updates.scenario_outage_during_trial,
    updates.scenario_long_outage,
    damage.scenario_lost_state,
    damage.scenario_full_state,
    damage.scenario_full_boot_partition,
    damage.scenario_both_slots_bad,
    storage.scenario_missing_state,
    storage.scenario_read_only_card,
    storage.scenario_failing_writes,
    storage.scenario_unreadable_state,
    storage.scenario_ruined_boot_partition,
    storage.scenario_unusable_settings_file,
    storage.scenario_last_rung,
    host.scenario_one_host_of_many,
    host.scenario_third_host,
    host.scenario_early_watchdog,
    host.scenario_little_memory,
    host.scenario_screen,
    table.scenario_damage_table_uefi,
    table.scenario_damage_table_u_boot,
    uboot.scenario_u_boot_counts,
    boots.scenario_arm64_boots,
    boots.scenario_boot_time,
    boots.scenario_idle_hour,
    damage.scenario_power_cuts,
]


def run(scenario, images, title):
    """Runs one scenario in an environment of its own; returns (outcome, seconds, figures)."""
    with tempfile.TemporaryDirectory(prefix="spoke-machine.", dir=os.environ.get("TMPDIR", "/var/tmp")) as work:
        began = time.monotonic()
        world = World(images, pathlib.Path(work))
        world.passed = lambda what: print(f"ok - {what.strip()} ({time.monotonic() - began:.0f} s)", flush=True)
        try:
            world.hub.start()
            scenario(world)
            outcome = "ok"
        except (Failed, AssertionError, subprocess.SubprocessError) as e:
            outcome = "FAILED"
            print(e, file=sys.stderr)
            for log in sorted(pathlib.Path(work).glob("*/console.log")):
                keep = images / f"failed-{scenario.__name__}-{log.parent.name}.log"
                shutil.copyfile(log, keep)
                print(f"console: {keep}", file=sys.stderr)
        finally:
            world.close()
        took = time.monotonic() - began
    print(f"{'ok' if outcome == 'ok' else 'not ok'} - {title} ({took:.0f} s)", flush=True)
    return outcome, round(took), world.figures


def record(path, commit, title, outcome, seconds, figures):
    """Records the last result of each scenario with its commit, so that a long run can be made in parts."""
    kept = json.loads(path.read_text()) if path.exists() else {"scenarios": {}, "figures": {}}
    kept["scenarios"][title] = {"outcome": outcome, "seconds": seconds, "commit": commit, "date": time.strftime("%Y-%m-%d", time.gmtime())}
    for name, value in figures.items():
        kept["figures"][name] = {"value": value, "commit": commit}
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=pathlib.Path)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only", help="regular expression of scenario names")
    parser.add_argument("--record", type=pathlib.Path, help="file of the last results")
    parser.add_argument("--commit", help="the commit that was built")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    # On SIGTERM the finally clauses still stop the processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = LONG if options.long or options.only else QUICK
    chosen = [s for s in chosen if re.search(options.only or "", s.__name__)]
    if options.list:
        print("\n".join(s.__name__ for s in chosen))
        return
    if not chosen:
        sys.exit(f"no scenario matches {options.only!r}")
    failed, all_figures = 0, {}
    for scenario in chosen:
        title = scenario.__doc__.strip()
        outcome, seconds, figures = run(scenario, options.images, title)
        failed += outcome != "ok"
        all_figures |= figures
        if options.record:
            record(options.record, options.commit, title, outcome, seconds, figures)
    all_figures["emulator CPU, s"] = round(emulated_cpu_seconds())
    for name, value in all_figures.items():
        print(f"       {value}  {name}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
