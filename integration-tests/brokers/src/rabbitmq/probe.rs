//! Whether a RabbitMQ answers, and which one: without a client, for readiness and for `cargo xtask brokers status`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{Health, redacted};

/// Asks the broker behind an AMQP URL for its version.
pub(super) fn probe(url: &str, timeout: Duration) -> Result<Health> {
    let (tls, rest) = match url.split_once("://") {
        Some(("amqp", rest)) => (false, rest),
        Some(("amqps", rest)) => (true, rest),
        _ => bail!("`{}` is not an amqp:// or amqps:// URL", redacted(url)),
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    // The port is what follows the last colon, unless that colon is within the brackets of an IPv6 address.
    let (host, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => {
            (name, port.parse().context("its port is not a number")?)
        }
        _ => (host, if tls { 5671 } else { 5672 }),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut failure = None;
    for address in (host, port).to_socket_addrs().with_context(|| format!("`{host}` cannot be resolved"))? {
        let answer = if tls {
            // Whoever accepts is all that can be told without speaking TLS.
            TcpStream::connect_timeout(&address, timeout).map(|_| None).map_err(Into::into)
        } else {
            handshake(address, timeout).map(Some)
        };
        match answer {
            Ok(version) => return Ok(Health { version }),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.with_context(|| format!("`{host}` has no address"))?)
}

/// Opens AMQP, far enough for the broker to introduce itself, and returns its version.
pub(super) fn handshake(address: SocketAddr, timeout: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(b"AMQP\0\0\x09\x01")?;
    let mut header = [0; 7];
    stream.read_exact(&mut header).context("it accepts connections and says nothing")?;
    let [1, 0, 0, size @ ..] = header else { bail!("it does not speak AMQP 0-9-1") };
    let size = usize::try_from(u32::from_be_bytes(size))?;
    // Connection.Start is a few hundred bytes.
    if size > 64 * 1024 {
        bail!("it does not speak AMQP 0-9-1");
    }
    let mut payload = vec![0; size];
    stream.read_exact(&mut payload)?;
    if !payload.starts_with(&[0, 10, 0, 10]) {
        bail!("it does not speak AMQP 0-9-1");
    }
    Ok(server_version(&payload).unwrap_or_else(|| "unknown".to_owned()))
}

/// The `version` among the server properties of a Connection.Start: name, type `S`, length, text.
fn server_version(payload: &[u8]) -> Option<String> {
    const KEY: &[u8] = b"\x07versionS";
    let start = payload.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let (length, rest) = payload.get(start..)?.split_at_checked(4)?;
    let length = usize::try_from(u32::from_be_bytes(length.try_into().ok()?)).ok()?;
    String::from_utf8(rest.get(..length)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    #[test]
    fn the_version_is_found_among_the_server_properties() {
        let payload =
            b"\0\x0a\0\x0a\0\x09\0\0\0\x20\x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x063.10.8";
        assert_eq!(server_version(payload).as_deref(), Some("3.10.8"));
        assert_eq!(server_version(b"\x07versionS\0\0\0\xff3"), None);
        assert_eq!(server_version(b"\x07versionS\0"), None);
        assert_eq!(server_version(b""), None);
    }

    #[test]
    fn a_probe_says_what_is_wrong() {
        let wrong = |url: &str| format!("{:#}", probe(url, Duration::from_millis(500)).unwrap_err());
        assert!(wrong("kafka://h:1").contains("not an amqp://"));
        assert!(wrong("amqp://u:secret@h:port").contains("not a number"));
        assert!(!wrong("amqp://u:secret@127.0.0.1:1").contains("secret"));

        // Accepts, and speaks something else.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("amqp://u:p@127.0.0.1:{}/%2f", listener.local_addr().unwrap().port());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
            // Until the client has read it.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        assert!(wrong(&url).contains("does not speak AMQP"));
        server.join().unwrap();
    }
}
