//! An envelope as a row, and back.

use bytes::Bytes;
use rusqlite::types::{ToSql, ValueRef};
use rusqlite::{Row, Statement};
use throughline_core::driver::wire;
use throughline_core::headers::{BAGGAGE, TRACEPARENT, TRACESTATE};
use throughline_core::pack::{PACKED_HEADER, Packed};
use throughline_core::{Envelope, HeaderValue, Headers, History, IdOrigin, Timestamp};

/// The columns of the envelope, in the order in which they are bound and read: those that nearly every message has, and
/// then the [`rare_columns`].
macro_rules! envelope_columns {
    () => {
        concat!("message_id, type, time, content_type, traceparent, payload, ", crate::codec::rare_columns!())
    };
}
pub(crate) use envelope_columns;

/// The columns that most messages leave empty: looking at each of them takes longer than asking first whether any is set.
macro_rules! rare_columns {
    () => {
        "id_origin, source, content_encoding, correlation_id, reply_to, expires, priority, idempotency_key, tracestate, \
         baggage, headers"
    };
}
pub(crate) use rare_columns;

/// How many columns of the envelope there are.
pub(crate) const COLUMNS: usize = 17;

/// Which parameters of a statement hold a value: those that are NULL, and are to be so again, are left alone.
#[derive(Default)]
pub(crate) struct Bound(u32);

impl Bound {
    pub(crate) fn bind<T: ToSql>(
        &mut self,
        statement: &mut Statement<'_>,
        index: usize,
        value: Option<T>,
    ) -> rusqlite::Result<()> {
        let bit = 1 << index;
        if value.is_none() && self.0 & bit == 0 {
            return Ok(());
        }
        self.0 = if value.is_some() { self.0 | bit } else { self.0 & !bit };
        statement.raw_bind_parameter(index, value)
    }
}

/// Binds an envelope's columns, from parameter `at` on.
pub(crate) fn bind(
    statement: &mut Statement<'_>,
    bound: &mut Bound,
    at: usize,
    envelope: &Envelope,
) -> rusqlite::Result<()> {
    let (trace, headers) = split(&envelope.headers);
    let origin = match envelope.id_origin {
        IdOrigin::Envelope => None,
        IdOrigin::Broker => Some(1),
        IdOrigin::Synthetic => Some(2),
    };
    let mut index = at;
    macro_rules! bind {
        ($($value:expr),* $(,)?) => {$(
            bound.bind(statement, index, $value)?;
            index += 1;
        )*};
    }
    let [traceparent, tracestate, baggage] = trace;
    bind!(
        Some(envelope.id.as_str()),
        envelope.message_type.as_deref(),
        envelope.time.map(Timestamp::as_millis),
        envelope.content_type.as_deref(),
        traceparent,
        envelope.payload.as_deref(),
        origin,
        envelope.source.as_deref(),
        envelope.content_encoding.as_deref(),
        envelope.correlation_id.as_deref(),
        envelope.reply_to.as_deref(),
        envelope.expires_at.map(Timestamp::as_millis),
        envelope.priority,
        envelope.idempotency_key.as_deref(),
        tracestate,
        baggage,
        headers,
    );
    debug_assert_eq!(index, at + COLUMNS);
    Ok(())
}

/// The trace headers that have a column of their own, and all others as JSON. One that comes twice, or in another spelling,
/// stays among the others: which of them counts depends on their order.
fn split(headers: &Headers) -> ([Option<&str>; 3], Option<String>) {
    if headers.is_empty() {
        return ([None; 3], None);
    }
    let column = |name: &str| {
        let mut same = headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        match (same.next(), same.next()) {
            (Some((exact, HeaderValue::Text(text))), None) if exact == name => Some(text.as_str()),
            _ => None,
        }
    };
    let trace = [TRACEPARENT, TRACESTATE, BAGGAGE].map(column);
    let [traceparent, tracestate, baggage] = trace.map(|value| value.is_some());
    let is_column = |name: &str| match name {
        TRACEPARENT => traceparent,
        TRACESTATE => tracestate,
        BAGGAGE => baggage,
        _ => false,
    };
    let others: Headers = headers
        .iter()
        .filter(|(name, _)| !is_column(name))
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .collect();
    let others = (!others.is_empty()).then(|| Packed { headers: others, ..Packed::default() }.to_text());
    (trace, others)
}

