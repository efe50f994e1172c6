"""The rows of the table, and how each is measured.

A row's `measure` is given a proxy that runs and gives one round's figures; rounds go over all proxies in
turns, in an order that rotates, so that what else the machine does falls on all alike. What is told is the
median over the rounds, with the lowest and the highest. The first figure of a row is the one that the ratio
to HAProxy is made of.
"""

import shutil
import subprocess
from dataclasses import dataclass, field

from . import failing, load, queueing
from .figures import Figure
from .load import some_workers, start_workers
from .machine import undisturbed
from .proxies import ALL, ENVOY, FOREBAY, HAPROXY, NGINX, PINGORA, RELAY, SMG, VLLM_ROUTER, Setting


CPU = Figure("cpu", "CPU", "µs/request")
RATE = Figure("rate", "throughput", "requests/s", 0)
P50 = Figure("p50", "median", "ms", 2)
P99 = Figure("p99", "p99", "ms", 2)
MEMORY = Figure("memory", "memory", "MiB")
PER_REQUEST = [CPU, RATE, P50, P99, MEMORY]


@dataclass
class Row:
    key: str
    title: str
    figures: list
    # (running, options, row) to figures by name.
    measure: object = None
    proxies: list = field(default_factory=lambda: ALL)
    listener: str = "http1"
    body_bytes: int = 1024
    # Memory is measured against what a proxy held before its first load, so it is started anew each round.
    fresh: bool = False
    # A row that runs all its proxies by itself: (options, directory, proxies) to each round's figures by proxy.
    alone: object = None

    def together(self, options, directory, names):
        """All rounds, one proxy after another: figures by proxy and round."""
        if self.alone:
            return self.alone(options, directory, there(self.proxies, names))
        # More than any row has at once: what waits for a slot is no stream yet.
        workers = some_workers(4, slots=4096)
        started = []
        try:
            secure = certificate(directory) if self.listener == "tls" else None
            started += start_workers(directory, workers)
            setting = Setting(workers, directory, self.listener, secure)
            chosen = there(self.proxies, names)
            running, results = {}, {p.name: [] for p in chosen}
            for turn in range(options.rounds):
                at = turn % max(1, len(chosen))
                for proxy in chosen[at:] + chosen[:at]:
                    try:
                        one = running.pop(proxy.name, None) or self.begin(proxy, setting, started)
                        results[proxy.name].append(self.measure(one, options, self))
                    except RuntimeError as error:
                        # One answer that is not good, and a proxy has no figures: they would be cheap for
                        # the wrong reason.
                        print(f"  {proxy.name} is left out of this row: {error}", flush=True)
                        del results[proxy.name]
                        chosen = [p for p in chosen if p is not proxy]
                        continue
                    if self.fresh:
                        one.process.end()
                    else:
                        running[proxy.name] = one
                print(f"  round {turn + 1}: " + "  ".join(
                    f"{name} {rounds[-1][self.figures[0].name]:.2f}" for name, rounds in results.items()), flush=True)
            return results
        finally:
            with undisturbed():
                for process in reversed(started):
                    process.end()

    def begin(self, proxy, setting, started):
        one = proxy.start(setting)
        started.append(one.process)
        one.wait(load.body(self.body_bytes))
        return one


def there(proxies, names):
    """Those that are wanted and are there."""
    return [p for p in proxies if (not names or p.name in names) and p.missing() is None]


def certificate(directory):
    """A folder with a fresh certificate for localhost."""
    folder = directory / "certificate"
    if shutil.which("openssl") is None:
        raise RuntimeError("there is no openssl to make a certificate with")
    if not folder.exists():
        folder.mkdir()
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "30", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
             "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "key.pem", "-out", "cert.pem"],
            cwd=folder, check=True, capture_output=True)
        both = (folder / "cert.pem").read_text() + (folder / "key.pem").read_text()
        (folder / "both.pem").write_text(both)
    return folder


def closed(**how):
    """A closed loop; what the proxy's process used, divided by the requests."""
    def measure(one, options, row):
        common = how | {"body_bytes": row.body_bytes, "trust": one.trust}
        load.run("closed", one.port, seconds=0.5, **common)  # Warms it up.
        before = one.process.cpu()
        told = load.run("closed", one.port, seconds=options.seconds, **common)
        used = one.process.cpu() - before
        return {
            "cpu": used / told["requests"] * 1e6,
            "rate": told["requests"] / told["seconds"],
            "p50": told["latency"]["p50_us"] / 1e3,
            "p99": told["latency"]["p99_us"] / 1e3,
            "memory": one.process.memory() / 2**20,
        }
    return measure


