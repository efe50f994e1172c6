#!/usr/bin/env bash
# The OpenAI and the SageMaker client, as people have them, through the quickstart; the former also over TLS,
# in HTTP/1.1 and HTTP/2; and curl in each way that it can speak.
#
#   loadtest/clients/run.sh                  builds, starts and ends the quickstart itself
#   URL=http://127.0.0.1:8080 loadtest/clients/run.sh     uses one that runs, and leaves TLS out
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

venv openai boto3 'httpx[http2]'
[ -n "${URL:-}" ] || with_tls
quickstart
"$ROOT/.venv/bin/python" "$ROOT/loadtest/clients/openai_stream.py" "$URL" --paced
AWS_ENDPOINT_URL=$URL "$ROOT/.venv/bin/python" "$ROOT/loadtest/clients/sagemaker_invoke.py" my-endpoint

# speaks VERSION ARGUMENT…: curl gets an answer, in that version of HTTP.
speaks() {
    local version=$1 got
    shift
    got=$(curl --silent --show-error --fail --output /dev/null --write-out '%{http_version}' "$@")
    [ "$got" = "$version" ] || fail "curl $*: HTTP/$got, not $version"
}
speaks 1.1 "$URL/v1/models"
speaks 2 --http2-prior-knowledge "$URL/v1/models"
if [ -n "${TLS_PORT:-}" ]; then
    tls=https://localhost:$TLS_PORT
    speaks 2 --cacert "$CHAIN" "$tls/v1/models"
    speaks 1.1 --cacert "$CHAIN" --http1.1 "$tls/v1/models"
    speaks 2 --cacert "$CHAIN" --tlsv1.3 "$tls/v1/models"
    speaks 2 --cacert "$CHAIN" --tlsv1.2 --tls-max 1.2 "$tls/v1/models"
    ! curl --silent --cacert "$CHAIN" --tlsv1.0 --tls-max 1.1 "$tls/v1/models" || fail "TLS 1.1 is spoken"
    for http2 in '' --http2; do
        SSL_CERT_FILE=$CHAIN "$ROOT/.venv/bin/python" "$ROOT/loadtest/clients/openai_stream.py" "$tls" --paced $http2
    done
fi
echo "curl: all as it should be"
