"""Runs the load and the workers: the examples `peer_load` and `echo_backend`."""

import json
import os
import subprocess
import threading
from contextlib import contextmanager

from .machine import OTHER_CORES, ROOT, Started, free_ports
from .proxies import Worker

EXAMPLES = ROOT / "target/release/examples"


def body(size=1024, model="bench"):
    """A request as the load sends it, to find out whether a proxy answers."""
    start = f'{{"model":"{model}","messages":[{{"role":"user","content":"'
    end = '"}]}'
    return start + "a" * max(0, size - len(start) - len(end)) + end


def start_workers(directory, workers):
    """One process for all workers that are alike."""
    kinds = {}
    for worker in workers:
        kinds.setdefault((worker.slots, worker.slowness), []).append(worker)
    started = []
    for (slots, slowness), alike in kinds.items():
        addresses = [f"127.0.0.1:{w.port}" for w in alike]
        command = [EXAMPLES / "echo_backend", "--slots", slots, "--slowness", slowness, *addresses]
        started.append(Started(f"workers-{alike[0].port}", command, directory, OTHER_CORES))
    return started


def some_workers(count, **how):
    return [Worker(port, **how) for port in free_ports(count)]


def command_of(kind, port, **options):
    command = [EXAMPLES / "peer_load", kind, "--address", f"127.0.0.1:{port}"]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        command += [] if value is None or value is False else [flag] if value is True else [flag, value]
    return [str(part) for part in command]


def start(kind, port, **options):
    """A load in the background, with its output in pipes."""
    return subprocess.Popen(command_of(kind, port, **options), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, preexec_fn=lambda: os.sched_setaffinity(0, OTHER_CORES))


def finish(process):
    """What it tells at its end. An answer that is not good ends the whole run: it would be cheap for the
    wrong reason."""
    out, err = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(process.args)}: {err.strip()[-500:]}")
    return json.loads(out.splitlines()[-1])


def run(kind, port, **options):
    """One load from start to end."""
    return finish(start(kind, port, **options))


@contextmanager
def running(kind, port, limit, **options):
    """A load in the background, with what it tells, line by line; ended with the block, or after `limit`
    seconds."""
    process = start(kind, port, **options)
    end = threading.Timer(limit, process.terminate)
    end.start()

    def told():
        line = process.stdout.readline()
        if not line:
            why = process.stderr.read().strip()[-500:] or f"not done after {limit:.0f} s"
            raise RuntimeError(f"{' '.join(process.args)}: {why}")
        return json.loads(line)

    try:
        yield told
    finally:
        end.cancel()
        process.terminate()
        process.communicate()
