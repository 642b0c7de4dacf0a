//! The few calls of librdkafka that its Rust binding does not offer, or offers at the price of a panic.
#![allow(
    unsafe_code,
    reason = "the binding panics on metadata that is not UTF-8, does not tell whether a message that failed may have been \
              stored, nor how an asynchronous commit ended"
)]

use std::ptr;
use std::slice;

use rdkafka::bindings::{
    rd_kafka_commit_queue, rd_kafka_mem_free, rd_kafka_memberid, rd_kafka_queue_destroy,
    rd_kafka_queue_get_main, rd_kafka_resp_err_t,
};
use rdkafka::client::Client;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::{ClientContext, TopicPartitionList};

mod produce;
mod records;

pub(crate) use produce::{HeaderList, Refused, Report, Sent, Topic, flush, produce, reports, wake};
pub(crate) use records::{Record, Records};

const OK: rd_kafka_resp_err_t = rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;

/// Whether the broker has certainly not stored a message whose delivery failed.
pub(crate) fn is_surely_not_stored(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the pointer is that of a message which the borrow keeps alive.
    unsafe { produce::is_surely_not_stored(message.ptr()) }
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

/// Whether the client knows what the group calls it, without which it cannot leave.
pub(crate) fn is_named<C: ClientContext>(client: &Client<C>) -> bool {
    // SAFETY: the client outlives the calls. The name is null or ends with a 0, and is given back, once.
    unsafe {
        let name = rd_kafka_memberid(client.native_ptr());
        if name.is_null() {
            return false;
        }
        let is_named = *name != 0;
        rd_kafka_mem_free(client.native_ptr(), name.cast());
        is_named
    }
}
