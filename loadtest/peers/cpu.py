#!/usr/bin/env python3
"""CPU per request, side by side: Forebay, nginx and HAProxy, one thread each, in front of the same
backends, driven in turns by wrk.

    loadtest/peers/cpu.py [--forebay target/release/forebay] [--rounds 7] [--seconds 3]

In every round each proxy gets one run of wrk, in an order that turns from round to round, so that what
else the machine does falls on all alike. What is measured is the user and system time of the proxy's
processes (/proc/PID/stat) over the run, divided by the requests that wrk counted; the table shows medians
over the rounds. A run with an error or an answer other than 2xx ends the benchmark: it would be cheap for
the wrong reason. A peer that is not installed is left out, with a line that says so.

Debian: apt-get install haproxy nginx-light wrk. All of it is on 127.0.0.1, on free ports; only what was
started here is ended.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TICK = os.sysconf("SC_CLK_TCK")

WRK_SCRIPT = """
wrk.method = "POST"
wrk.body = [[{body}]]
wrk.headers["content-type"] = "application/json"
"""

NGINX = """
daemon off; worker_processes 1; pid nginx.pid; error_log nginx.err; {user}
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path tb; proxy_temp_path tp; fastcgi_temp_path tf; uwsgi_temp_path tu; scgi_temp_path ts;
  keepalive_requests 1000000000;
  upstream w {{ zone w 256k; least_conn; keepalive 256; keepalive_requests 1000000000; {servers} }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://w; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 1h;
    }}
  }}
}}
"""

HAPROXY = """
global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  http-reuse always
frontend f
  bind 127.0.0.1:{port}
  default_backend w
backend w
  balance leastconn
{servers}
"""

FOREBAY = """
[proxy]
listen = "127.0.0.1:{port}"
threads = 1

[admin]
listen = "127.0.0.1:{admin}"

[store]
path = "{directory}/bench.db"

[provider.existing]
kind = "static"

[instance_type.bench]
provider = "existing"
addresses = [{addresses}]
max_concurrency = 1024

[[endpoint]]
name = "bench"

  [[endpoint.variant]]
  name = "primary"
  model = "bench"
  initial_instance_count = {count}
  min_instance_count = {count}
  max_instance_count = {count}
  health_path = "/ping"

    [[endpoint.variant.pool]]
    instance_type = "bench"
    priority = 1
"""


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


class Started:
    """A process with its group, ended with the benchmark."""

    def __init__(self, name, command, directory):
        self.name, self.command, self.directory = name, command, directory
        self.log = directory / f"{name}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def pids(self):
        """Its process and all that descend from it."""
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
        """User and system time so far, in seconds."""
        ticks = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / TICK

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def fail(self, why):
        tail = self.log.read_text(errors="replace")[-2000:]
        sys.exit(f"{self.name}: {why}\n{' '.join(map(str, self.command))}\n{tail}")


def wait_until_it_answers(started, url, body, limit=60):
    """Until a request gets a 2xx, then until a whole series of them does."""
    deadline, series = time.monotonic() + limit, 0
    while series < 20:
        if started.process.poll() is not None:
            started.fail("ended before it answered")
        request = urllib.request.Request(url, body.encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                answer.read()
            series += 1
        except (urllib.error.URLError, OSError) as error:
            series = 0
            if time.monotonic() > deadline:
                started.fail(f"gave no good answer within {limit}s: {error}")
            time.sleep(0.1)


def drive(url, script, seconds, connections):
    """One run of wrk. Gives the number of requests and the seconds that it took."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", script, url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        sys.exit(f"a run had errors, so its figures mean nothing:\n{output}")
    return int(re.search(r"(\d+) requests in", output)[1]), seconds


def write(path, text):
    path.write_text(text)
    return path


def request_body(size):
    start = '{"model":"bench","messages":[{"role":"user","content":"'
    end = '"}],"max_tokens":16}'
    return start + "a" * max(0, size - len(start) - len(end)) + end


def start_nginx(options, directory, ports):
    (port,) = free_ports(1)
    servers = " ".join(f"server 127.0.0.1:{p} max_fails=0;" for p in ports)
    user = "user root;" if os.geteuid() == 0 else ""
    config = write(directory / "nginx.conf", NGINX.format(port=port, servers=servers, user=user))
    command = [options.nginx, "-p", f"{directory}/", "-c", config, "-e", "nginx.err"]
    return Started("nginx", command, directory), port


def start_haproxy(options, directory, ports):
    (port,) = free_ports(1)
    servers = "".join(f"  server s{p} 127.0.0.1:{p}\n" for p in ports)
    config = write(directory / "haproxy.cfg", HAPROXY.format(port=port, servers=servers))
    return Started("haproxy", [options.haproxy, "-f", config, "-db"], directory), port


