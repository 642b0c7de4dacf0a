//! Batches in AWS's two protocols: JSON (SQS, EventBridge), and Query with XML (SNS).

use std::fmt::Write;

use axum::body::Body;
use axum::http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};
use url::form_urlencoded;

/// Before an entry's place, from 1, in a request to SNS.
const MEMBER: &str = "PublishBatchRequestEntries.member.";
/// Where an answer of SNS lists what failed.
const FAILED: &str = "<Failed>";

/// A request as it came.
pub(super) struct Call {
    pub(super) action: String,
    pub(super) body: Vec<u8>,
    is_json: bool,
}

/// Some entries of a batch, taken out of it.
pub(super) struct Taken {
    /// Where they were.
    places: Vec<usize>,
    /// Their ids; EventBridge's have none.
    ids: Vec<String>,
    /// What is left of the batch, if anything is.
    pub(super) rest: Option<Vec<u8>>,
}

impl Call {
    pub(super) fn new(headers: &HeaderMap, body: Vec<u8>) -> Self {
        let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok());
        let action = match target {
            Some(target) => target.rsplit('.').next().unwrap_or_default().to_owned(),
            None => form_urlencoded::parse(&body)
                .find_map(|(name, value)| (name == "Action").then(|| value.into_owned()))
                .unwrap_or_default(),
        };
        Self { action, body, is_json: target.is_some() }
    }

    /// The batch without the entries at these places, from 0, in order; a place that it does not have is no matter.
    pub(super) fn take(&self, places: &[usize]) -> Taken {
        if self.is_json { self.take_json(places) } else { self.take_query(places) }
    }

    fn take_json(&self, places: &[usize]) -> Taken {
        let mut batch: Value = serde_json::from_slice(&self.body).expect("JSON");
        let entries = batch["Entries"].as_array_mut().expect("a batch");
        let (mut ids, mut taken) = (Vec::new(), Vec::new());
        let mut place = 0;
        entries.retain(|entry| {
            let fails = places.contains(&place);
            if fails {
                ids.push(entry["Id"].as_str().unwrap_or_default().to_owned());
                taken.push(place);
            }
            place += 1;
            !fails
        });
        let is_empty = entries.is_empty();
        Taken { places: taken, ids, rest: (!is_empty).then(|| batch.to_string().into_bytes()) }
    }

    fn take_query(&self, places: &[usize]) -> Taken {
        let mut ids = Vec::new();
        let mut rest = form_urlencoded::Serializer::new(String::new());
        let mut left = false;
        for (name, value) in form_urlencoded::parse(&self.body) {
            let member = name.strip_prefix(MEMBER).and_then(|member| {
                let (number, field) = member.split_once('.')?;
                Some((number.parse::<usize>().ok()? - 1, field))
            });
            match member {
                None => drop(rest.append_pair(&name, &value)),
                Some((place, "Id")) if places.contains(&place) => ids.push(value.into_owned()),
                Some((place, _)) if places.contains(&place) => {}
                Some((place, field)) => {
                    left = true;
                    // Members are numbered without gaps.
                    let number = place + 1 - places.iter().filter(|taken| **taken < place).count();
                    rest.append_pair(&format!("{MEMBER}{number}.{field}"), &value);
                }
            }
        }
        Taken { places: Vec::new(), ids, rest: left.then(|| rest.finish().into_bytes()) }
    }

    /// The answer to what was left of the batch, with those that were taken as failed.
    pub(super) fn with_failed(
        &self,
        taken: &Taken,
        answer: Option<&[u8]>,
        (code, sender): (&str, bool),
    ) -> Response<Body> {
        if !self.is_json {
            let answer = answer.map(|answer| String::from_utf8(answer.to_vec()).expect("XML"));
            let empty = || {
                "<PublishBatchResponse><PublishBatchResult><Successful/><Failed></Failed></PublishBatchResult>\
                 <ResponseMetadata><RequestId>injected</RequestId></ResponseMetadata></PublishBatchResponse>"
                    .to_owned()
            };
            let mut members = FAILED.to_owned();
            for id in &taken.ids {
                let _ = write!(
                    members,
                    "<member><Id>{id}</Id><Code>{code}</Code><Message>injected</Message>\
                     <SenderFault>{sender}</SenderFault></member>"
                );
            }
            return self.respond(answer.unwrap_or_else(empty).replace(FAILED, &members));
        }
        let mut answer = answer.map_or_else(|| json!({}), |json| serde_json::from_slice(json).expect("JSON"));
        let list = |name: &str| answer[name].as_array().cloned().unwrap_or_default();
        if self.action == "PutEvents" {
            // These answers have no ids: they stand at the places of the entries.
            let mut entries = list("Entries");
            for place in &taken.places {
                entries.insert(*place, json!({ "ErrorCode": code, "ErrorMessage": "injected" }));
            }
            answer["FailedEntryCount"] = taken.places.len().into();
            answer["Entries"] = entries.into();
        } else {
            let mut failed = list("Failed");
            failed.extend(
                taken.ids.iter().map(
                    |id| json!({ "Id": id, "Code": code, "SenderFault": sender, "Message": "injected" }),
                ),
            );
            answer["Failed"] = failed.into();
        }
        self.respond(answer.to_string())
    }

    /// A refusal of the whole request.
    pub(super) fn refuse(&self, status: u16, code: &str) -> Response<Body> {
        let mut response = self.respond(if self.is_json {
            json!({ "__type": format!("com.amazonaws.injected#{code}"), "message": "injected" }).to_string()
        } else {
            format!(
                "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>injected</Message></Error>\
                 <RequestId>injected</RequestId></ErrorResponse>"
            )
        });
        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
        response
    }

    fn respond(&self, answer: String) -> Response<Body> {
        let kind = if self.is_json { "application/x-amz-json-1.0" } else { "text/xml" };
        let mut response = Response::new(Body::from(answer));
        response.headers_mut().insert("content-type", kind.parse().expect("a type"));
        response
    }
}
