#!/usr/bin/env bash
# A real gRPC server (grpcio, as it is by default: a client that pings it more than twice within five minutes
# without data is ended with too_many_pings) behind the proxy, and real clients before it, one of which pings
# each ten seconds. Calls that are silent for longer than five minutes go on and end well; fails if one breaks,
# or if the server sees a second connection.
#
#   loadtest/grpc_pings.sh                   seven minutes of silence; SECONDS_LONG=20 for less
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [ -z "${FOREBAY:-}" ]; then
    (cd "$ROOT" && cargo build --quiet --release)
    FOREBAY=$ROOT/target/release/forebay
fi
FOREBAY=$(realpath "$FOREBAY")
PYTHON=${PYTHON:-}
if [ -z "$PYTHON" ]; then
    venv grpcio
    PYTHON=$ROOT/.venv/bin/python
fi
read -r PROXY ADMIN WORKER < <(ports 3)
cd "$WORK"
cat >forebay.toml <<TOML
[proxy]
listen = "127.0.0.1:$PROXY"
threads = 1
[admin]
listen = "127.0.0.1:$ADMIN"
[provider.existing]
kind = "static"
[instance_type.grpcio]
provider = "existing"
protocol = "h2c"
addresses = ["http://127.0.0.1:$WORKER"]
[[endpoint]]
name = "grpc"
[[endpoint.variant]]
name = "main"
model = "m"
health_grpc_service = ""
health_interval = "1h"
[[endpoint.variant.pool]]
instance_type = "grpcio"
priority = 1
TOML
start server.log "$PYTHON" "$ROOT/loadtest/grpc_pings.py" serve "$WORKER"
wait_for 30 "the server listens" grep -q listens server.log
start forebay.log "$FOREBAY" serve --config forebay.toml
ADMIN=http://127.0.0.1:$ADMIN
(wait_for 60 "the server is in service" in_service) || {
    tail -20 forebay.log >&2
    exit 1
}
"$PYTHON" "$ROOT/loadtest/grpc_pings.py" call "$PROXY" "${SECONDS_LONG:-420}"
