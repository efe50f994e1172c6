"""The story that scarcity.sh tells: drives one `forebay serve`, streams through it, counts what is lost."""

import collections
import http.client
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

BINARY, PROXY, ADMIN, WORK = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), pathlib.Path(sys.argv[4])
CONFIG = WORK / "scarcity.toml"
STREAMS = 12
LIMIT = 60  # seconds for each step

BODY = json.dumps({"model": "llm", "stream": True, "messages": [{"role": "user", "content": "hi"}]})
STARTED = time.monotonic()


def config(p5, g6, pools=("p5", "g6")):
    """The config with so many p5 and g6 there are; trn has no limit."""
    text = f"""
[proxy]
listen = "127.0.0.1:{PROXY}"
[admin]
listen = "127.0.0.1:{ADMIN}"
[provider.local]
kind = "process"
command = ["{{forebay}}", "worker", "--listen", "{{address}}", "--instance-type", "{{instance_type}}", "--model",
  "{{model}}", "--max-concurrency", "{{max_concurrency}}", "--first-token", "50ms", "--tokens-per-second", "50",
  "--startup-delay", "500ms"]
"""
    for kind, limit in (("p5", f"capacity = {p5}"), ("g6", f"capacity = {g6}"), ("trn", "")):
        text += f'[instance_type.{kind}]\nprovider = "local"\nmax_concurrency = 8\n{limit}\n'
    text += """
[[endpoint]]
name = "llm"
[[endpoint.variant]]
name = "main"
model = "llm"
initial_instance_count = 3
min_instance_count = 0
max_instance_count = 6
provision_timeout = "2s"
fallback = "after_window"
rebalance = "active"
rebalance_min_interval = "1s"
scale_to_zero_after = "2s"
startup_health_interval = "100ms"
health_interval = "500ms"
"""
    for number, kind in enumerate(pools, 1):
        text += f'[[endpoint.variant.pool]]\ninstance_type = "{kind}"\npriority = {number}\n'
    return text


