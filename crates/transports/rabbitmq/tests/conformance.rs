//! The public suite. One case by name: `cargo test -p throughline-rabbitmq --test conformance -- NAME`.

use std::process::ExitCode;

use futures_util::FutureExt;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use throughline_conformance::{Registered, libtest};
use throughline_core::{Address, Error, ErrorKind, Result};
use throughline_rabbitmq::{REGISTRATION, lapin};

fn main() -> ExitCode {
    let Some(url) = throughline_testkit::endpoint::broker("rabbitmq", "conformance of rabbitmq") else {
        return ExitCode::SUCCESS;
    };
    let harness = url.parse().and_then(|base| Registered::new(&REGISTRATION, base));
    let broker = url.clone();
    libtest::main(
        harness.map(|harness| harness.with_foreign(move |to| put_foreign(broker.clone(), to).boxed())),
    )
}

/// A message that another client has sent, with what we read in headers of wrong types and broken forms.
async fn put_foreign(broker: String, to: Address) -> Result<()> {
    let put = async {
        let connection = Connection::connect(&broker, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mut headers = FieldTable::default();
        for (name, value) in [
            ("tl-headers", text("{\"h\":[[")),
            ("tl-history", text("[1,2")),
            ("tl-failed-attempts", text("many")),
            ("tl-sent", AMQPValue::Boolean(true)),
            ("tl-delay", text("-1")),
            ("tl-time", AMQPValue::FieldTable(FieldTable::default())),
            ("tl-expires-at", text("never")),
            ("tl-key", AMQPValue::Double(0.5)),
            ("tl-tombstone", AMQPValue::Void),
            ("traceparent", AMQPValue::LongInt(7)),
            ("tracestate", AMQPValue::LongString(vec![0xff, 0x00].into())),
        ] {
            headers.insert(name.into(), value);
        }
        let properties = BasicProperties::default().with_headers(headers);
        let queue = to.option("queue").unwrap_or_default().into();
        let options = BasicPublishOptions::default();
        channel.basic_publish("".into(), queue, options, b"foreign", properties).await?.await?;
        connection.close(200, "".into()).await
    };
    put.await.map_err(|error: lapin::Error| {
        Error::new(ErrorKind::Internal, "cannot put a foreign message").with_source(error)
    })
}
