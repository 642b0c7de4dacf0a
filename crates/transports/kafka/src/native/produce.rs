//! Messages into librdkafka without a copy of their payloads, and reports out of it, those that came together at once.
#![allow(
    unsafe_code,
    reason = "the binding copies each payload, looks each topic up by its name, and gives reports one by one"
)]

use std::ffi::{CStr, CString};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::bindings::{
    RD_KAFKA_EVENT_DR, RD_KAFKA_EVENT_ERROR, rd_kafka_error_code, rd_kafka_error_destroy,
    rd_kafka_event_destroy, rd_kafka_event_error, rd_kafka_event_error_string, rd_kafka_event_message_array,
    rd_kafka_event_message_count, rd_kafka_event_t, rd_kafka_event_type, rd_kafka_flush, rd_kafka_header_add,
    rd_kafka_headers_destroy, rd_kafka_headers_new, rd_kafka_headers_t, rd_kafka_message_status,
    rd_kafka_message_t, rd_kafka_msg_status_t, rd_kafka_produceva, rd_kafka_queue_destroy,
    rd_kafka_queue_get_main, rd_kafka_queue_poll, rd_kafka_queue_yield, rd_kafka_topic_destroy,
    rd_kafka_topic_new, rd_kafka_topic_t, rd_kafka_vtype_t as Kind, rd_kafka_vu_s as Value,
    rd_kafka_vu_s__bindgen_ty_1 as Content, rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 as Memory,
};
use rdkafka::client::Client;
use rdkafka::error::KafkaError;
use rdkafka::producer::ProducerContext;
use rdkafka::types::RDKafkaRespErr;
use throughline_core::Envelope;
use throughline_core::driver::Completions;

use super::OK;

/// A message that librdkafka has: it reads the payload here until there is a report.
pub(crate) struct Sent {
    pub(crate) envelope: Arc<Envelope>,
    /// Who waits for the report.
    pub(crate) done: Arc<Completions>,
    pub(crate) index: usize,
}

/// What became of a message: partition and offset, or the error and whether the brokers have certainly not stored it.
pub(crate) type Report = Result<(i32, i64), (KafkaError, bool)>;

/// A topic, looked up once. Drop it before its client.
pub(crate) struct Topic(NonNull<rd_kafka_topic_t>);

// SAFETY: librdkafka's topics may be used by any thread, and by several.
unsafe impl Send for Topic {}
// SAFETY: as above.
unsafe impl Sync for Topic {}

impl Topic {
    /// `None` where the name is none, or the client is ending.
    pub(crate) fn new<C: ClientContext>(client: &Client<C>, name: &str) -> Option<Self> {
        let name = CString::new(name).ok()?;
        // SAFETY: client and name are alive; without a configuration the topic has the client's.
        NonNull::new(unsafe { rd_kafka_topic_new(client.native_ptr(), name.as_ptr(), ptr::null_mut()) })
            .map(Self)
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        // SAFETY: it is ours, and given back once.
        unsafe { rd_kafka_topic_destroy(self.0.as_ptr()) }
    }
}

/// The headers of a message.
pub(crate) struct HeaderList(NonNull<rd_kafka_headers_t>);

// SAFETY: it is ours alone, and of no thread's.
unsafe impl Send for HeaderList {}

impl HeaderList {
    /// With room for so many. `None` only where there is no memory.
    pub(crate) fn new(capacity: usize) -> Option<Self> {
        // SAFETY: the list is ours until it is destroyed or handed over.
        NonNull::new(unsafe { rd_kafka_headers_new(capacity) }).map(Self)
    }

    /// Adds a header; the name need not be UTF-8.
    pub(crate) fn add(&mut self, name: &[u8], value: Option<&[u8]>) {
        let (bytes, size) = value.map_or((ptr::null(), 0), |value| (value.as_ptr(), value.len()));
        // SAFETY: the list is ours; name and value are copied. Slices are never longer than isize::MAX.
        let added = unsafe {
            rd_kafka_header_add(
                self.0.as_ptr(),
                name.as_ptr().cast(),
                name.len().cast_signed(),
                bytes.cast(),
                size.cast_signed(),
            )
        };
        // It fails only for a list that is read-only, which those of received messages are.
        debug_assert!(added == OK);
    }
}

impl Drop for HeaderList {
    fn drop(&mut self) {
        // SAFETY: it is ours, and destroyed once.
        unsafe { rd_kafka_headers_destroy(self.0.as_ptr()) }
    }
}

/// A message that librdkafka did not take, as it was.
pub(crate) struct Refused {
    pub(crate) error: KafkaError,
    pub(crate) sent: Box<Sent>,
    pub(crate) headers: HeaderList,
}

