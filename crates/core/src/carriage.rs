//! Where each part of a message is on each wire: one table, which `explain` and the bridge's plan are drawn from.
//!
//! Whatever the way, a consumer of Throughline gets every part back as it was; what differs is what other programs see. The
//! tables follow the codecs of the adapters, whose READMEs have the same under "Wire mapping".

use serde::Serialize;

/// How a transport carries a part of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "how", content = "where", rename_all = "snake_case")]
pub enum Carried {
    /// At the broker's own place for it, as it is.
    Native(&'static str),
    /// As it is, under a name of ours.
    Named(&'static str),
    /// In another form, which other programs have to know.
    Encoded(&'static str),
    /// In the packed attribute `tl-headers`, in JSON.
    Packed,
}

/// Where each part of a message is on a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carriage {
    /// The envelope's id.
    pub id: Carried,
    /// The message type.
    pub message_type: Carried,
    /// The source.
    pub source: Carried,
    /// The ordering key.
    pub ordering_key: Carried,
    /// When it was made.
    pub time: Carried,
    /// The content type.
    pub content_type: Carried,
    /// The content encoding.
    pub content_encoding: Carried,
    /// The correlation id.
    pub correlation_id: Carried,
    /// Where replies should go.
    pub reply_to: Carried,
    /// When it expires.
    pub expires_at: Carried,
    /// The priority.
    pub priority: Carried,
    /// The idempotency key.
    pub idempotency_key: Carried,
    /// The failed attempts so far.
    pub failures: Carried,
    /// A payload that is text.
    pub text: Carried,
    /// A payload that is not.
    pub binary: Carried,
    /// A payload of no bytes.
    pub empty: Carried,
    /// No payload at all.
    pub tombstone: Carried,
    /// The trace headers: `traceparent`, `tracestate`, `baggage`.
    pub trace_headers: Carried,
    /// A header that is text, under an ordinary name.
    pub text_header: Carried,
    /// A header of bytes.
    pub binary_header: Carried,
    /// A header without a value, or with an empty one.
    pub null_header: Carried,
    /// The second value of a name, and further ones.
    pub repeated_header: Carried,
    /// A header whose name is not of ASCII letters, digits, `_`, `-` and `.`.
    pub odd_name: Carried,
    /// A header of another broker's own type.
    pub foreign_type: Carried,
    /// The headers of a message that has more than ten.
    pub many_headers: Carried,
}

impl Carriage {
    /// Every part, with a name for people, in a fixed order.
    pub fn parts(&self) -> Vec<(&'static str, Carried)> {
        vec![
            ("id", self.id),
            ("message type", self.message_type),
            ("source", self.source),
            ("ordering key", self.ordering_key),
            ("time", self.time),
            ("content type", self.content_type),
            ("content encoding", self.content_encoding),
            ("correlation id", self.correlation_id),
            ("reply-to", self.reply_to),
            ("expiry", self.expires_at),
            ("priority", self.priority),
            ("idempotency key", self.idempotency_key),
            ("failed attempts", self.failures),
            ("payload, text", self.text),
            ("payload, binary", self.binary),
            ("payload, empty", self.empty),
            ("payload, none", self.tombstone),
            ("trace headers", self.trace_headers),
            ("header, text", self.text_header),
            ("header, bytes", self.binary_header),
            ("header, null or empty", self.null_header),
            ("header, repeated", self.repeated_header),
            ("header, odd name", self.odd_name),
            ("header, another broker's type", self.foreign_type),
            ("headers, more than ten", self.many_headers),
        ]
    }
}

use Carried::{Encoded, Named, Native, Packed};

const fn all(place: &'static str) -> Carriage {
    let native = Native(place);
    Carriage {
        id: native,
        message_type: native,
        source: native,
        ordering_key: native,
        time: native,
        content_type: native,
        content_encoding: native,
        correlation_id: native,
        reply_to: native,
        expires_at: native,
        priority: native,
        idempotency_key: native,
        failures: native,
        text: native,
        binary: native,
        empty: native,
        tombstone: native,
        trace_headers: native,
        text_header: native,
        binary_header: native,
        null_header: native,
        repeated_header: native,
        odd_name: native,
        foreign_type: native,
        many_headers: native,
    }
}

/// The memory transport keeps the envelope itself.
pub const MEMORY: Carriage = all("the envelope");

/// SQLite has a column for each field, and the headers in one.
pub const SQLITE: Carriage = all("a column of the file");

/// AMQP 0.9.1.
pub const RABBITMQ: Carriage = Carriage {
    id: Native("message_id"),
    message_type: Native("type"),
    source: Native("app_id"),
    ordering_key: Named("tl-key"),
    time: Native("timestamp, in seconds; tl-time where that is not exact"),
    content_type: Native("content_type"),
    content_encoding: Native("content_encoding"),
    correlation_id: Native("correlation_id"),
    reply_to: Native("reply_to"),
    expires_at: Native("expiration, the time left; tl-expires-at has it exactly"),
    priority: Native("priority"),
    idempotency_key: Named("tl-idempotency-key"),
    failures: Named("tl-history, tl-failed-attempts"),
    text: Native("the body"),
    binary: Native("the body"),
    empty: Native("the body"),
    tombstone: Encoded("an empty body, with tl-tombstone"),
    trace_headers: Native("string headers of these names"),
    text_header: Native("a string header"),
    binary_header: Native("a byte array header"),
    null_header: Native("a void header, or an empty string"),
    repeated_header: Packed,
    odd_name: Native("a header of that name; over 255 bytes in tl-headers"),
    foreign_type: Packed,
    many_headers: Native("headers, 131,064 bytes with the properties"),
};

/// Kafka.
pub const KAFKA: Carriage = Carriage {
    id: Named("tl-id"),
    message_type: Named("tl-type"),
    source: Named("tl-source"),
    ordering_key: Native("the record's key"),
    time: Native("the record's timestamp; tl-time where the topic has the broker's own"),
    content_type: Named("content-type"),
    content_encoding: Named("content-encoding"),
    correlation_id: Named("tl-correlation-id"),
    reply_to: Named("tl-reply-to"),
    expires_at: Named("tl-expires-at"),
    priority: Named("tl-priority"),
    idempotency_key: Named("tl-idempotency-key"),
    failures: Named("tl-history, tl-failed-attempts"),
    text: Native("the record's value"),
    binary: Native("the record's value"),
    empty: Native("an empty value"),
    tombstone: Native("no value"),
    trace_headers: Native("headers of these names"),
    text_header: Native("a header"),
    binary_header: Native("a header; tl-binary tells it from text"),
    null_header: Native("a null or empty header"),
    repeated_header: Native("headers, in their order"),
    odd_name: Native("a header of that name"),
    foreign_type: Packed,
    many_headers: Native("headers"),
};

/// SQS: ten attributes in all.
pub const SQS: Carriage = Carriage {
    id: Named("tl-id"),
    message_type: Named("tl-type"),
    source: Packed,
    ordering_key: Packed,
    time: Packed,
    content_type: Named("content-type"),
    content_encoding: Packed,
    correlation_id: Packed,
    reply_to: Packed,
    expires_at: Packed,
    priority: Packed,
    idempotency_key: Packed,
    failures: Packed,
    text: Native("the body; base64 with tl-body where SQS takes some character of it not"),
    binary: Encoded("the body in base64, with tl-body"),
    empty: Encoded("the body '-', with tl-body"),
    tombstone: Encoded("the body '-', with tl-body"),
    trace_headers: Native("String attributes of these names, and AWSTraceHeader"),
    text_header: Native("a String attribute"),
    binary_header: Native("a Binary attribute"),
    null_header: Packed,
    repeated_header: Packed,
    odd_name: Packed,
    foreign_type: Packed,
    many_headers: Packed,
};

/// SQS, a FIFO queue.
pub const SQS_FIFO: Carriage = Carriage {
    ordering_key: Native("MessageGroupId; a hash of it where it is not 1 to 128 printable ASCII characters"),
    ..SQS
};

/// EventBridge: an event's detail has our metadata beside the data.
pub const EVENTBRIDGE: Carriage = Carriage {
    id: Named("detail.metadata"),
    message_type: Native("DetailType; over 128 bytes in detail.metadata"),
    source: Named("detail.metadata, and Source"),
    ordering_key: Named("detail.metadata"),
    time: Native("Time, in seconds; exactly in detail.metadata"),
    content_type: Named("detail.metadata"),
    content_encoding: Named("detail.metadata"),
    correlation_id: Named("detail.metadata"),
    reply_to: Named("detail.metadata"),
    expires_at: Named("detail.metadata"),
    priority: Named("detail.metadata"),
    idempotency_key: Named("detail.metadata"),
    failures: Named("detail.metadata"),
    text: Native("detail.data: a JSON value where it is compact JSON, else a string"),
    binary: Encoded("detail.data, in base64"),
    empty: Encoded("detail.metadata says so"),
    tombstone: Encoded("detail.metadata says so"),
    trace_headers: Named("detail.metadata.headers, and TraceHeader"),
    text_header: Named("detail.metadata.headers"),
    binary_header: Packed,
    null_header: Packed,
    repeated_header: Packed,
    odd_name: Named("detail.metadata.headers"),
    foreign_type: Packed,
    many_headers: Named("detail.metadata.headers"),
};
