"""A foreign AMQP client for the interoperability tests: `get | put | get-all | put-all URL QUEUE`.

It knows nothing of Throughline. `get` prints one message as JSON, with the Python type of every header; `put` publishes
the JSON it reads: {"body": text, "headers": {...}, "properties": {...}}. `put-all` publishes one such message a line, where
{"hex": text} stands for bytes and {"time": seconds} for a time, in the body and in headers; `get-all` prints what the queue
holds in the same form, with all properties, and takes it.
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


def decoded(members):
    if members.keys() == {"hex"}:
        return bytes.fromhex(members["hex"])
    if members.keys() == {"time"}:
        return datetime.datetime.fromtimestamp(members["time"], datetime.timezone.utc)
    return members


def encoded(value):
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, datetime.datetime):
        return {"time": int(value.replace(tzinfo=datetime.timezone.utc).timestamp())}
    return str(value)


def put_all(channel, queue):
    channel.confirm_delivery()
    for line in sys.stdin:
        message = json.loads(line, object_hook=decoded)
        body = message["body"]
        body = body if isinstance(body, bytes) else body.encode("utf-8")
        properties = pika.BasicProperties(headers=message.get("headers"), **message.get("properties", {}))
        channel.basic_publish("", queue, body, properties, mandatory=True)


def get_all(channel, queue):
    while True:
        method, properties, body = channel.basic_get(queue)
        if method is None:
            return
        channel.basic_ack(method.delivery_tag)
        properties = {name: value for name, value in vars(properties).items() if value is not None}
        headers = properties.pop("headers", None)
        print(json.dumps({"body": body, "headers": headers, "properties": properties}, default=encoded))


command, url, queue = sys.argv[1:4]
connection = pika.BlockingConnection(pika.URLParameters(url))
commands = {"get": get, "put": put, "get-all": get_all, "put-all": put_all}
commands[command](connection.channel(), queue)
connection.close()
