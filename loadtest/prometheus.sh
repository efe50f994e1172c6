#!/usr/bin/env bash
# A real Prometheus (Debian: prometheus, which brings promtool) scrapes the quickstart: promtool has no
# complaint about /metrics but the two explained below, the target is up, and the traffic sent here
# arrives as samples.
#
#   loadtest/prometheus.sh                   builds, starts and ends the quickstart itself
#   URL=http://127.0.0.1:8080 ADMIN=http://127.0.0.1:8081 loadtest/prometheus.sh     uses one that runs
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

for program in prometheus promtool curl; do
    command -v "$program" >/dev/null || fail "$program is not installed: apt-get install prometheus curl"
done
quickstart
[ -n "${ADMIN:-}" ] || fail "with URL, set ADMIN as well"

CONFIG=$ROOT/config/prometheus/prometheus.yml
promtool check config "$CONFIG"
sed -e "s/127.0.0.1:8081/${ADMIN#http://}/" -e "s/_interval: .*/_interval: 1s/" "$CONFIG" >"$WORK/prometheus.yml"
grep -q "${ADMIN#http://}" "$WORK/prometheus.yml" || fail "$CONFIG does not scrape 127.0.0.1:8081 any more"

for _ in 1 2 3; do
    curl --fail --silent --show-error --output /dev/null "$URL/v1/chat/completions" \
        --header "content-type: application/json" \
        --data '{"model":"my-endpoint","messages":[{"role":"user","content":"hello"}]}'
done
curl --fail --silent --show-error "$ADMIN/metrics" >"$WORK/metrics"
# Two of promtool's rules of style are broken on purpose, so both are lifted here and only here: the label
# is CloudWatch's InstanceType, not snake_case, and the gauges forebay_instance_count and
# forebay_desired_instance_count end as CloudWatch's InstanceCount does. Everything else must pass.
sed -e 's/\([{,]\)InstanceType="/\1instance_type="/' \
    -e 's/\bforebay_\(desired_\)\?instance_count\b/forebay_\1instances/' "$WORK/metrics" |
    promtool check metrics

read -r port < <(ports 1)
start "$WORK/prometheus.log" prometheus --config.file="$WORK/prometheus.yml" --storage.tsdb.path="$WORK/tsdb" \
    --web.listen-address="127.0.0.1:$port" --log.level=warn

# query EXPRESSION: succeeds if it has a result.
query() {
    curl --fail --silent --get "http://127.0.0.1:$port/api/v1/query" --data-urlencode "query=$1" |
        python3 -c 'import json, sys; sys.exit(not json.load(sys.stdin)["data"]["result"])'
}
(
    wait_for 30 "Prometheus is ready" curl --fail --silent "http://127.0.0.1:$port/-/ready"
    wait_for 60 "the target is up" query 'up{job="forebay"} == 1'
    wait_for 30 "the requests sent are counted" query 'sum(forebay_invocations_total{code="200"}) >= 3'
    wait_for 30 "instances in service are counted" query 'sum(forebay_instance_count{state="InService"}) > 0'
    wait_for 30 "every sample has an InstanceType" query 'count({__name__=~"forebay_.*",InstanceType!=""}) > 0'
    ! query 'count({__name__=~"forebay_.*",InstanceType=""}) > 0' || fail "samples without InstanceType"
) || {
    tail -20 "$WORK/prometheus.log" >&2
    exit 1
}
echo "Prometheus scrapes $ADMIN: up, traffic counted, promtool content"
