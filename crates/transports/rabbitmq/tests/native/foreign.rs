//! A foreign producer's headers of every AMQP type go through us and back as they came.

use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, DecimalValue, FieldTable};
use throughline_core::{HeaderValue, IdOrigin, Timestamp};

use crate::rig::{Rig, name, next, raw_get};

fn every_type() -> FieldTable {
    let mut inner = FieldTable::default();
    inner.insert("deep".into(), AMQPValue::FieldArray(vec![AMQPValue::LongInt(1), AMQPValue::Void].into()));
    inner.insert("text".into(), AMQPValue::LongString("ä".into()));
    let mut table = FieldTable::default();
    for (name, value) in [
        ("bool", AMQPValue::Boolean(true)),
        ("i8", AMQPValue::ShortShortInt(-8)),
        ("u8", AMQPValue::ShortShortUInt(200)),
        ("i16", AMQPValue::ShortInt(-1_600)),
        ("u16", AMQPValue::ShortUInt(60_000)),
        ("i32", AMQPValue::LongInt(-320_000)),
        ("u32", AMQPValue::LongUInt(4_000_000_000)),
        ("i64", AMQPValue::LongLongInt(i64::MIN)),
        ("f32", AMQPValue::Float(1.5)),
        ("f64", AMQPValue::Double(-0.1)),
        ("decimal", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 1_250 })),
        ("timestamp", AMQPValue::Timestamp(1_700_000_000)),
        ("text", AMQPValue::LongString("text".into())),
        ("not utf-8", AMQPValue::LongString(vec![0xff, 0xfe].into())),
        ("bytes", AMQPValue::ByteArray(vec![0, 255].into())),
        ("void", AMQPValue::Void),
        (
            "array",
            AMQPValue::FieldArray(vec![AMQPValue::Boolean(false), AMQPValue::LongString("x".into())].into()),
        ),
        ("table", AMQPValue::FieldTable(inner)),
    ] {
        table.insert(name.into(), value);
    }
    table
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_every_type_are_kept() {
    let Some(rig) = Rig::new("headers_of_every_type_are_kept").await else { return };
    let (from, to) = (rig.queue("").await, rig.queue("").await);
    let (connection, channel) = rig.raw().await;
    let properties = lapin::BasicProperties::default()
        .with_headers(every_type())
        .with_timestamp(1_700_000_000)
        .with_delivery_mode(1)
        .with_user_id("guest".into());
    let options = BasicPublishOptions::default();
    let published =
        channel.basic_publish("".into(), name(&from).into(), options, &[0xff, 0], properties).await.unwrap();
    published.await.unwrap();

    let mut consumer = rig.consumer(&from).await;
    let delivery = next(&mut consumer).await;
    let envelope = delivery.envelope().clone();
    assert_eq!(envelope.id_origin, IdOrigin::Synthetic);
    assert_eq!(envelope.time, Some(Timestamp::from_millis(1_700_000_000_000)));
    assert_eq!(delivery.queue_delay(), None, "the application's time is not the time of its sending");
    assert_eq!(envelope.payload.as_deref(), Some(&[0xff, 0][..]));
    assert_eq!(envelope.headers.len(), every_type().inner().len());
    assert_eq!(envelope.headers.get("void"), Some(&HeaderValue::Null));
    assert_eq!(envelope.headers.get_str("decimal"), Some("12.50"));
    assert_eq!(envelope.headers.get_str("array"), Some(r#"[false,"x"]"#));

    let publisher = rig.publisher(&to).await;
    publisher.publish(envelope).await.unwrap();
    let got = raw_get(&channel, name(&to)).await;
    let headers = got.properties.headers().as_ref().unwrap().inner();
    for (name, value) in every_type().inner() {
        assert_eq!(headers.get(name), Some(value), "{name}");
    }
    delivery.ack().await.unwrap();
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    connection.close(200, "".into()).await.unwrap();
    rig.finish().await;
}
