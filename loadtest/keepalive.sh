#!/usr/bin/env bash
# Workers that close idle connections after 5 s (uvicorn, and the stand-in worker told to), each connection to
# them wanted again after 4.9 to 5.1 s, the worst moment, by requests that may not be sent twice. Fails if a
# single one gets anything but its answer.
#
#   loadtest/keepalive.sh                    ten minutes; SECONDS_LONG=60 for one
#   POOL_IDLE=10s loadtest/keepalive.sh      with connections kept for longer than the workers do
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [ -z "${FOREBAY:-}" ]; then
    (cd "$ROOT" && cargo build --quiet --release)
    FOREBAY=$ROOT/target/release/forebay
fi
FOREBAY=$(realpath "$FOREBAY")
venv uvicorn==0.38.0
read -r PROXY ADMIN UVICORN WORKER < <(ports 4)
cd "$WORK"
cat >app.py <<'PY'
import asyncio


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["method"] == "POST":
        while (await receive()).get("more_body"):
            pass
        await asyncio.sleep(0.05)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
PY
start uvicorn.log "$ROOT/.venv/bin/python" -m uvicorn app:app --port "$UVICORN" --log-level warning
start worker.log "$FOREBAY" worker --listen "127.0.0.1:$WORKER" --instance-type worker --model worker \
    --keep-alive 5s --first-token 50ms
cat >forebay.toml <<TOML
[proxy]
listen = "127.0.0.1:$PROXY"
${POOL_IDLE:+pool_idle_timeout = "$POOL_IDLE"}
[admin]
listen = "127.0.0.1:$ADMIN"
[provider.existing]
kind = "static"
TOML
for pair in "uvicorn $UVICORN" "worker $WORKER"; do
    read -r name port <<<"$pair"
    cat >>forebay.toml <<TOML
[instance_type.$name]
provider = "existing"
addresses = ["http://127.0.0.1:$port"]
[[endpoint]]
name = "$name"
[[endpoint.variant]]
name = "main"
model = "$name"
replay = "never_sent"
[[endpoint.variant.pool]]
instance_type = "$name"
priority = 1
TOML
done
start forebay.log "$FOREBAY" serve --config forebay.toml
ADMIN=http://127.0.0.1:$ADMIN
(wait_for 60 "both workers are in service" in_service) || {
    tail -20 forebay.log >&2
    exit 1
}
python3 "$ROOT/loadtest/keepalive.py" "$PROXY" "${SECONDS_LONG:-600}"
