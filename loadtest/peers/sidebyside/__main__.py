"""`loadtest/peers/run.sh`: chooses rows and peers, runs them, tells what came out."""

import argparse
import datetime
import math
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

from . import machine, report
from .machine import CACHE, ROOT
from .proxies import ALL, FOREBAY
from .rows import ROWS, there


def main():
    by_key = {row.key: row for row in ROWS}
    parser = argparse.ArgumentParser(
        prog="loadtest/peers/run.sh", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="rows:\n" + "\n".join(f"  {row.key:7} {row.title}" for row in ROWS)
               + "\n  8       the totals of the rows 7, in their tables\n"
                 "  11      the choice itself: cargo bench --bench choice")
    parser.add_argument("rows", nargs="*", help="which; default: all")
    parser.add_argument("--peers", default="", help="which, with commas between; default: all that are there")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0,
                        help="of each round (twice that for streams, 20 times for the open loops)")
    parser.add_argument("--streams", type=int, help="of row 3; default: as many as this user's open files allow, two for "
                        "each stream, 9800 at most")
    parser.add_argument("--record", action="store_true",
                        help="keep the figures in loadtest/peers/results and loadtest/README.md")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=PATH",
                        help="another build of Forebay, measured beside this one; may be given several times")
    options = parser.parse_args()
    unknown = [key for key in options.rows if key not in by_key]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}: there are {', '.join(by_key)}; 8 is in the tables of the rows 7, 11 is "
                     "cargo bench --bench choice")
    if options.streams is None:
        options.streams = max(1, min(9800, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - 200))
    if options.rounds < 1 or not 0 < options.seconds < math.inf or options.streams < 1:
        parser.error("--rounds, --seconds and --streams must be more than 0, and finite")
    chosen = [by_key[key] for key in options.rows] or list(ROWS)
    names = [name for name in options.peers.split(",") if name]
    known = {proxy.name for row in ROWS for proxy in row.proxies}
    strange = [name for name in names if name not in known]
    if strange:
        parser.error(f"no peer {', '.join(strange)}: there are {', '.join(sorted(known))}")
    if names and not any(proxy.name in names for row in chosen for proxy in row.proxies):
        parser.error(f"none of these rows measures {', '.join(names)}")
    builds = [other.partition("=") for other in options.also]
    for name, _, path in builds:
        if not (name and os.access(path, os.X_OK) and os.path.isfile(path)):
            parser.error(f"--also needs NAME=PATH of a program, not {name}={path}")
    repeated = [name for at, (name, _, _) in enumerate(builds) if name in known or name in [b[0] for b in builds[:at]]]
    if repeated:
        parser.error(f"--also needs names of its own: there is {', '.join(repeated)} already")
    if os.environ.get("ARGUMENTS_ONLY"):
        return
    others = [FOREBAY.variant(name, os.path.abspath(path)) for name, _, path in builds]
    names += [other.name for other in others if names]
    for row in chosen:
        row.proxies = row.proxies + others
        row.title = row.title.replace("--streams", str(options.streams))

    print(machine.describe())
    for proxy in ALL + others:
        print(proxy.missing() or f"{proxy.name}: {proxy.version(proxy.program)}")
    folder = ROOT / "loadtest/peers/results" if options.record else CACHE / "results"
    failed = []
    for row in chosen:
        print(f"\nrow {row.key}: {row.title}", flush=True)
        about = {
            "machine": machine.describe(),
            "when": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "load_average": f"{os.getloadavg()[0]:.1f}",
            "commit": machine.commit(),
            "seconds": options.seconds,
            "versions": {p.name: p.version(p.program) for p in there(row.proxies, names)},
        }
        with tempfile.TemporaryDirectory() as directory:
            try:
                results = row.together(options, Path(directory), names)
            except RuntimeError as error:
                print(f"row {row.key} has no figures: {error}")
                results = {}
        if not results:
            failed.append(row.key)
            continue
        print(report.table(report.save(folder, row, results, about)), flush=True)
    if options.record:
        every = report.load_all(folder, [row.key for row in ROWS])
        report.readme(ROOT / "loadtest/README.md", every, "peers/results")
    if failed:
        sys.exit(f"rows without figures: {', '.join(failed)}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
