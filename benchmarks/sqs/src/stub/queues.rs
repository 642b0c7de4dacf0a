//! The stub's queues, and what it answers.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

/// As long as a receipt handle of SQS, in characters.
const HANDLE: usize = 412;

pub(crate) struct Queues {
    endpoint: String,
    queues: Mutex<HashMap<String, Arc<Queue>>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    visible: VecDeque<Message>,
    in_flight: HashMap<String, Message>,
}

struct Message {
    id: String,
    body: String,
    body_md5: String,
    attributes: Option<Box<RawValue>>,
    attributes_md5: Option<String>,
    sent: u128,
    receives: u32,
}

/// A request's body.
pub(crate) struct Asked<'a>(&'a [u8]);

impl<'a> Asked<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    fn read<T: Deserialize<'a>>(&self) -> Result<T> {
        Ok(serde_json::from_slice(self.0)?)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct OfQueue<'a> {
    #[serde(borrow)]
    queue_url: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named<'a> {
    #[serde(borrow)]
    queue_name: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Batch<'a, T> {
    #[serde(borrow)]
    queue_url: Cow<'a, str>,
    entries: Vec<T>,
}

/// A message to send, with an id where it is one of a batch and with a queue where it is alone.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Send<'a> {
    #[serde(borrow, default)]
    id: Cow<'a, str>,
    #[serde(borrow, default)]
    queue_url: Cow<'a, str>,
    #[serde(borrow)]
    message_body: Cow<'a, str>,
    #[serde(borrow)]
    message_attributes: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Settle<'a> {
    #[serde(borrow, default)]
    id: Cow<'a, str>,
    #[serde(borrow, default)]
    queue_url: Cow<'a, str>,
    #[serde(borrow)]
    receipt_handle: Cow<'a, str>,
    #[serde(default)]
    visibility_timeout: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Receive<'a> {
    #[serde(borrow)]
    queue_url: Cow<'a, str>,
    max_number_of_messages: Option<usize>,
    #[serde(default)]
    wait_time_seconds: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attribute<'a> {
    #[serde(borrow)]
    data_type: Cow<'a, str>,
    #[serde(borrow)]
    string_value: Option<Cow<'a, str>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Sent<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    message_id: String,
    #[serde(rename = "MD5OfMessageBody")]
    body_md5: String,
    #[serde(rename = "MD5OfMessageAttributes", skip_serializing_if = "Option::is_none")]
    attributes_md5: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Received<'a> {
    message_id: &'a str,
    receipt_handle: &'a str,
    #[serde(rename = "MD5OfBody")]
    body_md5: &'a str,
    body: &'a str,
    attributes: BTreeMap<&'static str, String>,
    #[serde(rename = "MD5OfMessageAttributes", skip_serializing_if = "Option::is_none")]
    attributes_md5: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_attributes: Option<&'a RawValue>,
}