def streams(count=None, gap_ms=50):
    """Event streams, all open at once."""
    def measure(one, options, row):
        before_memory = one.process.memory()
        total = count or options.streams
        # The ramp keeps below what a listener's queue holds.
        ramp, seconds = max(1.0, total / 1000), options.seconds * 2
        with load.running("streams", one.port, 3 * ramp + seconds + 30, streams=total, gap_ms=gap_ms,
                          seconds=seconds, ramp=ramp) as told:
            assert told()["event"] == "begin"
            before = one.process.cpu()
            end = told()
            used = one.process.cpu() - before
            memory = one.process.memory() - before_memory
        return {
            "cpu": used / end["events"] * 1e6,
            "memory": memory / total / 1024,
            "p50": end["gap"]["p50_us"] / 1e3,
            "p99": end["gap"]["p99_us"] / 1e3,
            "delay_p50": end["delay"]["p50_us"] / 1e3,
            "delay_p99": end["delay"]["p99_us"] / 1e3,
        }
    return measure


STREAM_FIGURES = [Figure("cpu", "CPU", "µs/event"), Figure("p50", "median gap", "ms", 2),
                  Figure("p99", "p99 of gaps", "ms", 2, spread=True), Figure("delay_p50", "median delay", "ms", 2),
                  Figure("delay_p99", "p99 of delays", "ms", 2)]
# Of few streams it is what a process happens to have at hand.
MANY_FIGURES = [STREAM_FIGURES[0], Figure("memory", "memory", "KiB/stream", spread=True), *STREAM_FIGURES[1:]]
PER_MIB = [Figure("cpu", "CPU", "µs/MiB", 0), RATE, P50, P99, MEMORY]
LARGE = [RELAY, HAPROXY, HAPROXY.variant("haproxy-128k", bufsize=131072), NGINX,
         NGINX.variant("nginx-256k", body_buffer="256k"), FOREBAY, PINGORA, ENVOY, VLLM_ROUTER, SMG]
SECURE = [HAPROXY, NGINX, FOREBAY, ENVOY]

ROWS = [
    Row("1", "1 KiB JSON POST, 128 B answer, 32 connections", PER_REQUEST, closed(connections=32)),
    Row("1b", "1 KiB JSON POST, 128 B answer, 256 connections", PER_REQUEST, closed(connections=256)),
    Row("2", "500 event streams, 20 events a second each, 190 B an event", STREAM_FIGURES, streams(500), fresh=True),
    Row("3", "--streams event streams, an event a second each", MANY_FIGURES, streams(None, 1000),
        fresh=True),
    Row("4", "request bodies of 1 MiB, 8 connections, `model` first", PER_MIB, closed(connections=8), LARGE,
        body_bytes=1 << 20),
    Row("4b", "request bodies of 1 MiB, 8 connections, `model` behind the messages", PER_MIB,
        closed(connections=8, model_last=True), LARGE, body_bytes=1 << 20),
    Row("5", "a new client connection for each request, 32 at once", PER_REQUEST, closed(connections=32, fresh=True)),
    Row("6", "HTTP/2 without TLS, 4 connections of 8 streams", PER_REQUEST,
        closed(connections=4, streams=8, protocol="h2c"), SECURE, listener="h2c"),
    Row("6b", "HTTP/1.1 over TLS, 32 connections", PER_REQUEST,
        closed(connections=32, protocol="tls1"), SECURE, listener="tls"),
    Row("6c", "HTTP/2 over TLS, 4 connections of 8 streams", PER_REQUEST,
        closed(connections=4, streams=8, protocol="tls2"), SECURE, listener="tls"),
    *(Row("7" if share == 85 else f"7-{share}", f"mixed fleet, open loop at {share} % of its capacity",
          queueing.FIGURES, proxies=queueing.PROXIES, alone=queueing.open_loop(share / 100))
      for share in (85, 50, 70, 95)),
    Row("7-death", "mixed fleet at 85 %, a slow worker dies and comes back (the ideal's does not die)",
        queueing.DEATH_FIGURES, proxies=queueing.PROXIES, alone=queueing.open_loop(0.85, death=True)),
    Row("9", "mixed fleet at 85 %, arrivals doubled for a quarter of the time",
        queueing.FIGURES, proxies=queueing.BURST_PROXIES, alone=queueing.open_loop(0.85, burst=2.0)),
    Row("10", "one of 4 workers killed under load, started again after 5 s",
        failing.FIGURES, proxies=failing.PROXIES, alone=failing.killed),
]
