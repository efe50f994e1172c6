"""Processes of this machine: started, measured, ended; and ports, cores, versions."""

import os
import platform
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CACHE = ROOT / "target/peers"

# The proxy has a core to itself, the load and the workers have the others.
CORES = sorted(os.sched_getaffinity(0))
PROXY_CORES = {CORES[0]}
OTHER_CORES = set(CORES[1:]) or {CORES[0]}


TAKEN = set()
# Whatever proxy the environment names is none of those that are measured.
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def undisturbed():
    """A second Ctrl-C must not end the ending of what was started."""
    before = {one: signal.signal(one, signal.SIG_IGN) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def free_ports(count):
    """From below those that the kernel gives to connections, and none twice: who asks for one may not listen
    on it yet."""
    ports = []
    while len(ports) < count:
        port = random.randrange(15000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in TAKEN:
            TAKEN.add(port)
            ports.append(port)
    return ports


class Started:
    """A process with all that descend from it."""

    def __init__(self, name, command, directory, cores, environment=None):
        self.name, self.command = name, [str(part) for part in command]
        self.log = directory / f"{name}.log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | (environment or {}), start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, cores))

    def pids(self):
        children = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, rest = stat.parent.name, stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # It ended meanwhile.
            children.setdefault(int(rest[1]), []).append(int(pid))
        found, new = [], [self.process.pid]
        while new:
            pid = new.pop()
            found.append(pid)
            new += children.get(pid, [])
        return found

    def cpu(self):
        """User and system time so far, in seconds: the clock that the kernel keeps for each process."""
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.pids())

    def memory(self):
        """Resident bytes; what several processes share is counted once."""
        total = 0
        for pid in self.pids():
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total * 1024

    def end(self, how=signal.SIGTERM, limit=10):
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(limit)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def fail(self, why):
        tail = self.log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{self.name}: {why}\n{' '.join(self.command)}\n{tail}")


def wait_until(started, what, holds, limit=60):
    """Until `holds` does; what it cannot reach yet does not count."""
    deadline = time.monotonic() + limit
    while True:
        why = None
        try:
            if holds():
                return
        except OSError as error:  # Errors of HTTP are among them.
            why = error
        if started.process.poll() is not None:
            started.fail(f"ended before it was {what}")
        if time.monotonic() > deadline:
            started.fail(f"was not {what} within {limit} s: {why}")
        time.sleep(0.05)


def wait_until_it_listens(started, port):
    def listens():
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    wait_until(started, "listening", listens)


def wait_until_it_answers(started, port, body):
    """Until a whole series of requests gets good answers."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"

    def answers():
        for _ in range(20):
            request = urllib.request.Request(url, body.encode(), {"content-type": "application/json"})
            with DIRECTLY.open(request, timeout=5) as answer:
                answer.read()
        return True
    wait_until(started, "answering", answers)


def first_line(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else None


def commit():
    """What Forebay and the load are built of, if it was built."""
    git = ["git", "-C", str(ROOT)]
    changed = first_line(*git, "status", "--porcelain", "src", "examples", "Cargo.lock")
    return (first_line(*git, "rev-parse", "--short", "HEAD") or "not known") + (", changed" if changed else "")


def describe():
    """The machine in words."""
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    return f"{len(CORES)} cores of {cpu}, Linux {platform.release()}, Python {sys.version.split()[0]}"
