"""`loadtest/peers/run.sh`: chooses rows and peers, runs them, tells what came out."""

import argparse
import datetime
import os
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
        prog="loadtest/peers/run.sh", formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="rows:\n" + "\n".join(f"  {row.key:5} {row.title}" for row in ROWS))
    parser.add_argument("rows", nargs="*", help="which; default: all but 3")
    parser.add_argument("--peers", default="", help="which, with commas between; default: all that are there")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0,
                        help="of each round (twice that for streams, 20 times for the open loops)")
    parser.add_argument("--streams", type=int, default=9900, help="of row 3; each takes two files of the proxy's")
    parser.add_argument("--record", action="store_true",
                        help="keep the figures in loadtest/peers/results and loadtest/README.md")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=PATH",
                        help="another build of Forebay, measured beside this one; may be given several times")
    options = parser.parse_args()
    unknown = [key for key in options.rows if key not in by_key]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}: there are {', '.join(by_key)}")
    chosen = [by_key[key] for key in options.rows] or [row for row in ROWS if row.key != "3"]
    names = [name for name in options.peers.split(",") if name]
    others = [FOREBAY.variant(name, os.path.abspath(path)) for name, _, path in (o.partition("=") for o in options.also)]
    names += [other.name for other in others if names]
    for row in chosen:
        row.proxies = row.proxies + others

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
    main()
