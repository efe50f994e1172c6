#!/usr/bin/env bash
# The OpenAI and the SageMaker client, as people have them, through the quickstart.
#
#   loadtest/clients/run.sh                  builds, starts and ends the quickstart itself
#   URL=http://127.0.0.1:8080 loadtest/clients/run.sh     uses one that runs
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

venv openai boto3
quickstart
"$ROOT/.venv/bin/python" "$ROOT/loadtest/clients/openai_stream.py" "$URL" --paced
AWS_ENDPOINT_URL=$URL "$ROOT/.venv/bin/python" "$ROOT/loadtest/clients/sagemaker_invoke.py" my-endpoint