/// Queues a message; `stamp` is in ms. It comes back with a report, from [`reports`] or to the context's `delivery`.
pub(crate) fn produce<C: ProducerContext<DeliveryOpaque = Box<Sent>>>(
    client: &Client<C>,
    topic: &Topic,
    sent: Box<Sent>,
    stamp: Option<i64>,
    headers: HeaderList,
) -> Result<(), Box<Refused>> {
    fn memory(bytes: Option<&[u8]>) -> Content {
        let (start, size) = bytes.map_or((ptr::null(), 0), |bytes| (bytes.as_ptr(), bytes.len()));
        Content { mem: Memory { ptr: start.cast_mut().cast(), size } }
    }
    let sent = Box::into_raw(sent);
    // SAFETY: it was made from a box just now, which is taken back only when nothing uses this reference any more. The payload
    // does not move while the box holds it, and nobody changes it: librdkafka reads it until it gives the box back with the
    // report. Key and headers are copied or handed over. All values are of the kinds that they say.
    let code = unsafe {
        let envelope = &*(*sent).envelope;
        let values = [
            Value { vtype: Kind::RD_KAFKA_VTYPE_RKT, u: Content { rkt: topic.0.as_ptr() } },
            Value { vtype: Kind::RD_KAFKA_VTYPE_VALUE, u: memory(envelope.payload.as_deref()) },
            Value { vtype: Kind::RD_KAFKA_VTYPE_KEY, u: memory(envelope.ordering_key.as_deref()) },
            Value { vtype: Kind::RD_KAFKA_VTYPE_OPAQUE, u: Content { ptr: sent.cast() } },
            // 0 is now.
            Value { vtype: Kind::RD_KAFKA_VTYPE_TIMESTAMP, u: Content { i64_: stamp.unwrap_or(0) } },
            Value { vtype: Kind::RD_KAFKA_VTYPE_HEADERS, u: Content { headers: headers.0.as_ptr() } },
        ];
        let error = rd_kafka_produceva(client.native_ptr(), values.as_ptr(), values.len());
        if error.is_null() {
            std::mem::forget(headers);
            return Ok(());
        }
        let code = rd_kafka_error_code(error);
        rd_kafka_error_destroy(error);
        code
    };
    // SAFETY: librdkafka has not taken it, so that it is ours again.
    let sent = unsafe { Box::from_raw(sent) };
    Err(Box::new(Refused { error: KafkaError::MessageProduction(code.into()), sent, headers }))
}

/// Waits for reports, at most so long, and gives those that came together. Errors go to the context.
pub(crate) fn reports<C: ProducerContext<DeliveryOpaque = Box<Sent>>>(
    client: &Client<C>,
    wait: Duration,
) -> Vec<(Box<Sent>, Report)> {
    let wait = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client is alive; what we hold of its queue, and the event, are given back, once.
    let event = unsafe {
        let queue = rd_kafka_queue_get_main(client.native_ptr());
        let event = rd_kafka_queue_poll(queue, wait);
        rd_kafka_queue_destroy(queue);
        event
    };
    let Some(event) = NonNull::new(event).map(Event) else { return Vec::new() };
    // SAFETY: the event is ours, and lives as long as what is read of it. The text is a C string.
    match unsafe { rd_kafka_event_type(event.0.as_ptr()) } {
        RD_KAFKA_EVENT_DR => event.reports(),
        RD_KAFKA_EVENT_ERROR => unsafe {
            let code = rd_kafka_event_error(event.0.as_ptr());
            let reason = CStr::from_ptr(rd_kafka_event_error_string(event.0.as_ptr())).to_string_lossy();
            client.context().error(KafkaError::Global(code.into()), reason.trim());
            Vec::new()
        },
        // No other is asked for that matters here.
        _ => Vec::new(),
    }
}

/// Makes a wait for [`reports`] return at once: the present one, or the next.
pub(crate) fn wake<C: ClientContext>(client: &Client<C>) {
    // SAFETY: the client is alive; what we hold of its queue is given back, once.
    unsafe {
        let queue = rd_kafka_queue_get_main(client.native_ptr());
        rd_kafka_queue_yield(queue);
        rd_kafka_queue_destroy(queue);
    }
}

/// An event that is to be given back.
struct Event(NonNull<rd_kafka_event_t>);

impl Event {
    /// The reports of an event that has them.
    fn reports(&self) -> Vec<(Box<Sent>, Report)> {
        // SAFETY: the event is ours; as many pointers are written as there is room for, to messages that it owns.
        let messages = unsafe {
            let count = rd_kafka_event_message_count(self.0.as_ptr());
            let mut messages: Vec<*const rd_kafka_message_t> = vec![ptr::null(); count];
            let written = rd_kafka_event_message_array(self.0.as_ptr(), messages.as_mut_ptr(), count);
            messages.truncate(written);
            messages
        };
        let report = |message: *const rd_kafka_message_t| {
            // SAFETY: the message lives as long as its event. What it carries is the box that `produce` gave with it, and each
            // message is reported once.
            unsafe {
                let sent = Box::from_raw((*message)._private.cast::<Sent>());
                let report = match (*message).err {
                    OK => Ok(((*message).partition, (*message).offset)),
                    code => Err((KafkaError::MessageProduction(code.into()), is_surely_not_stored(message))),
                };
                (sent, report)
            }
        };
        messages.into_iter().map(report).collect()
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it is ours, and destroyed once.
        unsafe { rd_kafka_event_destroy(self.0.as_ptr()) }
    }
}

/// Whether the broker has certainly not stored a message whose delivery failed.
///
/// # Safety
///
/// The message must be alive.
pub(super) unsafe fn is_surely_not_stored(message: *const rd_kafka_message_t) -> bool {
    // SAFETY: as the caller promises; the call only reads it.
    let status = unsafe { rd_kafka_message_status(message) };
    status == rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}

/// Sends at once what waits for others to go with it, and returns when all is reported, at most so long later.
pub(crate) fn flush<C: ClientContext>(client: &Client<C>, wait: Duration) {
    // SAFETY: the client is alive. That the time is over is no error here.
    let _: RDKafkaRespErr =
        unsafe { rd_kafka_flush(client.native_ptr(), i32::try_from(wait.as_millis()).unwrap_or(i32::MAX)) };
}
