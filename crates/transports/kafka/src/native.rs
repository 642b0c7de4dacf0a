//! The few calls of librdkafka that its Rust binding does not offer, or offers at the price of a panic.
#![allow(
    unsafe_code,
    reason = "the binding panics on a header name and on metadata that are not UTF-8, cannot write such a name, does not \
              tell whether a message that failed may have been stored, nor how an asynchronous commit ended"
)]

use std::ffi::CStr;
use std::ptr;
use std::slice;

use rdkafka::bindings::{
    rd_kafka_commit_queue, rd_kafka_header_add, rd_kafka_header_get_all, rd_kafka_headers_t,
    rd_kafka_message_headers, rd_kafka_message_status, rd_kafka_msg_status_t, rd_kafka_queue_destroy,
    rd_kafka_queue_get_main, rd_kafka_resp_err_t,
};
use rdkafka::client::Client;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, OwnedHeaders};
use rdkafka::{ClientContext, TopicPartitionList};

const OK: rd_kafka_resp_err_t = rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;

/// Whether the broker has certainly not stored a message whose delivery failed.
pub(crate) fn is_surely_not_stored(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the pointer is that of a message which the borrow keeps alive; the call only reads it.
    let status = unsafe { rd_kafka_message_status(message.ptr()) };
    status == rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}

/// Calls `each` with every header, in order: the name's bytes, and the value's, where it is not null. A name ends at its
/// first NUL, because librdkafka keeps it as a C string.
pub(crate) fn each_header(message: &BorrowedMessage<'_>, mut each: impl FnMut(&[u8], Option<&[u8]>)) {
    let mut headers: *mut rd_kafka_headers_t = ptr::null_mut();
    // SAFETY: the message lives as long as the borrow, and its headers, which it owns, with it; nothing changes them
    // meanwhile. `headers` is set where the call succeeds.
    if unsafe { rd_kafka_message_headers(message.ptr(), &raw mut headers) } != OK {
        return;
    }
    for index in 0.. {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: `headers` is valid, as above, and an index past the end is answered with an error. On success `name` is a C
        // string and `value` is null or points to `size` bytes, both owned by the headers.
        let (name, value) = unsafe {
            if rd_kafka_header_get_all(headers, index, &raw mut name, &raw mut value, &raw mut size) != OK {
                return;
            }
            let value = (!value.is_null()).then(|| slice::from_raw_parts(value.cast::<u8>(), size));
            (CStr::from_ptr(name).to_bytes(), value)
        };
        each(name, value);
    }
}

/// What is kept with the positions of a list, in its order.
pub(crate) fn metadata(positions: &TopicPartitionList) -> Vec<Vec<u8>> {
    (0..positions.count())
        .map(|index| {
            // SAFETY: the list is alive, has `count` elements, and nothing changes it meanwhile; an element's metadata is null or
            // points to as many bytes as it says.
            unsafe {
                let element = &*(*positions.ptr()).elems.add(index);
                if element.metadata.is_null() {
                    return Vec::new();
                }
                slice::from_raw_parts(element.metadata.cast::<u8>(), element.metadata_size).to_vec()
            }
        })
        .collect()
}

/// Commits, and has the context's `commit_callback` called with the outcome by a later poll.
pub(crate) fn commit<C: ClientContext>(
    client: &Client<C>,
    positions: &TopicPartitionList,
) -> Result<(), KafkaError> {
    // SAFETY: client and list outlive the calls, and the list is copied. The queue is the client's own: what we hold of it is
    // given back, once, and the commit keeps it for as long as it needs it.
    let code = unsafe {
        let queue = rd_kafka_queue_get_main(client.native_ptr());
        let code = rd_kafka_commit_queue(client.native_ptr(), positions.ptr(), queue, None, ptr::null_mut());
        rd_kafka_queue_destroy(queue);
        code
    };
    if code == OK { Ok(()) } else { Err(KafkaError::ConsumerCommit(code.into())) }
}

/// Adds a header; the name need not be UTF-8.
pub(crate) fn add_header(headers: &mut OwnedHeaders, name: &[u8], value: Option<&[u8]>) {
    let list = ptr::from_ref(headers.as_borrowed()).cast_mut().cast::<rd_kafka_headers_t>();
    let (bytes, size) = value.map_or((ptr::null(), 0), |value| (value.as_ptr(), value.len()));
    // SAFETY: the binding's reference is librdkafka's pointer by another name (it has no fields of its own), and the list is
    // owned by `headers`, which is borrowed mutably here. Name and value are copied. Slices are never longer than isize::MAX.
    let added = unsafe {
        rd_kafka_header_add(
            list,
            name.as_ptr().cast(),
            name.len().cast_signed(),
            bytes.cast(),
            size.cast_signed(),
        )
    };
    // It fails only for a list that is read-only, which those of received messages are.
    debug_assert!(added == OK);
}
