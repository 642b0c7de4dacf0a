//! AMQP 0.9.1 field values as header values, and back.
//!
//! What [`HeaderValue`] has a kind for is that kind: a UTF-8 string, bytes, nothing. All else is
//! [`HeaderValue::Typed`] with a canonical text, so that it goes back as it came:
//!
//! | kind | text |
//! |---|---|
//! | `amqp:bool` | `true`, `false` |
//! | `amqp:i8` `u8` `i16` `u16` `i32` `u32` `i64` | decimal |
//! | `amqp:f32` `amqp:f64` | the shortest that reads back the same; `NaN:` and the bits in hexadecimal |
//! | `amqp:decimal` | as many decimals as its scale: `12.50` |
//! | `amqp:timestamp` | seconds since the epoch |
//! | `amqp:string` | a string that is not UTF-8, in base64 |
//! | `amqp:array` | JSON array of values |
//! | `amqp:table` | JSON object of values |
//!
//! A value within an array or table is a JSON string, `null`, boolean or array, or an object of one member that names the
//! type: `{"i32":7}`, `{"f64":"1.5"}`, `{"bytes":base64}`, `{"table":{…}}`.

use std::borrow::Cow;
use std::fmt::Write;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, ShortString};
use serde_json::Value as Json;
use throughline_core::HeaderValue;

/// A received value as a header's. Never fails.
pub(crate) fn from_amqp(value: &AMQPValue) -> HeaderValue {
    match value {
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => HeaderValue::Text(text.to_owned()),
            Err(_) => typed("amqp:string", BASE64.encode(text.as_bytes())),
        },
        // Never on the wire: RabbitMQ reads its tag as a 16-bit integer.
        AMQPValue::ShortString(text) => HeaderValue::Text(text.to_string()),
        AMQPValue::ByteArray(bytes) => HeaderValue::Bytes(Bytes::copy_from_slice(bytes.as_slice())),
        AMQPValue::Void => HeaderValue::Null,
        AMQPValue::FieldArray(array) => {
            let mut text = String::new();
            write_array(&mut text, array);
            typed("amqp:array", text)
        }
        AMQPValue::FieldTable(table) => {
            let mut text = String::new();
            write_table(&mut text, table);
            typed("amqp:table", text)
        }
        scalar => typed(kind_of(scalar), scalar_text(scalar)),
    }
}

/// A typed header of ours as a native value. `None` where it is another transport's, or not in the canonical form, which
/// could not be told apart on its way back.
pub(crate) fn to_amqp(kind: &str, text: &str) -> Option<AMQPValue> {
    let value = match kind.strip_prefix("amqp:")? {
        "array" => array(&serde_json::from_str(text).ok()?)?,
        "table" => table(&serde_json::from_str(text).ok()?)?,
        scalar => parse_scalar(scalar, text)?,
    };
    match from_amqp(&value) {
        HeaderValue::Typed { kind: again, text: canonical } if again == kind && canonical == text => {
            Some(value)
        }
        _ => None,
    }
}

/// The bytes of a value on the wire, with the byte for its type.
pub(crate) fn size(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldArray(array) => 4 + array.as_slice().iter().map(size).sum::<usize>(),
        AMQPValue::FieldTable(table) => {
            4 + table.into_iter().map(|(name, value)| 1 + name.as_str().len() + size(value)).sum::<usize>()
        }
        AMQPValue::Void => 0,
    }
}

fn typed(kind: &'static str, text: String) -> HeaderValue {
    HeaderValue::Typed { kind: Cow::Borrowed(kind), text }
}

