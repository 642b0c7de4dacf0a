"""A foreign AWS client for the interoperability tests: `ENDPOINT < calls.jsonl`.

It knows nothing of Throughline. Each line is one call of boto3, [service, operation, parameters]; its answer is printed as
one line of JSON. In both, {"base64": text} stands for bytes.
"""

import base64
import json
import sys

import boto3


def decoded(members):
    return base64.b64decode(members["base64"]) if members.keys() == {"base64"} else members


def encoded(value):
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode("ascii")}
    return str(value)


session = boto3.Session("test", "test", region_name="us-east-1")
clients = {}
for line in sys.stdin:
    service, operation, parameters = json.loads(line, object_hook=decoded)
    if service not in clients:
        clients[service] = session.client(service, endpoint_url=sys.argv[1])
    answer = getattr(clients[service], operation)(**parameters)
    answer.pop("ResponseMetadata", None)
    print(json.dumps(answer, default=encoded))
