//! What the parsers and decoders must hold on any input: no panic, what is written reads back the same, and no error or
//! rendering repeats a secret.
//!
//! Each [`Target`] is one such law. Two runners share them: the tests of this crate, bounded, with random bytes and with
//! mutations of the seeds; and `fuzz/`, where libFuzzer runs one for as long as one likes.

mod address;
mod aws;
mod text;

/// One law, and where to begin.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which is the fuzz target's too.
    pub name: &'static str,
    /// Panics where the law is broken.
    pub run: fn(&[u8]),
    /// Inputs that are valid, or nearly.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "address", run: address::parsed, seeds: address::seeds },
    Target { name: "address_secret", run: address::secret, seeds: address::secret_seeds },
    Target { name: "packed", run: text::packed, seeds: text::packed_seeds },
    Target { name: "history", run: text::history, seeds: text::history_seeds },
    Target { name: "timestamp", run: text::timestamp, seeds: text::timestamp_seeds },
    Target { name: "trace_headers", run: text::trace_headers, seeds: text::trace_seeds },
    Target { name: "aws_message", run: aws::message, seeds: aws::message_seeds },
    Target { name: "aws_body", run: aws::body, seeds: aws::body_seeds },
    Target { name: "aws_payload", run: aws::payload, seeds: aws::payload_seeds },
    Target { name: "aws_headers", run: aws::headers, seeds: aws::headers_seeds },
    Target { name: "aws_trace_header", run: aws::trace_header, seeds: aws::trace_header_seeds },
    Target {
        name: "kafka_message",
        run: throughline_kafka::fuzzing::message,
        seeds: throughline_kafka::fuzzing::message_seeds,
    },
    Target {
        name: "kafka_metadata",
        run: throughline_kafka::fuzzing::metadata,
        seeds: throughline_kafka::fuzzing::metadata_seeds,
    },
    Target {
        name: "rabbitmq_message",
        run: throughline_rabbitmq::fuzzing::message,
        seeds: throughline_rabbitmq::fuzzing::message_seeds,
    },
    Target {
        name: "rabbitmq_value",
        run: throughline_rabbitmq::fuzzing::value,
        seeds: throughline_rabbitmq::fuzzing::value_seeds,
    },
    Target {
        name: "rabbitmq_reply",
        run: throughline_rabbitmq::fuzzing::reply,
        seeds: throughline_rabbitmq::fuzzing::reply_seeds,
    },
    Target {
        name: "rabbitmq_greeting",
        run: throughline_rabbitmq::fuzzing::greeting,
        seeds: throughline_rabbitmq::fuzzing::greeting_seeds,
    },
    Target {
        name: "cli_lines",
        run: throughline_cli::fuzzing::lines,
        seeds: throughline_cli::fuzzing::lines_seeds,
    },
    Target {
        name: "cli_headers",
        run: throughline_cli::fuzzing::headers,
        seeds: throughline_cli::fuzzing::headers_seeds,
    },
    Target {
        name: "cli_rendering",
        run: throughline_cli::fuzzing::rendering,
        seeds: throughline_cli::fuzzing::rendering_seeds,
    },
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Seeds that are text.
fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}
