"""A foreign AMQP client for the interoperability tests: `get URL QUEUE` or `put URL QUEUE < message.json`.

It knows nothing of Throughline. `get` prints one message as JSON, with the Python type of every header; `put` publishes
the JSON it reads: {"body": text, "headers": {...}, "properties": {...}}.
"""

import datetime
import json
import sys

import pika


def typed(value):
    if isinstance(value, bytes):
        return {"type": "bytes", "value": value.hex()}
    if isinstance(value, datetime.datetime):
        return {"type": "datetime", "value": value.isoformat()}
    return {"type": type(value).__name__, "value": value}


def get(channel, queue):
    for method, properties, body in channel.consume(queue, inactivity_timeout=20):
        if method is None:
            sys.exit(f"no message in {queue} within 20 s")
        channel.basic_ack(method.delivery_tag)
        names = ["message_id", "type", "content_type", "app_id", "correlation_id", "delivery_mode", "priority"]
        print(json.dumps({
            "body": body.decode("utf-8"),
            "headers": {name: typed(value) for name, value in (properties.headers or {}).items()},
            "properties": {name: getattr(properties, name) for name in names},
            "exchange": method.exchange,
            "routing_key": method.routing_key,
        }))
        return


def put(channel, queue):
    message = json.load(sys.stdin)
    properties = pika.BasicProperties(headers=message["headers"], **message["properties"])
    channel.confirm_delivery()
    channel.basic_publish("", queue, message["body"].encode("utf-8"), properties, mandatory=True)


command, url, queue = sys.argv[1:4]
connection = pika.BlockingConnection(pika.URLParameters(url))
{"get": get, "put": put}[command](connection.channel(), queue)
connection.close()
