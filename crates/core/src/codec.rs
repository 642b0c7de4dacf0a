//! Typed payloads: how a value becomes a message body and comes back.

use std::any::type_name;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

/// A payload format. [`Json`] is built in; implement this for another (MessagePack, CBOR, Avro…).
pub trait Codec {
    /// The content type that messages in this format carry.
    const CONTENT_TYPE: &'static str;

    /// A value's bytes.
    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Bytes>;

    /// The value in the bytes. The error must not repeat the payload.
    fn decode<T: DeserializeOwned>(&self, payload: &[u8]) -> Result<T>;
}

/// JSON (RFC 8259), as `application/json`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

impl Codec for Json {
    const CONTENT_TYPE: &'static str = "application/json";

    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Bytes> {
        let bytes = serde_json::to_vec(value).map_err(|error| {
            Error::new(ErrorKind::InvalidMessage, format!("{} cannot be written as JSON", type_name::<T>()))
                .with_source(error)
        })?;
        Ok(bytes.into())
    }

    fn decode<T: DeserializeOwned>(&self, payload: &[u8]) -> Result<T> {
        // serde_json's own text quotes the payload, so only its place and category are told.
        serde_json::from_slice(payload).map_err(|error| {
            let what = match error.classify() {
                serde_json::error::Category::Data => "JSON of another shape than",
                _ => "not the JSON of",
            };
            Error::new(
                ErrorKind::Undecodable,
                format!(
                    "the payload is {what} {} (line {}, column {})",
                    type_name::<T>(),
                    error.line(),
                    error.column()
                ),
            )
        })
    }
}
