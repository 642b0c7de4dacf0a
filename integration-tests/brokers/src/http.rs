//! As much of HTTP as asks a broker of ours whether it is there.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result};

/// What is at most read of an answer.
const LONGEST: u64 = 1024 * 1024;

/// Gets an `http://HOST:PORT/PATH`; any answer that is HTTP will do. Gives the answer, its head included.
pub(crate) fn get(url: &str, timeout: Duration) -> Result<String> {
    let rest = url.strip_prefix("http://").with_context(|| format!("`{url}` is not an http:// URL"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let with_port = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut addresses =
        with_port.to_socket_addrs().with_context(|| format!("`{host}` cannot be resolved"))?;
    let address = addresses.next().with_context(|| format!("`{host}` has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).context("it accepts connections and does not answer")?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    anyhow::ensure!(answer.starts_with("HTTP/1."), "it does not speak HTTP");
    Ok(answer)
}
