#!/usr/bin/env bash
# h2spec (https://github.com/summerwind/h2spec, RFC 7540 and 7541) against the HTTP/2 listener, in clear with
# prior knowledge and over TLS. Needs Go, for h2spec alone.
#
#   loadtest/h2spec.sh                       builds, starts and ends the quickstart itself
#   FOREBAY=target/debug/forebay loadtest/h2spec.sh      with this binary
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# What fails, and why that is right; anything else is a failure of this script:
KNOWN=$ROOT/loadtest/h2spec-known.txt

command -v go >/dev/null || fail "go is not installed: apt-get install golang-go"
GOBIN=$WORK/bin GOPATH=${GOPATH:-$WORK/go} GOFLAGS=-modcacherw \
    go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible
[ -z "${FOREBAY:-}" ] || FOREBAY=$(realpath "$FOREBAY")
[ -z "${URL:-}" ] || fail "it starts its own server: leave URL out"
with_tls
quickstart

# run NAME PORT ARGUMENT…
run() {
    local name=$1 port=$2
    shift 2
    # It exits 1 when a case fails; which of them may is decided below.
    "$WORK/bin/h2spec" --host 127.0.0.1 --port "$port" --timeout 3 "$@" >"$WORK/$name.txt" || true
    tail -2 "$WORK/$name.txt"
    grep -q '^[0-9]* tests, ' "$WORK/$name.txt" || fail "$name: it did not run to its end"
    sed -n '/^Failures:/,$p' "$WORK/$name.txt" | sed -n 's/^ *× //p' | sort -u >"$WORK/$name.failed"
    grep -vxF -f <(sed -n "s/^$name: //p" "$KNOWN") "$WORK/$name.failed" >"$WORK/$name.new" || true
    [ ! -s "$WORK/$name.new" ] || {
        cat "$WORK/$name.txt" "$WORK/$name.new" >&2
        fail "$name: cases fail that are not in $KNOWN"
    }
}

run clear "${URL##*:}"
run tls "$TLS_PORT" --tls --insecure