impl Queues {
    pub(crate) fn new(endpoint: String) -> Self {
        Self { endpoint, queues: Mutex::default() }
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<String, Arc<Queue>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many messages are visible, and how many in flight, in all queues.
    pub(crate) fn depth(&self) -> (usize, usize) {
        let queues = self.queues();
        let depths = queues.values().map(|queue| {
            let state = queue.state();
            (state.visible.len(), state.in_flight.len())
        });
        depths.fold((0, 0), |(visible, in_flight), (v, f)| (visible + v, in_flight + f))
    }

    fn queue(&self, url: &str) -> Result<Arc<Queue>> {
        let name = url.rsplit('/').next().unwrap_or_default();
        self.queues().get(name).cloned().context("there is no such queue")
    }

    pub(crate) async fn answer(&self, action: &str, asked: Asked<'_>) -> Result<String> {
        match action {
            "ListQueues" => Ok("{}".to_owned()),
            "CreateQueue" => {
                let Named { queue_name } = asked.read()?;
                self.queues().insert(queue_name.clone().into_owned(), Arc::default());
                Ok(self.url(&queue_name))
            }
            "GetQueueUrl" => {
                let Named { queue_name } = asked.read()?;
                self.queue(&queue_name)?;
                Ok(self.url(&queue_name))
            }
            "GetQueueAttributes" => {
                self.queue(&asked.read::<OfQueue<'_>>()?.queue_url)?;
                Ok(r#"{"Attributes":{"VisibilityTimeout":"30","MaximumMessageSize":"1048576"}}"#.to_owned())
            }
            "DeleteQueue" => {
                let OfQueue { queue_url } = asked.read()?;
                self.queues().remove(queue_url.rsplit('/').next().unwrap_or_default());
                Ok("{}".to_owned())
            }
            "SendMessage" => {
                let entry: Send<'_> = asked.read()?;
                let sent = self.queue(&entry.queue_url)?.send(std::slice::from_ref(&entry))?;
                Ok(serde_json::to_string(sent.first().context("nothing sent")?)?)
            }
            "SendMessageBatch" => {
                let Batch::<Send<'_>> { queue_url, entries } = asked.read()?;
                let sent = self.queue(&queue_url)?.send(&entries)?;
                Ok(serde_json::to_string(&BTreeMap::from([("Successful", sent)]))?)
            }
            "ReceiveMessage" => {
                let Receive { queue_url, max_number_of_messages, wait_time_seconds } = asked.read()?;
                let wait = Duration::from_secs(wait_time_seconds);
                self.queue(&queue_url)?.receive(max_number_of_messages.unwrap_or(1).min(10), wait).await
            }
            "DeleteMessage" => {
                let entry: Settle<'_> = asked.read()?;
                self.queue(&entry.queue_url)?.state().in_flight.remove(&*entry.receipt_handle);
                Ok("{}".to_owned())
            }
            "DeleteMessageBatch" => {
                let Batch::<Settle<'_>> { queue_url, entries } = asked.read()?;
                let queue = self.queue(&queue_url)?;
                let mut state = queue.state();
                for entry in &entries {
                    state.in_flight.remove(&*entry.receipt_handle);
                }
                Ok(successful(&entries))
            }
            "ChangeMessageVisibilityBatch" => {
                let Batch::<Settle<'_>> { queue_url, entries } = asked.read()?;
                let queue = self.queue(&queue_url)?;
                let mut state = queue.state();
                for entry in entries.iter().filter(|entry| entry.visibility_timeout == 0) {
                    if let Some(message) = state.in_flight.remove(&*entry.receipt_handle) {
                        state.visible.push_back(message);
                        queue.arrived.notify_one();
                    }
                }
                Ok(successful(&entries))
            }
            action => bail!("the stub has no action {action:?}"),
        }
    }

    fn url(&self, name: &str) -> String {
        json!({ "QueueUrl": format!("{}/000000000000/{name}", self.endpoint) }).to_string()
    }
}

fn successful(entries: &[Settle<'_>]) -> String {
    let done: Vec<_> = entries.iter().map(|entry| json!({ "Id": entry.id })).collect();
    json!({ "Successful": done }).to_string()
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send<'a>(&self, entries: &'a [Send<'_>]) -> Result<Vec<Sent<'a>>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let mut sent = Vec::with_capacity(entries.len());
        let mut messages = Vec::with_capacity(entries.len());
        for entry in entries {
            let id = Uuid::now_v7().to_string();
            let body_md5 = hex(&Md5::digest(entry.message_body.as_bytes()));
            let attributes_md5 = entry.message_attributes.map(attributes_md5).transpose()?;
            sent.push(Sent {
                id: &entry.id,
                message_id: id.clone(),
                body_md5: body_md5.clone(),
                attributes_md5: attributes_md5.clone(),
            });
            messages.push(Message {
                id,
                body: entry.message_body.clone().into_owned(),
                body_md5,
                attributes: entry.message_attributes.map(ToOwned::to_owned),
                attributes_md5,
                sent: now,
                receives: 0,
            });
        }
        self.state().visible.extend(messages);
        self.arrived.notify_one();
        Ok(sent)
    }

    async fn receive(&self, max: usize, wait: Duration) -> Result<String> {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(answer) = self.take(max)? {
                return Ok(answer);
            }
            if tokio::time::timeout_at(deadline, self.arrived.notified()).await.is_err() {
                return Ok("{}".to_owned());
            }
        }
    }

    fn take(&self, max: usize) -> Result<Option<String>> {
        let mut state = self.state();
        let count = state.visible.len().min(max);
        if count == 0 {
            return Ok(None);
        }
        let mut taken: Vec<_> = state.visible.drain(..count).map(|message| (handle(), message)).collect();
        for (_, message) in &mut taken {
            message.receives += 1;
        }
        let messages = taken.iter().map(|(handle, message)| message.received(handle)).collect::<Vec<_>>();
        let answer = serde_json::to_string(&BTreeMap::from([("Messages", messages)]))?;
        state.in_flight.extend(taken);
        if !state.visible.is_empty() {
            self.arrived.notify_one();
        }
        Ok(Some(answer))
    }
}

impl Message {
    fn received<'a>(&'a self, handle: &'a str) -> Received<'a> {
        Received {
            message_id: &self.id,
            receipt_handle: handle,
            body_md5: &self.body_md5,
            body: &self.body,
            attributes: BTreeMap::from([
                ("SenderId", "AIDASSYFHUBOBT7F4XT75".to_owned()),
                ("SentTimestamp", self.sent.to_string()),
                ("ApproximateReceiveCount", self.receives.to_string()),
                ("ApproximateFirstReceiveTimestamp", self.sent.to_string()),
            ]),
            attributes_md5: self.attributes_md5.as_deref(),
            message_attributes: self.attributes.as_deref(),
        }
    }
}

fn handle() -> String {
    let mut handle = Uuid::now_v7().simple().to_string();
    handle.extend(std::iter::repeat_n('A', HANDLE - handle.len()));
    handle
}

/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html>
fn attributes_md5(attributes: &RawValue) -> Result<String> {
    let attributes: BTreeMap<Cow<'_, str>, Attribute<'_>> = serde_json::from_str(attributes.get())?;
    let mut digest = Md5::new();
    for (name, Attribute { data_type, string_value }) in &attributes {
        // The load has texts only.
        let value = string_value.as_deref().context("not a text")?;
        for part in [name, data_type] {
            digest.update(u32::try_from(part.len())?.to_be_bytes());
            digest.update(part.as_bytes());
        }
        digest.update([1]);
        digest.update(u32::try_from(value.len())?.to_be_bytes());
        digest.update(value);
    }
    Ok(hex(&digest.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
