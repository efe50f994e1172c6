"""Rows 7 to 9: what a mixed fleet's clients wait.

Two workers with 20 slots and three with 8 slots that are 1.8 times slower. Requests arrive at random whether or
not those before are answered; their work is log-normal. Every proxy has a fleet and a load of its own, all with
the same arrivals. The wait is from the sending of a request to the moment when a worker's slot begins with it,
wherever it spent that time; the ideal is simulated on the very arrivals of each, and so is what a central queue
comes to that goes by the fewest outstanding. Proxies run a few at a time; who shares a round with whom changes
from one to the next.
"""

import csv
import math
import signal
import time

from . import load
from .figures import Figure
from .ideal import central_queue, fewest_outstanding
from .load import start_workers
from .machine import free_ports, undisturbed
from .proxies import (ENVOY, FOREBAY, HAPROXY, NGINX, SMG, VLLM_ROUTER, Setting, Worker)

FAST, SLOW, SLOWNESS = 20, 8, 1.8
# Milliseconds of work of a request on a fast slot, in the mean.
WORK_MS = 200

PROXIES = [FOREBAY, FOREBAY.variant("forebay-predicted", routing="PREDICTED_LATENCY"), HAPROXY,
           HAPROXY.variant("haproxy-by-hand", by_hand=True), NGINX, ENVOY,
           ENVOY.variant("envoy-full-scan", full_scan=True), VLLM_ROUTER, SMG]
# Without a queue: as many slots as anybody could want, so all excess waits at the workers.
BURST_PROXIES = [FOREBAY, FOREBAY.variant("forebay-no-queue", slots=100_000), HAPROXY,
                 HAPROXY.variant("haproxy-by-hand", by_hand=True), NGINX]


FIGURES = [
    Figure("wait", "p99 of the wait", "ms"), Figure("ideal_wait", "the ideal's", "ms"),
    Figure("beyond", "beyond 1.05 × the ideal's", "ms", spread=True),
    Figure("total", "p99 of the total", "ms", 0), Figure("to_ideal", "to the ideal's", "×", 3, spread=True),
    Figure("to_fewest", "to fewest outstanding's", "×", 3, spread=True),
    Figure("mean_to_ideal", "mean to the ideal's", "×", 3), Figure("errors", "errors", "", 0)]
DEATH_FIGURES = FIGURES + [
    Figure("away", "p99 of the wait while it is away", "ms"),
    Figure("back", "after it is back", "ms")]
# Proxies whose loads run at the same time: few, or they wait for each other's processor.
TOGETHER = 3


def fleet():
    ports = free_ports(5)
    return [Worker(p, FAST) for p in ports[:2]] + [Worker(p, SLOW, SLOWNESS) for p in ports[2:]]


def capacity(workers):
    """Requests a second."""
    return sum(w.slots / w.slowness for w in workers) / WORK_MS * 1000


def percentile(values, share):
    values = sorted(values)
    return values[min(int(len(values) * share), len(values) - 1)]


def judge(path, workers, seconds):
    """A proxy's figures, from what became of each request."""
    with open(path, encoding="utf-8") as file:
        requests = [{name: int(value) for name, value in row.items()} for row in csv.DictReader(file)]
    good = [r for r in requests if r["status"] == 200]
    waits = [max(0, r["began_us"] - r["sent_us"]) / 1e3 for r in good]
    totals = [(r["ended_us"] - r["sent_us"]) / 1e3 for r in good]
    arrivals = [(r["sent_us"] / 1e3, r["work_us"] / 1e3) for r in requests]
    ideal = central_queue(arrivals, workers)
    fewest = central_queue(arrivals, workers, fewest_outstanding)
    ideal_wait = percentile([wait for wait, _ in ideal], 0.99)
    ideal_total = percentile([total for _, total in ideal], 0.99)
    wait = percentile(waits, 0.99)

    def sent_within(begin, end):
        """Of what was sent between these seconds of the round, the p99 of the wait."""
        sent = [w for r, w in zip(good, waits) if begin * 1e6 <= r["sent_us"] < end * 1e6]
        return percentile(sent, 0.99) if sent else math.nan

    return {
        "wait": wait,
        "ideal_wait": ideal_wait,
        "beyond": wait - 1.05 * ideal_wait,
        "away": sent_within(seconds / 4, seconds / 2),
        "back": sent_within(seconds / 2, seconds),
        "total": percentile(totals, 0.99),
        "to_ideal": percentile(totals, 0.99) / ideal_total,
        "to_fewest": percentile(totals, 0.99) / percentile([total for _, total in fewest], 0.99),
        "mean_to_ideal": (sum(totals) / len(totals)) / (sum(total for _, total in ideal) / len(ideal)),
        "errors": len(requests) - len(good),
    }


def open_loop(share, death=False, **how):
    """All proxies at this share of the fleet's capacity, a seed each round. With `death` the first of the slow
    workers is killed after a quarter of each round and started again after half of it."""
    def alone(options, directory, proxies):
        results = {proxy.name: [] for proxy in proxies}
        for turn in range(options.rounds):
            at = turn % max(1, len(proxies))
            order = proxies[at:] + proxies[:at]
            for first in range(0, len(order), TOGETHER):
                for name, figures in one_round(options, directory, order[first:first + TOGETHER], turn):
                    results[name].append(figures)
            # Without a figure of each round it has none: its others would be of other arrivals than the rest's.
            for proxy in [p for p in proxies if len(results[p.name]) <= turn]:
                proxies = [p for p in proxies if p is not proxy]
                del results[proxy.name]
            print(f"  round {turn + 1}: " + "  ".join(
                f"{name} {rounds[-1]['wait']:.1f}" for name, rounds in results.items()), flush=True)
        return results

    def one_round(options, directory, proxies, turn):
        """The figures of each of these proxies that gives some."""
        fleets = {proxy.name: fleet() for proxy in proxies}
        started, victims, ports, running = [], {}, {}, []
        seconds = options.seconds * 20
        try:
            for proxy in proxies:
                workers = fleets[proxy.name]
                mortal = [workers[2]] if death else []
                started += start_workers(directory, [w for w in workers if w not in mortal])
                started += start_workers(directory, mortal)
                victims[proxy.name] = (started[-1], mortal)
                try:
                    one = proxy.start(Setting(workers, directory, checks=death))
                    started.append(one.process)
                    one.wait(load.body())
                    ports[proxy.name] = one.port
                except RuntimeError as error:
                    print(f"  {proxy.name} is left out of this row: {error}", flush=True)
            for name, port in ports.items():
                path = directory / f"{name}-{turn}.csv"
                process = load.start("open", port, rate=capacity(fleets[name]) * share, seconds=seconds,
                                     work_us=WORK_MS * 1000, seed=turn + 1, requests=path, **how)
                running.append((name, path, process))
            if death:
                time.sleep(seconds / 4)
                for process, _ in victims.values():
                    process.end(signal.SIGKILL)
                time.sleep(seconds / 4)
                for name, (_, mortal) in victims.items():
                    started += start_workers(directory, mortal)
            for name, path, process in running:
                load.finish(process)
                yield name, judge(path, fleets[name], seconds)
        finally:
            with undisturbed():
                for _, _, process in running:
                    process.kill()
                for process in reversed(started):
                    process.end()

    return alone
