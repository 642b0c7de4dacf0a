//! Whether a Kafka answers: without a client, for readiness and for `cargo xtask brokers status`.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Health;

/// Asks the first of the brokers of a `kafka://HOST:PORT[,…]` URL which requests it knows. It does not tell its version.
pub(super) fn probe(url: &str, timeout: Duration) -> Result<Health> {
    let rest = url.strip_prefix("kafka://").with_context(|| format!("`{url}` is not a kafka:// URL"))?;
    let host = rest.split(['/', '?', ',']).next().unwrap_or_default();
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:9092") };
    let mut failure = None;
    for address in host.to_socket_addrs().with_context(|| format!("`{host}` cannot be resolved"))? {
        match TcpStream::connect_timeout(&address, timeout)
            .map_err(Into::into)
            .and_then(|stream| api_versions(stream, timeout))
        {
            Ok(()) => return Ok(Health { version: None }),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.with_context(|| format!("`{host}` has no address"))?)
}

/// An `ApiVersions` request of version 0, which every broker answers, and its answer.
/// <https://kafka.apache.org/protocol.html#The_Messages_ApiVersions>
fn api_versions(mut stream: TcpStream, timeout: Duration) -> Result<()> {
    const CORRELATION: [u8; 4] = *b"tlpr";
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    // Length, API key 18, version 0, correlation id, no client id.
    let mut request = vec![0, 0, 0, 10, 0, 18, 0, 0];
    request.extend(CORRELATION);
    request.extend([0xff, 0xff]);
    stream.write_all(&request)?;
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).context("it accepts connections and says nothing")?;
    match answer {
        [_, _, _, _, a, b, c, d, 0, 0] if [a, b, c, d] == CORRELATION => Ok(()),
        [_, _, _, _, a, b, c, d, code @ ..] if [a, b, c, d] == CORRELATION => {
            bail!("it answers with error {}", i16::from_be_bytes(code))
        }
        _ => bail!("it does not speak Kafka's protocol"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_stranger_is_no_kafka() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("kafka://{}", listener.local_addr().unwrap());
        let stranger = std::thread::spawn(move || {
            for answer in [b"HTTP/1.1 400".as_slice(), b"\0\0\0\x06tlpr\0\0", b"\0\0\0\x06tlpr\0\x23"] {
                let (mut stream, _) = listener.accept().unwrap();
                stream.read_exact(&mut [0; 14]).unwrap();
                stream.write_all(answer).unwrap();
            }
        });
        let ask = || probe(&url, Duration::from_secs(5));
        assert!(ask().unwrap_err().to_string().contains("does not speak"));
        ask().unwrap();
        assert!(ask().unwrap_err().to_string().contains("error 35"));
        stranger.join().unwrap();
        assert!(probe("amqp://h", Duration::from_secs(1)).is_err());
    }
}
