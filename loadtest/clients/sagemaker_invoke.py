"""boto3's SageMaker runtime client, unchanged, against AWS_ENDPOINT_URL. Exits with 0 when all is well.

    AWS_ENDPOINT_URL=http://127.0.0.1:8080 sagemaker_invoke.py [ENDPOINT]
"""

import json
import os
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

DUMMY = {
    "AWS_ACCESS_KEY_ID": "unused",
    "AWS_SECRET_ACCESS_KEY": "unused",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def main():
    endpoint = sys.argv[1] if len(sys.argv) > 1 else "my-endpoint"
    if "AWS_ENDPOINT_URL" not in os.environ:
        sys.exit("set AWS_ENDPOINT_URL to where Forebay listens, or this would call AWS")
    for name, value in DUMMY.items():
        os.environ.setdefault(name, value)
    client = boto3.client("sagemaker-runtime", config=Config(retries={"total_max_attempts": 1}))

    asked = {"inputs": "hello", "max_tokens": 4}
    answer = client.invoke_endpoint(
        EndpointName=endpoint, ContentType="application/json", Body=json.dumps(asked)
    )
    body = json.loads(answer["Body"].read())
    assert answer["ContentType"] == "application/json", answer
    assert body["input"] == asked, body
    assert body["text"] == "t0 t1 t2 t3 ", body
    assert body["path"] == "/invocations", body

    binary = bytes(range(256)) * 64
    answer = client.invoke_endpoint(
        EndpointName=endpoint, ContentType="application/octet-stream", Body=binary
    )
    assert json.loads(answer["Body"].read())["body_bytes"] == len(binary)

    try:
        client.invoke_endpoint(EndpointName="no-such-endpoint", Body=b"{}")
    except ClientError as error:
        # SageMaker's own name for it; anything else would break its callers.
        assert error.response["Error"]["Code"] == "ValidationError", error.response
    else:
        raise AssertionError("an endpoint that does not exist has answered")
    print(f"boto3 {boto3.__version__}: all well with {endpoint}, answered by {body['instance_type']}")


if __name__ == "__main__":
    main()
