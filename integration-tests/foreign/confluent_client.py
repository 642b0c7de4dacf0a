"""A foreign Kafka client for the interoperability tests: `get | get-all SERVERS TOPIC` or `put SERVERS TOPIC < message.json`.

It knows nothing of Throughline. `get` prints the first record of the topic as JSON, every header with the Python type of
its value; `put` publishes the JSON it reads: {"body": text, "key": text or null, "headers": [[name, text or null], ...]}.
`get-all` prints all records of all partitions, a line each, with body and key in hexadecimal digits. `put-transactions SERVERS
TOPIC COUNT` publishes so many records, each in a transaction of its own.
"""

import json
import sys

from confluent_kafka import Consumer, Producer, TopicPartition


def typed(value):
    if value is None:
        return {"type": "NoneType", "value": None}
    try:
        return {"type": "str", "value": value.decode("utf-8")}
    except UnicodeDecodeError:
        return {"type": "bytes", "value": value.hex()}


def get(servers, topic):
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "foreign", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    message = consumer.poll(20)
    if message is None or message.error():
        sys.exit(f"no record in {topic} within 20 s: {message and message.error()}")
    print(json.dumps({
        "body": message.value() and message.value().decode("utf-8"),
        "key": message.key() and message.key().decode("utf-8"),
        "headers": [[name, typed(value)] for name, value in message.headers() or []],
        "timestamp": message.timestamp()[1],
    }))
    consumer.close()


def put(servers, topic):
    message = json.load(sys.stdin)
    headers = [(name, value if value is None else value.encode("utf-8")) for name, value in message["headers"]]
    failed = []
    producer = Producer({"bootstrap.servers": servers})
    producer.produce(topic, message["body"].encode("utf-8"), message["key"], headers=headers,
                     on_delivery=lambda error, _: error and failed.append(error))
    producer.flush(20)
    if failed:
        sys.exit(str(failed[0]))


def get_all(servers, topic):
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "foreign", "enable.auto.commit": False})
    partitions = [TopicPartition(topic, number, 0) for number in consumer.list_topics(topic, 20).topics[topic].partitions]
    left = {partition.partition: consumer.get_watermark_offsets(partition, 20)[1] for partition in partitions}
    consumer.assign(partitions)
    while any(left.values()):
        message = consumer.poll(20)
        if message is None or message.error():
            sys.exit(f"no more records in {topic} within 20 s: {message and message.error()}")
        if message.offset() + 1 >= left[message.partition()]:
            left[message.partition()] = 0
        print(json.dumps({
            "body": None if message.value() is None else message.value().hex(),
            "key": None if message.key() is None else message.key().hex(),
            "headers": [[name, typed(value)] for name, value in message.headers() or []],
        }))
    consumer.close()


def put_transactions(servers, topic):
    producer = Producer({"bootstrap.servers": servers, "transactional.id": topic})
    producer.init_transactions(20)
    for number in range(int(sys.argv[4])):
        producer.begin_transaction()
        producer.produce(topic, str(number).encode("utf-8"), str(number % 3))
        producer.commit_transaction(20)


command, servers, topic = sys.argv[1:4]
commands = {"get": get, "get-all": get_all, "put": put, "put-transactions": put_transactions}
commands[command](servers, topic)
