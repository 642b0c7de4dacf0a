//! What a broker says of itself before anyone has logged in. The client library reads it and keeps it to itself.

use std::io;

use futures_util::{AsyncReadExt, AsyncWriteExt};
use lapin::tcp::{AsyncTcpStream, RustlsConnector};
use lapin::types::parsing::{parse_field_table, parse_long_uint, parse_short_short_uint, parse_short_uint};
use lapin::types::{AMQPValue, FieldTable};

use crate::config::Settings;

/// The protocol header: `AMQP`, 0, version 0-9-1. <https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf>, 4.2.2
const HEADER: &[u8] = b"AMQP\0\0\x09\x01";
/// A method frame begins with its type, channel and length; 4.2.3.
const FRAME_HEADER: usize = 7;
/// The first frame is at most so long, because nothing else is agreed on yet; 4.2.3 `frame-min-size`.
const LONGEST: usize = 4096;
/// `connection.start`, class and method.
const START: (u16, u16) = (10, 10);

/// The broker's properties: product, version, cluster name and more.
#[derive(Debug, Default)]
pub(crate) struct Banner(FieldTable);

impl Banner {
    /// Connects, reads the broker's greeting, and leaves without logging in.
    pub(crate) async fn read(settings: &Settings, tls: Option<&RustlsConnector>) -> io::Result<Self> {
        let reading = async {
            let runtime = lapin::runtime::default_runtime().map_err(io::Error::other)?;
            let mut addresses = tokio::net::lookup_host((settings.host.as_str(), settings.port)).await?;
            let address = addresses.next().ok_or_else(|| io::Error::other("the host name has no address"))?;
            let plain = AsyncTcpStream::connect(&runtime, address).await?;
            let mut stream = match (tls, &settings.tls) {
                (Some(connector), Some(tls)) => plain.into_rustls(connector, &tls.server_name).await?,
                _ => plain,
            };
            stream.write_all(HEADER).await?;
            stream.flush().await?;
            let mut header = [0; FRAME_HEADER];
            stream.read_exact(&mut header).await?;
            let [_, _, _, length @ ..] = header;
            let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            if length > LONGEST {
                return Err(io::Error::other("the greeting is longer than AMQP allows"));
            }
            let mut payload = vec![0; length];
            stream.read_exact(&mut payload).await?;
            parse(&payload).ok_or_else(|| io::Error::other("the greeting is not AMQP 0.9.1"))
        };
        tokio::time::timeout(settings.connect_timeout, reading)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// A property that is text.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        match self.0.inner().get(name)? {
            AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
            _ => None,
        }
    }
}

/// The payload of the `connection.start` frame.
pub(super) fn parse(payload: &[u8]) -> Option<Banner> {
    let (rest, class) = parse_short_uint(payload).ok()?;
    let (rest, method) = parse_short_uint(rest).ok()?;
    if (class, method) != START {
        return None;
    }
    let (rest, _major) = parse_short_short_uint(rest).ok()?;
    let (rest, _minor) = parse_short_short_uint(rest).ok()?;
    // The table's length would otherwise be trusted beyond the frame.
    let (body, length) = parse_long_uint(rest).ok()?;
    if usize::try_from(length).ok()? > body.len() {
        return None;
    }
    let (_, properties) = parse_field_table(rest).ok()?;
    Some(Banner(properties))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(properties: FieldTable) -> Vec<u8> {
        let table = lapin::types::generation::gen_field_table::<Vec<u8>>(&properties)(Vec::new().into());
        let mut payload = vec![0, 10, 0, 10, 0, 9];
        payload.extend(table.unwrap().into_inner().0);
        payload
    }

    #[test]
    fn a_greeting_is_read_and_anything_else_is_not() {
        let mut properties = FieldTable::default();
        properties.insert("product".into(), AMQPValue::LongString("RabbitMQ".into()));
        properties.insert("version".into(), AMQPValue::LongString("4.1.0".into()));
        properties.insert("capabilities".into(), AMQPValue::FieldTable(FieldTable::default()));
        let payload = greeting(properties);
        let banner = parse(&payload).unwrap();
        assert_eq!(banner.text("product").as_deref(), Some("RabbitMQ"));
        assert_eq!((banner.text("capabilities"), banner.text("nothing")), (None, None));
        for cut in 0..payload.len() {
            assert!(parse(&payload[..cut]).is_none(), "{cut}");
        }
        assert!(parse(b"HTTP/1.1 400 Bad Request").is_none());
    }
}