/// Reads an envelope whose columns begin at `at`. Any row is one: what a foreign hand wrote is taken for what it most
/// likely means, and what cannot be read stays as it is. `id` is the row's own; its key is not here. `rare` tells whether
/// one of the rare columns may be set.
pub(crate) fn read(row: &Row<'_>, at: usize, id: i64, rare: bool) -> rusqlite::Result<Envelope> {
    let text = |index: usize| row.get_ref(at + index).map(text);
    let number = |index: usize| row.get_ref(at + index).map(number);
    let mut envelope = match text(0)? {
        Some(message_id) if !message_id.is_empty() => Envelope::foreign(message_id, None),
        _ => {
            let mut envelope = Envelope::foreign(id.to_string(), None);
            envelope.id_origin = IdOrigin::Broker;
            envelope
        }
    };
    envelope.message_type = text(1)?;
    envelope.time = number(2)?.map(Timestamp::from_millis);
    envelope.content_type = text(3)?;
    if let Some(value) = text(4)? {
        envelope.headers.append(TRACEPARENT, value);
    }
    envelope.payload = bytes(row.get_ref(at + 5)?);
    if !rare {
        return Ok(envelope);
    }
    match number(6)? {
        Some(1) => envelope.id_origin = IdOrigin::Broker,
        Some(2) => envelope.id_origin = IdOrigin::Synthetic,
        _ => {}
    }
    envelope.source = text(7)?;
    envelope.content_encoding = text(8)?;
    envelope.correlation_id = text(9)?;
    envelope.reply_to = text(10)?;
    envelope.expires_at = number(11)?.map(Timestamp::from_millis);
    envelope.priority = number(12)?.map(|priority| u8::try_from(priority.clamp(0, 255)).unwrap_or(u8::MAX));
    envelope.idempotency_key = text(13)?;
    for (index, name) in [(14, TRACESTATE), (15, BAGGAGE)] {
        if let Some(value) = text(index)? {
            envelope.headers.append(name, value);
        }
    }
    if let Some(packed) = text(16)? {
        match Packed::from_text(&packed) {
            Some(packed) => envelope.headers.extend(packed.headers),
            None => envelope.headers.append(PACKED_HEADER, packed),
        }
    }
    Ok(envelope)
}

/// A history's column; one that cannot be read is none.
pub(crate) fn history(value: ValueRef<'_>) -> Option<History> {
    text(value).as_deref().and_then(History::from_header)
}

/// The native details of a dead letter, from its two columns.
pub(crate) fn dead_letter(source: ValueRef<'_>, reason: ValueRef<'_>) -> Vec<(&'static str, String)> {
    let of = |name, value| text(value).map(|text| (name, text));
    [of(wire::DEAD_LETTER_SOURCE, source), of(wire::DEAD_LETTER_REASON, reason)]
        .into_iter()
        .flatten()
        .collect()
}

fn text(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
        ValueRef::Text(text) | ValueRef::Blob(text) => Some(String::from_utf8_lossy(text).into_owned()),
    }
}

fn number(value: ValueRef<'_>) -> Option<i64> {
    match value {
        ValueRef::Integer(number) => Some(number),
        #[expect(clippy::cast_possible_truncation, reason = "saturates; a foreign hand wrote it")]
        ValueRef::Real(number) => Some(number as i64),
        ValueRef::Text(text) => std::str::from_utf8(text).ok()?.trim().parse().ok(),
        ValueRef::Null | ValueRef::Blob(_) => None,
    }
}

