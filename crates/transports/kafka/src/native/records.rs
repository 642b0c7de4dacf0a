//! Records, many a call: a queue of our own, to which the assigned partitions forward what they have fetched.
//!
//! The binding gives one record a call, each with an event to allocate, a clock to read and locks to take.
#![allow(
    unsafe_code,
    reason = "the binding has neither this kind of queue, nor a call that takes many records"
)]

use std::ffi::{CStr, CString};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::slice;
use std::time::Duration;

use rdkafka::bindings::{
    rd_kafka_consume_batch_queue, rd_kafka_header_get_all, rd_kafka_headers_t, rd_kafka_message_destroy,
    rd_kafka_message_headers, rd_kafka_message_t, rd_kafka_message_timestamp, rd_kafka_queue_destroy,
    rd_kafka_queue_forward, rd_kafka_queue_get_partition, rd_kafka_queue_new, rd_kafka_queue_t,
    rd_kafka_timestamp_type_t, rd_kafka_topic_name,
};
use rdkafka::client::Client;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::{ClientContext, Timestamp as Stamp};

use super::OK;

/// The queue. Drop it before its client.
pub(crate) struct Records {
    queue: NonNull<rd_kafka_queue_t>,
}

// SAFETY: librdkafka's queues may be used by any thread, and by several.
unsafe impl Send for Records {}
// SAFETY: as above.
unsafe impl Sync for Records {}

impl Records {
    /// `None` only where there is no memory.
    pub(crate) fn new<C: ClientContext>(client: &Client<C>) -> Option<Self> {
        // SAFETY: the client is alive; the queue is ours until it is destroyed.
        NonNull::new(unsafe { rd_kafka_queue_new(client.native_ptr()) }).map(|queue| Self { queue })
    }

    /// Has a partition's records come here. To be called before the partition is assigned, each time.
    pub(crate) fn forward<C: ClientContext>(&self, client: &Client<C>, topic: &str, partition: i32) {
        // A topic's name has no NUL.
        let Ok(topic) = CString::new(topic) else { return };
        // SAFETY: client, name and both queues are alive; what we hold of the partition's queue is given back, once.
        unsafe {
            let from = rd_kafka_queue_get_partition(client.native_ptr(), topic.as_ptr(), partition);
            if !from.is_null() {
                rd_kafka_queue_forward(from, self.queue.as_ptr());
                rd_kafka_queue_destroy(from);
            }
        }
    }