def start_forebay(options, directory, ports):
    port, admin = free_ports(2)
    addresses = ", ".join(f'"http://127.0.0.1:{p}"' for p in ports)
    text = FOREBAY.format(port=port, admin=admin, directory=directory, addresses=addresses, count=len(ports))
    config = write(directory / "forebay.toml", text)
    command = [part.replace("{config}", str(config)) for part in options.forebay_command.split()]
    return Started("forebay", [options.forebay, *command], directory), port


def version(program, *arguments):
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else "no version"


def start_peers(options, directory, ports):
    """The proxies that are there, by name, with the port of each."""
    peers = {
        "haproxy": (options.haproxy, start_haproxy, "-v", "apt-get install haproxy"),
        "nginx": (options.nginx, start_nginx, "-v", "apt-get install nginx-light"),
        "forebay": (options.forebay, start_forebay, "--version", "cargo build --release"),
    }
    running = {}
    for name in options.peers.split(","):
        program, begin, flag, install = peers[name]
        if shutil.which(program) is None:
            print(f"{name} is left out: there is no {program} ({install})")
            continue
        print(f"{name}: {version(program, flag)}")
        running[name] = begin(options, directory, ports)
    return running


def backends(options, directory, started):
    """Starts them and gives their ports."""
    ports = free_ports(options.backends)
    backend = options.backend or build_backend()
    command = [backend, *(f"127.0.0.1:{p}" for p in ports)]
    started.append(Started("backend", command, directory))
    for port in ports:
        wait_until_it_answers(started[-1], f"http://127.0.0.1:{port}/", "{}")
    return ports


def build_backend():
    command = ["cargo", "build", "--quiet", "--release", "--example", "echo_backend"]
    subprocess.run(command, cwd=ROOT, check=True)
    return ROOT / "target/release/examples/echo_backend"


def measure(options, running, script):
    """Microseconds of CPU and requests a second, by name, one pair a round."""
    names, results = list(running), {name: [] for name in running}
    for turn in range(options.rounds):
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            process, port = running[name]
            before = process.cpu()
            requests, seconds = drive(
                f"http://127.0.0.1:{port}{options.path}", script, options.seconds, options.connections
            )
            results[name].append(((process.cpu() - before) / requests * 1e6, requests / seconds))
        line = "  ".join(f"{name} {results[name][-1][0]:.2f}" for name in names)
        print(f"round {turn + 1}: {line} µs", flush=True)
    return results


def table(results):
    base = statistics.median(cpu for cpu, _ in results["haproxy"]) if "haproxy" in results else None
    rows = [("proxy", "CPU µs/request", "lowest", "highest", "requests/s", "to HAProxy")]
    for name, rounds in results.items():
        cpu = [c for c, _ in rounds]
        median = statistics.median(cpu)
        rate = statistics.median(r for _, r in rounds)
        ratio = f"{median / base:.2f}" if base else "-"
        rows.append((name, f"{median:.2f}", f"{min(cpu):.2f}", f"{max(cpu):.2f}", f"{rate:.0f}", ratio))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                        for i, (cell, w) in enumerate(zip(row, widths))))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default="haproxy,nginx,forebay", help="which, in this order")
    parser.add_argument("--forebay", default=str(ROOT / "target/release/forebay"))
    parser.add_argument("--forebay-command", default="serve --config {config}",
                        help="its arguments; {config} is the generated file")
    parser.add_argument("--nginx", default="nginx")
    parser.add_argument("--haproxy", default="haproxy")
    parser.add_argument("--backend", help="an echo_backend that is built; default: build it")
    parser.add_argument("--backends", type=int, default=4, help="how many addresses it listens on")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="of each run")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--body-bytes", type=int, default=1024)
    parser.add_argument("--path", default="/v1/chat/completions")
    parser.add_argument("--json", help="a file for the figures of every round")
    options = parser.parse_args()
    for name in ("forebay", "nginx", "haproxy", "backend"):
        program = getattr(options, name)
        if program and "/" in program:  # They are started in another folder.
            setattr(options, name, os.path.abspath(program))
    if shutil.which("wrk") is None:
        sys.exit("there is no wrk: apt-get install wrk")

    body, started = request_body(options.body_bytes), []
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        try:
            ports = backends(options, directory, started)
            running = start_peers(options, directory, ports)
            started += [process for process, _ in running.values()]
            if not running:
                sys.exit("there is no proxy to measure")
            script = write(directory / "post.lua", WRK_SCRIPT.format(body=body))
            for process, port in running.values():
                url = f"http://127.0.0.1:{port}{options.path}"
                wait_until_it_answers(process, url, body)
                drive(url, script, 1, options.connections)  # Warms it up.
            results = measure(options, running, script)
        finally:
            for process in reversed(started):
                process.end()
    print(f"\n{options.rounds} rounds of {options.seconds} s, {options.connections} connections, "
          f"{len(body)} bytes in, 128 bytes out, {options.backends} backends, {os.cpu_count()} cores")
    table(results)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