/// A payload or a key.
pub(crate) fn bytes(value: ValueRef<'_>) -> Option<Bytes> {
    match value {
        ValueRef::Null => None,
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(Bytes::copy_from_slice(bytes)),
        ValueRef::Integer(number) => Some(number.to_string().into()),
        ValueRef::Real(number) => Some(number.to_string().into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::Connection;
    use rusqlite::types::Value;

    use super::*;

    fn table() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(&format!("CREATE TABLE t ({})", envelope_columns!())).unwrap();
        connection
    }

    /// Writes an envelope, and reads it back.
    fn round_trip(envelope: &Envelope) -> Envelope {
        let connection = table();
        let places: Vec<_> = (1..=COLUMNS).map(|n| format!("?{n}")).collect();
        let mut insert =
            connection.prepare(&format!("INSERT INTO t VALUES ({})", places.join(", "))).unwrap();
        bind(&mut insert, &mut Bound::default(), 1, envelope).unwrap();
        insert.raw_execute().unwrap();
        first(&connection)
    }

    fn first(connection: &Connection) -> Envelope {
        let select =
            concat!("SELECT coalesce(", rare_columns!(), ") IS NOT NULL, ", envelope_columns!(), " FROM t");
        connection.query_row(select, [], |row| read(row, 1, 7, row.get(0)?)).unwrap()
    }

    fn blob() -> impl Strategy<Value = bytes::Bytes> {
        any::<Vec<u8>>().prop_map(bytes::Bytes::from)
    }

    fn value() -> impl Strategy<Value = HeaderValue> {
        prop_oneof![
            any::<String>().prop_map(HeaderValue::Text),
            blob().prop_map(HeaderValue::Bytes),
            Just(HeaderValue::Null),
            (any::<String>(), any::<String>())
                .prop_map(|(kind, text)| HeaderValue::Typed { kind: kind.into(), text }),
        ]
    }

    fn name() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            Just("traceparent".to_owned()),
            Just("TraceParent".to_owned()),
            Just("tracestate".to_owned()),
            Just("baggage".to_owned()),
            Just("tl-headers".to_owned()),
        ]
    }

    prop_compose! {
        fn envelope()(
            id in "\\PC{1,9}",
            origin in prop_oneof![Just(IdOrigin::Envelope), Just(IdOrigin::Broker), Just(IdOrigin::Synthetic)],
            texts in prop::collection::vec(any::<Option<String>>(), 7),
            numbers in (any::<Option<i64>>(), any::<Option<i64>>(), any::<Option<u8>>()),
            headers in prop::collection::vec((name(), value()), 0..6),
            payload in prop::option::of(blob()),
        ) -> Envelope {
            let mut envelope = Envelope::foreign(id, payload);
            let mut texts = texts.into_iter();
            let mut text = || texts.next().flatten();
            envelope.id_origin = origin;
            envelope.message_type = text();
            envelope.source = text();
            envelope.content_type = text();
            envelope.content_encoding = text();
            envelope.correlation_id = text();
            envelope.reply_to = text();
            envelope.idempotency_key = text();
            envelope.time = numbers.0.map(Timestamp::from_millis);
            envelope.expires_at = numbers.1.map(Timestamp::from_millis);
            envelope.priority = numbers.2;
            envelope.headers = headers.into_iter().collect();
            envelope
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::Integer),
            any::<f64>().prop_map(Value::Real),
            any::<String>().prop_map(Value::Text),
            any::<Vec<u8>>().prop_map(Value::Blob),
        ]
    }

    proptest! {
        #[test]
        fn every_envelope_comes_back_as_it_was(envelope in envelope()) {
            let back = round_trip(&envelope);
            prop_assert_eq!(&back, &envelope);
            // Which spelling of a trace header counts is its order's doing.
            for name in [TRACEPARENT, TRACESTATE, BAGGAGE] {
                prop_assert_eq!(back.headers.trace(name), envelope.headers.trace(name));
            }
        }

        #[test]
        fn whatever_a_row_holds_it_is_an_envelope(values in prop::collection::vec(any_value(), COLUMNS)) {
            let connection = table();
            let places: Vec<_> = (1..=COLUMNS).map(|n| format!("?{n}")).collect();
            let insert = format!("INSERT INTO t VALUES ({})", places.join(", "));
            connection.execute(&insert, rusqlite::params_from_iter(values)).unwrap();
            let envelope = first(&connection);
            prop_assert!(envelope.validate().is_ok());
            prop_assert_eq!(round_trip(&envelope), envelope);
        }
    }

    #[test]
    fn a_row_without_an_id_is_known_by_its_place() {
        let connection = table();
        connection.execute("INSERT INTO t (payload, headers) VALUES ('text', '{\"h\":')", []).unwrap();
        let envelope = first(&connection);
        assert_eq!((envelope.id.as_str(), envelope.id_origin), ("7", IdOrigin::Broker));
        assert_eq!(envelope.headers.get_str(PACKED_HEADER), Some("{\"h\":"));
        assert_eq!(envelope.payload.as_deref(), Some(b"text".as_slice()));
    }
}