def ask(method, path, body=None, port=ADMIN):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    try:
        connection.request(method, path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def variant():
    return json.loads(ask("GET", "/api/v1/status")[1])["endpoints"][0]["variants"][0]


def fleet():
    """How many of each type are in service, and how many are in another state."""
    found = collections.Counter()
    for one in variant()["instances"]:
        found[one["instance_type"] if one["state"] == "InService" else "other"] += 1
    return found


class Load:
    """Streams without a break; a request is lost if its stream does not end as it should, unless the
    worker that had it was killed by this script."""

    def __init__(self):
        self.lock = threading.Lock()
        self.served, self.broken, self.lost, self.killed = 0, 0, [], set()
        self.running, self.ends, self.slowest = threading.Event(), False, 0.0
        self.threads = [threading.Thread(target=self.work) for _ in range(STREAMS)]
        self.busy = 0
        for thread in self.threads:
            thread.start()

    def work(self):
        while not self.ends:
            if not self.running.wait(0.05):
                continue
            with self.lock:
                self.busy += 1
            time.sleep(random.uniform(0, 0.1))  # So that they do not march in step.
            began = time.monotonic()
            worker, why = self.stream()
            with self.lock:
                self.busy -= 1
                self.slowest = max(self.slowest, time.monotonic() - began)
                if why is None:
                    self.served += 1
                elif worker in self.killed:
                    self.broken += 1
                else:
                    self.lost.append(f"{worker}: {why}")

    def stream(self):
        worker = None
        connection = http.client.HTTPConnection("127.0.0.1", PROXY, timeout=LIMIT)
        try:
            connection.request("POST", "/v1/chat/completions", BODY, {"content-type": "application/json"})
            answer = connection.getresponse()
            worker = answer.headers.get("x-forebay-instance")
            text = answer.read().decode()
            fine = answer.status == 200 and text.rstrip().endswith("[DONE]")
            return worker, None if fine else f"{answer.status} {text[-200:]!r}"
        except (OSError, http.client.HTTPException) as error:
            return worker, repr(error)
        finally:
            connection.close()

    def pause(self):
        self.running.clear()
        wait("the streams end", lambda: self.busy == 0)

    def end(self):
        self.ends = True
        for thread in self.threads:
            thread.join()


load = Load()


def tell(message):
    counts = " ".join(f"{kind}={count}" for kind, count in sorted(fleet().items())) or "none"
    clock = time.strftime("%H:%M:%S", time.gmtime())
    passed = time.monotonic() - STARTED
    print(f"{clock} {passed:5.1f}s  {message:<94} [{counts}] served {load.served} lost {len(load.lost)}", flush=True)


def wait(what, check):
    deadline = time.monotonic() + LIMIT
    while not check():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {LIMIT}s: {what}; {variant()}; {load.lost[:3]}")
        time.sleep(0.02)


def becomes(**expected):
    """Waits until the fleet is exactly this. Returns how long it took and the fewest that served meanwhile."""
    began, fewest = time.monotonic(), [99]

    def check():
        now = fleet()
        fewest[0] = min(fewest[0], sum(count for kind, count in now.items() if kind != "other"))
        return now == collections.Counter(expected)

    wait(f"{expected}", check)
    return f"after {time.monotonic() - began:.1f}s, never fewer than {fewest[0]} in service"


def reload(*arguments, **keys):
    CONFIG.write_text(config(*arguments, **keys))
    status, text = ask("POST", "/api/v1/reload")
    assert status == 200, text


def scale(count):
    status, text = ask("POST", "/api/v1/endpoints/llm/scale", json.dumps({"desired_instance_count": count}))
    assert status == 200, text


def workers():
    """The pid of each worker process of ours, by instance."""
    found = {}
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if f"FOREBAY_OWNER={WORK / 'forebay.db'}" in variables:
            found[next(v for v in variables if v.startswith("FOREBAY_INSTANCE="))[17:]] = int(process.name)
    return found


def story():
    wait("the manager answers", listening)
    hold = lambda: json.loads(ask("GET", "/api/v1/status")[1]).get("capacity_holds", [])
    wait("both pools have refused", lambda: len(hold()) == 2)
    tell("created with 3 desired in a drought: 0 p5, 0 g6 there are")
    print(f"                 {variant()['waiting_for']}")
    reload(0, 2)
    wait("two g6", lambda: fleet()["g6"] == 2)
    load.running.set()
    tell("2 g6 appear: both are used, the third is still looked for")
    print(f"                 {variant()['waiting_for']}")
    reload(0, 9)
    tell("more g6: all on fallback " + becomes(g6=3))
    why = subprocess.run([BINARY, "explain", "llm", "--admin", f"http://127.0.0.1:{ADMIN}"],
                         capture_output=True, text=True, check=True)
    print("                 why is my endpoint on g6?  forebay explain llm")
    for line in why.stdout.splitlines()[1:3]:
        print(f"                 {line}")
    reload(2, 9)
    tell("2 p5 appear: replaced one by one " + becomes(p5=2, g6=1))
    victim = next(one["id"] for one in variant()["instances"] if one["instance_type"] == "p5")
    load.killed.add(victim)
    outstanding = lambda: next(one["outstanding"] for one in variant()["instances"] if one["id"] == victim)
    wait("it has requests", lambda: outstanding() > 1)
    os.kill(workers()[victim], signal.SIGKILL)
    tell(f"kill -9 of the p5 worker {victim}")
    wait("the victim is noticed", lambda: all(one["id"] != victim for one in variant()["instances"]))
    tell("replaced by a p5 " + becomes(p5=2, g6=1))
    print(f"                 {load.broken} streams broke that had reached the killed worker")
    scale(6)
    tell("scale to 6 " + becomes(p5=2, g6=4))
    scale(2)
    tell("scale to 2: the fallback left first " + becomes(p5=2))
    load.pause()
    tell("the load pauses")
    tell("idle for 2s, to zero " + becomes())
    began = time.monotonic()
    already, load.slowest = load.served, 0.0
    load.running.set()
    wait("the held requests are served", lambda: load.served >= already + STREAMS)
    events = json.loads(ask("GET", "/api/v1/endpoints/llm/explain")[1])["events"]
    wakes = sum(event["kind"] == "woken" for event in events)
    tell(f"{STREAMS} requests at once: held, sized in {wakes} steps, all served {time.monotonic() - began:.1f}s after")
    wait("it has its size", lambda: fleet() == collections.Counter(p5=2))
    scale(4)
    tell("scale to 4 " + becomes(p5=2, g6=2))
    reload(2, 9, pools=("trn", "g6"))
    tell("reload: pool p5 goes, pool trn comes and is preferred " + becomes(trn=4))
    load.pause()
    tell("the load ends")


def listening():
    try:
        return ask("GET", "/healthz")[0] == 200
    except OSError:
        return False


def main():
    CONFIG.write_text(config(0, 0))
    with open(WORK / "forebay.log", "wb") as log:
        server = subprocess.Popen([BINARY, "serve", "--config", str(CONFIG)], cwd=WORK, stdout=log, stderr=log)
    try:
        story()
    except BaseException:
        print((WORK / "forebay.log").read_text()[-4000:], file=sys.stderr)
        raise
    finally:
        load.end()
        server.terminate()
        status = server.wait(LIMIT)
    left = workers()
    print(f"ended with {status}, {len(left)} workers left; {load.served} streams served, {len(load.lost)} lost, "
          f"{load.broken} broken with the killed worker; the slowest since the wake took {load.slowest:.1f}s")
    for why in load.lost[:10]:
        print(f"lost: {why}")
    sys.exit(1 if load.lost or left or status else 0)


main()
