"""Row 10: one of four workers is killed (kill -9) under load and started again after 5 s."""

import signal
import time

from . import load
from .figures import Figure
from .load import some_workers, start_workers
from .machine import undisturbed
from .proxies import ENVOY, FOREBAY, HAPROXY, NGINX, SMG, VLLM_ROUTER, Setting

PROXIES = [FOREBAY, HAPROXY, NGINX, ENVOY, VLLM_ROUTER, SMG]
CONNECTIONS, WORK_MS = 152, 200
# Seconds since the load's start.
KILLED, RESTARTED, OVER = 4, 9, 18

FIGURES = [
    Figure("errors", "errors", "", 0), Figure("later", "of them later than 1 s after the kill", "", 0),
    Figure("back", "share back after", "s"), Figure("p99", "p99", "ms", 0), Figure("max", "longest", "ms", 0)]


def killed(options, directory, proxies):
    results = {proxy.name: [] for proxy in proxies}
    for turn in range(options.rounds):
        at = turn % max(1, len(proxies))
        for proxy in proxies[at:] + proxies[:at]:
            try:
                results[proxy.name].append(one_death(proxy, directory))
            except RuntimeError as error:
                print(f"  {proxy.name} is left out of this row: {error}", flush=True)
                del results[proxy.name]
                proxies = [p for p in proxies if p is not proxy]
        print(f"  round {turn + 1}: " + "  ".join(
            f"{name} {rounds[-1]['errors']}" for name, rounds in results.items()), flush=True)
    return results


def one_death(proxy, directory):
    workers, started, process = some_workers(4), [], None
    try:
        for worker in workers:
            started += start_workers(directory, [worker])
        one = proxy.start(Setting(workers, directory, checks=True))
        started.append(one.process)
        one.wait(load.body())
        begin = time.monotonic()
        process = load.start("closed", one.port, connections=CONNECTIONS, seconds=OVER, work_us=WORK_MS * 1000,
                             tolerant=True)
        sleep_until(begin + KILLED)
        started[0].end(signal.SIGKILL)
        sleep_until(begin + RESTARTED)
        started += start_workers(directory, workers[:1])
        return judge(load.finish(process), str(workers[0].port))
    finally:
        with undisturbed():
            if process:
                process.kill()
            for one in reversed(started):
                one.end()


def sleep_until(when):
    time.sleep(max(0, when - time.monotonic()))


def judge(told, victim):
    """How many requests failed, and how long the restarted worker took to have its share of the answers: until the
    end of the first half second in which it gave at least four fifths of a quarter."""
    tenths = {int(tenth): answers for tenth, answers in told["workers"].items()}
    back = None
    for tenth in range(RESTARTED * 10, OVER * 10 - 5):
        window = [tenths.get(t, {}) for t in range(tenth, tenth + 5)]
        total = sum(sum(answers.values()) for answers in window)
        own = sum(answers.get(victim, 0) for answers in window)
        if total and own / total >= 0.8 / 4:
            back = (tenth + 5) / 10 - RESTARTED
            break
    return {
        "errors": len(told["errors"]),
        "later": sum(1 for at_ms, _ in told["errors"] if at_ms > (KILLED + 1) * 1000),
        "back": back if back is not None else float("nan"),
        "p99": told["latency"]["p99_us"] / 1e3,
        "max": told["latency"]["max_us"] / 1e3,
    }
