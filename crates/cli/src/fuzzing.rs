//! For Throughline's own fuzzing: the command's parsers and renderings, as laws that hold on any input.

use std::io::BufReader;

use throughline::{HeaderValue, Headers};

use crate::lines::{Line, read_line};
use crate::message::{Object, value_for_people, visible_line};
use crate::publish;

/// The first byte is the longest line that is kept: lines are those of the input, whatever chunks they come in.
pub fn lines(input: &[u8]) {
    let Some((longest, text)) = input.split_first() else { return };
    let longest = usize::from(*longest);
    for chunk in [1, 3, 4096] {
        let mut source = BufReader::with_capacity(chunk, text);
        let mut expected: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
        if expected.last().is_some_and(|last| last.is_empty()) {
            expected.pop();
        }
        let mut expected = expected.into_iter();
        while let Ok(Some(line)) = read_line(&mut source, longest) {
            let written = expected.next().unwrap_or(b"a line that is not there");
            let whole = written.strip_suffix(b"\r").unwrap_or(written);
            match line {
                Line::Text(read) => {
                    assert!(read.len() <= longest, "{} bytes of at most {longest}", read.len());
                    assert!(read == whole || read == written, "{written:?} is read as {read:?}");
                }
                Line::TooLong(length) => assert!(length > longest && length <= written.len()),
                Line::Failed(error) => assert!(error.to_string().is_empty(), "memory cannot fail: {error}"),
            }
        }
        assert_eq!(expected.next(), None, "lines are left");
    }
}

/// Lines of all kinds.
pub fn lines_seeds() -> Vec<Vec<u8>> {
    [&b"\x05one\ntwo\r\n\n\r\nlonger than that\nend"[..], b"\x00\n\r\n\r", b"\xff{\"a\":1}\n{\"b\":2}\r\n"]
        .iter()
        .map(|seed| seed.to_vec())
        .collect()
}

/// `--header` arguments, one a line: taken as they are, or refused without the value.
pub fn headers(input: &[u8]) {
    const SECRET: &str = "hunter2";
    let text = String::from_utf8_lossy(input);
    let given: Vec<String> = text.split('\n').map(|line| line.replace("SECRET", SECRET)).collect();
    match publish::headers(&given) {
        Ok(headers) => {
            let back: Vec<_> = headers
                .iter()
                .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
                .collect();
            assert_eq!(back, given);
        }
        // A name is no secret, and is told.
        Err(failure) => {
            let names = given
                .iter()
                .any(|it| it.split('=').next().is_some_and(|name| name.contains(SECRET)) && it.contains('='));
            assert!(names || !format!("{failure:?}").contains(SECRET), "{failure:?}");
        }
    }
}

/// Good and bad arguments.
pub fn headers_seeds() -> Vec<Vec<u8>> {
    [
        "tenant=5000\ntenant=6000\nempty=",
        "traceparent=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\ntracestate=a=1\nbaggage=k=SECRET",
        "traceparent=SECRET",
        "authorization: SECRET",
        "=SECRET",
        "baggage=SECRET\nBaggage=SECRET",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect()
}

/// Headers, one a line: a name, a kind and a value between tabs. JSON of them is an object that reads back, and what
/// people see cannot steer their terminal.
pub fn rendering(input: &[u8]) {
    let mut headers = Headers::new();
    for line in input.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(3, |byte| *byte == b'\t');
        let mut next = || parts.next().unwrap_or_default();
        let (name, kind, value) = (next(), next(), next());
        let text = String::from_utf8_lossy(value).into_owned();
        let value = match kind {
            b"" => HeaderValue::Text(text),
            b"bytes" => HeaderValue::from(value.to_vec()),
            b"null" => HeaderValue::Null,
            kind => HeaderValue::Typed { kind: String::from_utf8_lossy(kind).into_owned().into(), text },
        };
        headers.append(String::from_utf8_lossy(name), value);
    }
    let json = serde_json::to_string(&Object(&headers)).unwrap_or_default();
    assert!(!json.contains('\n'), "{json:?} is more than a line");
    let object: Option<serde_json::Map<_, _>> = serde_json::from_str(&json).ok();
    let names: std::collections::HashSet<_> = headers.iter().map(|(name, _)| name).collect();
    assert_eq!(object.map(|object| object.len()), Some(names.len()), "{json}");
    for (name, value) in headers.iter() {
        for shown in [visible_line(name), visible_line(&value_for_people(value))] {
            assert!(shown.chars().all(|c| c == '\t' || !c.is_control()), "{shown:?}");
        }
    }
}

/// Headers of every kind, and a repeated one.
pub fn rendering_seeds() -> Vec<Vec<u8>> {
    [
        &b"a\t\ttext\na\tbytes\t\xff\x00\nb\tnull\nc\tamqp:i32\t7"[..],
        b"\x1b[2J\t\t\x1b]0;x\x07\r",
        b"\t\t\n\xc2\x9b\tbytes\t\xc2\x9b31m",
    ]
    .iter()
    .map(|seed| seed.to_vec())
    .collect()
}