    /// Waits for a record, at most so long, and takes what there is, at most `N`. An error is of a partition.
    pub(crate) fn take<const N: usize>(
        &self,
        wait: Duration,
        mut each: impl FnMut(Result<Record<'_>, KafkaError>),
    ) {
        // It waits until it has as many as it was asked for: so for one, and then for none.
        let wait = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        if self.take_at_most::<1>(wait, &mut each) == 1 {
            self.take_at_most::<N>(0, &mut each);
        }
    }

    fn take_at_most<const N: usize>(
        &self,
        wait: i32,
        each: &mut impl FnMut(Result<Record<'_>, KafkaError>),
    ) -> usize {
        let mut taken = [ptr::null_mut(); N];
        // SAFETY: the queue is alive, and there is room for so many pointers.
        let count = unsafe { rd_kafka_consume_batch_queue(self.queue.as_ptr(), wait, taken.as_mut_ptr(), N) };
        // It is negative only for a broken queue.
        let count = usize::try_from(count).unwrap_or(0);
        for message in taken.iter().take(count).filter_map(|taken| NonNull::new(*taken)) {
            let message = Owned(message);
            // SAFETY: the message is ours, and nothing changes it, until it is dropped.
            let record = Record { message: unsafe { message.0.as_ref() }, life: PhantomData };
            each(match record.message.err {
                OK => Ok(record),
                code => Err(KafkaError::MessageConsumption(code.into())),
            });
        }
        count
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        // SAFETY: it is ours, and destroyed once, before its client; partitions that still forward hold on to it themselves.
        unsafe { rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

/// A message that is to be given back.
struct Owned(NonNull<rd_kafka_message_t>);

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: it is ours, and given back once.
        unsafe { rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}

/// A received record, in librdkafka's memory.
#[derive(Clone, Copy)]
pub(crate) struct Record<'a> {
    message: &'a rd_kafka_message_t,
    life: PhantomData<&'a [u8]>,
}

impl<'a> Record<'a> {
    /// One that the binding gave.
    pub(crate) fn of(message: &'a BorrowedMessage<'_>) -> Self {
        // SAFETY: the pointer is that of a message which the borrow keeps alive; nothing changes it meanwhile.
        Self { message: unsafe { &*message.ptr() }, life: PhantomData }
    }

    pub(crate) fn partition(&self) -> i32 {
        self.message.partition
    }

    pub(crate) fn offset(&self) -> i64 {
        self.message.offset
    }

    pub(crate) fn payload(&self) -> Option<&'a [u8]> {
        // SAFETY: null, or as many bytes as it says, in the message's memory.
        unsafe { bytes(self.message.payload.cast(), self.message.len) }
    }

    pub(crate) fn key(&self) -> Option<&'a [u8]> {
        // SAFETY: as above.
        unsafe { bytes(self.message.key.cast(), self.message.key_len) }
    }

    /// The topic's name; `None` where it is not UTF-8, which no topic's is.
    pub(crate) fn topic(&self) -> Option<&'a str> {
        // SAFETY: the message holds its topic, whose name is a C string that lives as long.
        unsafe { CStr::from_ptr(rd_kafka_topic_name(self.message.rkt)) }.to_str().ok()
    }

    /// Whether two are of the same partition of the same topic.
    pub(crate) fn is_beside(&self, topic: usize, partition: i32) -> bool {
        self.message.partition == partition && self.topic_id() == topic
    }

    /// What tells topics apart, as long as a record of the topic is held or the topic is assigned.
    pub(crate) fn topic_id(&self) -> usize {
        self.message.rkt.addr()
    }

    pub(crate) fn stamp(&self) -> Stamp {
        use rd_kafka_timestamp_type_t as Kind;
        let mut kind = Kind::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is alive; the call only reads it.
        let time = unsafe { rd_kafka_message_timestamp(self.message, &raw mut kind) };
        match kind {
            Kind::RD_KAFKA_TIMESTAMP_CREATE_TIME if time >= 0 => Stamp::CreateTime(time),
            Kind::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME if time >= 0 => Stamp::LogAppendTime(time),
            _ => Stamp::NotAvailable,
        }
    }

    /// Calls `each` with every header, in order: the name's bytes, and the value's, where it is not null. A name ends at
    /// its first NUL, because librdkafka keeps it as a C string.
    pub(crate) fn each_header(&self, mut each: impl FnMut(&[u8], Option<&[u8]>)) {
        let mut headers: *mut rd_kafka_headers_t = ptr::null_mut();
        // SAFETY: the message is alive, and owns its headers, which nothing changes meanwhile. `headers` is set where the call
        // succeeds.
        if unsafe { rd_kafka_message_headers(self.message, &raw mut headers) } != OK {
            return;
        }
        for index in 0.. {
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            // SAFETY: `headers` is valid, as above, and an index past the end is answered with an error. On success `name` is a
            // C string and `value` is null or points to `size` bytes, both owned by the headers.
            let (name, value) = unsafe {
                if rd_kafka_header_get_all(headers, index, &raw mut name, &raw mut value, &raw mut size) != OK
                {
                    return;
                }
                (CStr::from_ptr(name).to_bytes(), bytes(value.cast(), size))
            };
            each(name, value);
        }
    }
}

/// # Safety
///
/// `start` must be null, or point to so many bytes that live as long as `'a` and do not change.
unsafe fn bytes<'a>(start: *const u8, len: usize) -> Option<&'a [u8]> {
    // SAFETY: as the caller promises.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start, len) })
}