fn kind_of(value: &AMQPValue) -> &'static str {
    match value {
        AMQPValue::Boolean(_) => "amqp:bool",
        AMQPValue::ShortShortInt(_) => "amqp:i8",
        AMQPValue::ShortShortUInt(_) => "amqp:u8",
        AMQPValue::ShortInt(_) => "amqp:i16",
        AMQPValue::ShortUInt(_) => "amqp:u16",
        AMQPValue::LongInt(_) => "amqp:i32",
        AMQPValue::LongUInt(_) => "amqp:u32",
        AMQPValue::LongLongInt(_) => "amqp:i64",
        AMQPValue::Float(_) => "amqp:f32",
        AMQPValue::Double(_) => "amqp:f64",
        AMQPValue::DecimalValue(_) => "amqp:decimal",
        AMQPValue::Timestamp(_) => "amqp:timestamp",
        AMQPValue::ShortString(_) | AMQPValue::LongString(_) => "amqp:string",
        AMQPValue::ByteArray(_) => "amqp:bytes",
        AMQPValue::FieldArray(_) => "amqp:array",
        AMQPValue::FieldTable(_) => "amqp:table",
        AMQPValue::Void => "amqp:void",
    }
}

fn scalar_text(value: &AMQPValue) -> String {
    match value {
        AMQPValue::Boolean(v) => v.to_string(),
        AMQPValue::ShortShortInt(v) => v.to_string(),
        AMQPValue::ShortShortUInt(v) => v.to_string(),
        AMQPValue::ShortInt(v) => v.to_string(),
        AMQPValue::ShortUInt(v) => v.to_string(),
        AMQPValue::LongInt(v) => v.to_string(),
        AMQPValue::LongUInt(v) => v.to_string(),
        AMQPValue::LongLongInt(v) => v.to_string(),
        AMQPValue::Timestamp(v) => v.to_string(),
        AMQPValue::Float(v) if v.is_nan() => format!("NaN:{:08x}", v.to_bits()),
        AMQPValue::Float(v) => format!("{v:?}"),
        AMQPValue::Double(v) if v.is_nan() => format!("NaN:{:016x}", v.to_bits()),
        AMQPValue::Double(v) => format!("{v:?}"),
        AMQPValue::DecimalValue(decimal) => decimal_text(*decimal),
        AMQPValue::LongString(text) => BASE64.encode(text.as_bytes()),
        AMQPValue::ShortString(text) => text.to_string(),
        AMQPValue::ByteArray(bytes) => BASE64.encode(bytes.as_slice()),
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) | AMQPValue::Void => String::new(),
    }
}

fn parse_scalar(kind: &str, text: &str) -> Option<AMQPValue> {
    fn number<T: FromStr>(text: &str) -> Option<T> {
        text.parse().ok()
    }
    Some(match kind {
        "bool" => AMQPValue::Boolean(number(text)?),
        "i8" => AMQPValue::ShortShortInt(number(text)?),
        "u8" => AMQPValue::ShortShortUInt(number(text)?),
        "i16" => AMQPValue::ShortInt(number(text)?),
        "u16" => AMQPValue::ShortUInt(number(text)?),
        "i32" => AMQPValue::LongInt(number(text)?),
        "u32" => AMQPValue::LongUInt(number(text)?),
        "i64" => AMQPValue::LongLongInt(number(text)?),
        "timestamp" => AMQPValue::Timestamp(number(text)?),
        "f32" => AMQPValue::Float(match text.strip_prefix("NaN:") {
            Some(bits) => f32::from_bits(u32::from_str_radix(bits, 16).ok()?),
            None => number(text)?,
        }),
        "f64" => AMQPValue::Double(match text.strip_prefix("NaN:") {
            Some(bits) => f64::from_bits(u64::from_str_radix(bits, 16).ok()?),
            None => number(text)?,
        }),
        "decimal" => AMQPValue::DecimalValue(parse_decimal(text)?),
        "string" => AMQPValue::LongString(BASE64.decode(text).ok()?.into()),
        "bytes" => AMQPValue::ByteArray(BASE64.decode(text).ok()?.into()),
        _ => return None,
    })
}

fn decimal_text(DecimalValue { scale, value }: DecimalValue) -> String {
    let scale = usize::from(scale);
    let mut digits = format!("{value:0width$}", width = scale + 1);
    if scale > 0 {
        digits.insert(digits.len() - scale, '.');
    }
    digits
}

fn parse_decimal(text: &str) -> Option<DecimalValue> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{whole}{decimals}");
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(DecimalValue { scale: u8::try_from(decimals.len()).ok()?, value: digits.parse().ok()? })
}

fn write_array(out: &mut String, array: &FieldArray) {
    out.push('[');
    for (index, value) in array.as_slice().iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_value(out, value);
    }
    out.push(']');
}

fn write_table(out: &mut String, table: &FieldTable) {
    out.push('{');
    for (index, (name, value)) in table.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_json_string(out, name.as_str());
        out.push(':');
        write_value(out, value);
    }
    out.push('}');
}

fn write_value(out: &mut String, value: &AMQPValue) {
    let named = |out: &mut String, quoted: bool| {
        let kind = kind_of(value).trim_start_matches("amqp:");
        let text = scalar_text(value);
        // Writing to a string cannot fail.
        let _ = if quoted {
            write!(out, r#"{{"{kind}":"{text}"}}"#)
        } else {
            write!(out, r#"{{"{kind}":{text}}}"#)
        };
    };
    match value {
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => write_json_string(out, text),
            Err(_) => named(out, true),
        },
        AMQPValue::ShortString(text) => write_json_string(out, text.as_str()),
        AMQPValue::Void => out.push_str("null"),
        AMQPValue::Boolean(v) => out.push_str(if *v { "true" } else { "false" }),
        AMQPValue::FieldArray(array) => write_array(out, array),
        AMQPValue::FieldTable(table) => {
            out.push_str(r#"{"table":"#);
            write_table(out, table);
            out.push('}');
        }
        AMQPValue::Float(_) | AMQPValue::Double(_) | AMQPValue::DecimalValue(_) | AMQPValue::ByteArray(_) => {
            named(out, true);
        }
        _ => named(out, false),
    }
}

fn write_json_string(out: &mut String, text: &str) {
    out.push_str(&Json::from(text).to_string());
}

fn array(json: &Json) -> Option<AMQPValue> {
    let values: Option<Vec<_>> = json.as_array()?.iter().map(value).collect();
    Some(AMQPValue::FieldArray(values?.into()))
}

fn table(json: &Json) -> Option<AMQPValue> {
    let mut table = FieldTable::default();
    for (name, member) in json.as_object()? {
        table.insert(ShortString::try_new(name.as_str()).ok()?, value(member)?);
    }
    Some(AMQPValue::FieldTable(table))
}

fn value(json: &Json) -> Option<AMQPValue> {
    Some(match json {
        Json::Null => AMQPValue::Void,
        Json::Bool(v) => AMQPValue::Boolean(*v),
        Json::String(text) => AMQPValue::LongString(text.as_str().into()),
        Json::Array(_) => array(json)?,
        Json::Number(_) => return None,
        Json::Object(members) => {
            let (kind, inner) = members.iter().next().filter(|_| members.len() == 1)?;
            match (kind.as_str(), inner) {
                ("table", inner) => table(inner)?,
                (kind, Json::String(text)) => parse_scalar(kind, text)?,
                (kind, Json::Number(number)) => parse_scalar(kind, &number.to_string())?,
                _ => return None,
            }
        }
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every kind of value that can be on the wire, nested.
    pub(crate) fn any_value() -> impl Strategy<Value = AMQPValue> {
        let scalar = prop_oneof![
            any::<bool>().prop_map(AMQPValue::Boolean),
            any::<i8>().prop_map(AMQPValue::ShortShortInt),
            any::<u8>().prop_map(AMQPValue::ShortShortUInt),
            any::<i16>().prop_map(AMQPValue::ShortInt),
            any::<u16>().prop_map(AMQPValue::ShortUInt),
            any::<i32>().prop_map(AMQPValue::LongInt),
            any::<u32>().prop_map(AMQPValue::LongUInt),
            any::<i64>().prop_map(AMQPValue::LongLongInt),
            any::<u32>().prop_map(|bits| AMQPValue::Float(f32::from_bits(bits))),
            any::<u64>().prop_map(|bits| AMQPValue::Double(f64::from_bits(bits))),
            (any::<u8>(), any::<u32>())
                .prop_map(|(scale, value)| AMQPValue::DecimalValue(DecimalValue { scale, value })),
            any::<u64>().prop_map(AMQPValue::Timestamp),
            any::<String>().prop_map(|text| AMQPValue::LongString(text.into())),
            any::<Vec<u8>>().prop_map(|bytes| AMQPValue::LongString(bytes.into())),
            any::<Vec<u8>>().prop_map(|bytes| AMQPValue::ByteArray(bytes.into())),
            Just(AMQPValue::Void),
        ];
        scalar.prop_recursive(4, 24, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(|v| AMQPValue::FieldArray(v.into())),
                prop::collection::btree_map("\\PC{0,20}", inner, 0..5).prop_map(|members| {
                    let mut table = FieldTable::default();
                    for (name, value) in members {
                        table.insert(ShortString::try_new(name).unwrap(), value);
                    }
                    AMQPValue::FieldTable(table)
                }),
            ]
        })
    }

    /// Bit for bit, which `==` on floats is not.
    fn wire(value: &AMQPValue) -> Vec<u8> {
        let generated = lapin::types::generation::gen_value::<Vec<u8>>(value)(Vec::new().into());
        generated.unwrap().into_inner().0
    }

    proptest! {
        #[test]
        fn every_native_value_comes_back_bit_for_bit(value in any_value()) {
            let back = match from_amqp(&value) {
                HeaderValue::Typed { kind, text } => to_amqp(&kind, &text).unwrap(),
                HeaderValue::Text(text) => AMQPValue::LongString(text.into()),
                HeaderValue::Bytes(bytes) => AMQPValue::ByteArray(bytes.to_vec().into()),
                HeaderValue::Null => AMQPValue::Void,
            };
            prop_assert_eq!(wire(&back), wire(&value));
            prop_assert_eq!(wire(&value).len(), size(&value));
        }

        #[test]
        fn no_text_panics_and_what_is_taken_is_canonical(
            kind in "amqp:(bool|i8|u64|i64|f32|f64|decimal|timestamp|string|bytes|array|table|void)",
            text in "\\PC{0,12}|-?0{0,2}[0-9]{1,4}(\\.[0-9]{1,3})?|[\\[{\"a:,0-9}\\]]{0,12}",
        ) {
            if let Some(value) = to_amqp(&kind, &text) {
                let typed = HeaderValue::Typed { kind: kind.into(), text };
                prop_assert_eq!(from_amqp(&value), typed);
            }
        }
    }

    #[test]
    fn texts_are_readable_and_other_spellings_are_left_to_the_packed_header() {
        let mut inner = FieldTable::default();
        inner.insert("n".into(), AMQPValue::LongInt(7));
        let array = AMQPValue::FieldArray(
            vec!["a", "ü"]
                .into_iter()
                .map(|s| AMQPValue::LongString(s.into()))
                .chain([
                    AMQPValue::Void,
                    AMQPValue::Boolean(true),
                    AMQPValue::Double(1.5),
                    AMQPValue::FieldTable(inner),
                ])
                .collect::<Vec<_>>()
                .into(),
        );
        let expected = r#"["a","ü",null,true,{"f64":"1.5"},{"table":{"n":{"i32":7}}}]"#;
        assert_eq!(from_amqp(&array).as_str(), Some(expected));
        let decimal = DecimalValue { scale: 2, value: 5 };
        assert_eq!(from_amqp(&AMQPValue::DecimalValue(decimal)).as_str(), Some("0.05"));
        assert!(to_amqp("amqp:i32", "7").is_some());
        for (kind, text) in [
            ("amqp:i32", "007"),
            ("amqp:i32", "+7"),
            ("amqp:i8", "300"),
            ("amqp:bool", "yes"),
            ("amqp:array", r#"[ "a" ]"#),
            ("amqp:string", "YQ=="),
            ("kafka:i32", "7"),
            ("sqs:Number", "7"),
        ] {
            assert_eq!(to_amqp(kind, text), None, "{kind} {text}");
        }
    }
}
