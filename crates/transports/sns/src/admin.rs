//! Topics, subscriptions and their queues: made, found and deleted.

use throughline_aws::error;
use throughline_aws::settings::bad;
use throughline_core::{Error, ErrorKind, Result};
use throughline_sqs::source::Sender;

use crate::config::Destination;
use crate::transport::Shared;

/// The topic's ARN; a missing topic is `NotFound`, with the command that makes it.
pub(crate) async fn find(shared: &Shared, destination: &Destination) -> Result<String> {
    look_up(shared, destination).await?.ok_or_else(|| {
        let (topic, region) = (&destination.topic, &shared.connection.region);
        let hint = destination.hint();
        let text =
            format!("there is no topic '{topic}' in {region}; is that the region? Make it with: {hint}");
        Error::new(ErrorKind::NotFound, text)
    })
}

/// The topic's ARN, where there is such a topic. SNS finds topics by their ARN only: without it they are listed.
pub(crate) async fn look_up(shared: &Shared, destination: &Destination) -> Result<Option<String>> {
    if let Some(arn) = &destination.arn {
        return match shared
            .admin
            .get_topic_attributes()
            .topic_arn(arn)
            .send()
            .await
            .map_err(error::of_request)
        {
            Ok(_) => Ok(Some(arn.clone())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            // Who may only publish may still do that.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(Some(arn.clone())),
            Err(error) => Err(error),
        };
    }
    let mut next = None;
    loop {
        let page = shared.admin.list_topics().set_next_token(next).send().await.map_err(error::of_request)?;
        let arns = page.topics.unwrap_or_default().into_iter().filter_map(|topic| topic.topic_arn);
        for arn in arns {
            if arn.rsplit(':').next() == Some(destination.topic.as_str()) {
                return Ok(Some(arn));
            }
        }
        next = page.next_token.filter(|token| !token.is_empty());
        if next.is_none() {
            return Ok(None);
        }
    }
}

/// Creates what the address names: the topic, and where it names one, the queue, with permission and subscription.
pub(crate) async fn create(shared: &Shared, destination: &Destination) -> Result<Vec<String>> {
    let address = &destination.address;
    let raw = address.one_of("raw", &["true", "false"])?.unwrap_or("true");
    let filter = address.option("filter").filter(|filter| !filter.is_empty());
    if let Some(filter) = filter
        && !serde_json::from_str::<serde_json::Value>(filter).is_ok_and(|filter| filter.is_object())
    {
        return Err(address.bad_option("filter", "a JSON object"));
    }
    if !destination.has_queue() && (filter.is_some() || address.option("raw").is_some()) {
        return Err(bad(address, "'raw' and 'filter' are of a subscription; add queue=NAME"));
    }
    let mut made = Vec::new();
    let arn = match look_up(shared, destination).await? {
        Some(arn) => arn,
        None => {
            let mut request = shared.admin.create_topic().name(&destination.topic);
            if destination.is_fifo() {
                request =
                    request.attributes("FifoTopic", "true").attributes("ContentBasedDeduplication", "false");
            }
            let answer = request.send().await.map_err(error::of_request)?;
            made.push(format!("topic '{}'", destination.topic));
            answer.topic_arn.ok_or_else(|| Error::new(ErrorKind::Internal, "AWS gave no ARN of the topic"))?
        }
    };
    if !destination.has_queue() {
        return Ok(made);
    }
    let sender = Sender { service: "sns.amazonaws.com", arn: &arn };
    let (queue, of_queue) = shared.queues.create(&destination.queue(), &sender).await?;
    made.extend(of_queue);
    if let Some(existing) = subscription(shared, &arn, &queue).await? {
        check_same(shared, &existing, raw, filter).await?;
        return Ok(made);
    }
    let mut request = shared.admin.subscribe().topic_arn(&arn).protocol("sqs").endpoint(&queue);
    request = request.attributes("RawMessageDelivery", raw).return_subscription_arn(true);
    if let Some(filter) = filter {
        request = request.attributes("FilterPolicy", filter);
    }
    request.send().await.map_err(error::of_request)?;
    made.push(format!("subscription of {queue} to topic '{}'", destination.topic));
    Ok(made)
}

async fn check_same(shared: &Shared, subscription: &str, raw: &str, filter: Option<&str>) -> Result<()> {
    let request = shared.admin.get_subscription_attributes().subscription_arn(subscription);
    let is = request.send().await.map_err(error::of_request)?.attributes.unwrap_or_default();
    let raw_is = is.get("RawMessageDelivery").map_or("false", String::as_str);
    if raw_is != raw {
        let text = format!("the queue is subscribed already, with raw={raw_is}, not {raw}");
        return Err(Error::new(ErrorKind::Conflict, text));
    }
    let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    let filter_is = is.get("FilterPolicy").filter(|filter| !filter.is_empty() && *filter != "{}");
    if filter_is.and_then(|filter| parsed(filter)) == filter.and_then(parsed) {
        return Ok(());
    }
    let shown = filter_is.map_or("none", String::as_str);
    let text = format!("the queue is subscribed already, with another filter policy: {shown}");
    Err(Error::new(ErrorKind::Conflict, text))
}

/// The subscriptions of a topic: endpoint and ARN.
pub(crate) async fn subscriptions(shared: &Shared, topic: &str) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    let mut next = None;
    loop {
        let request = shared.admin.list_subscriptions_by_topic().topic_arn(topic).set_next_token(next);
        let page = match request.send().await.map_err(error::of_request) {
            Ok(page) => page,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(all),
            Err(error) => return Err(error),
        };
        for subscription in page.subscriptions.unwrap_or_default() {
            if let (Some(endpoint), Some(arn)) = (subscription.endpoint, subscription.subscription_arn) {
                all.push((endpoint, arn));
            }
        }
        next = page.next_token.filter(|token| !token.is_empty());
        if next.is_none() {
            return Ok(all);
        }
    }
}

/// The subscription of a queue to a topic.
async fn subscription(shared: &Shared, topic: &str, queue: &str) -> Result<Option<String>> {
    let all = subscriptions(shared, topic).await?;
    Ok(all.into_iter().find(|(endpoint, _)| endpoint == queue).map(|(_, arn)| arn))
}

/// Deletes what the address names: the queue with its subscription, and the topic unless it has other subscriptions.
pub(crate) async fn delete(shared: &Shared, destination: &Destination) -> Result<Vec<String>> {
    let mut deleted = Vec::new();
    let topic = look_up(shared, destination).await?;
    let mut others = 0;
    if destination.has_queue() {
        let queue = shared.queues.arn(&destination.queue()).await?;
        let all = match &topic {
            Some(topic) => subscriptions(shared, topic).await?,
            None => Vec::new(),
        };
        for (endpoint, arn) in all {
            if Some(&endpoint) == queue.as_ref() {
                shared.admin.unsubscribe().subscription_arn(arn).send().await.map_err(error::of_request)?;
                deleted.push(format!("subscription of {endpoint}"));
            } else {
                others += 1;
            }
        }
        deleted.extend(shared.queues.delete(&destination.queue()).await?);
    }
    match topic {
        Some(_) if others > 0 => {
            deleted.push(format!("not topic '{}': it has {others} other subscriptions", destination.topic));
        }
        Some(topic) => {
            shared.admin.delete_topic().topic_arn(topic).send().await.map_err(error::of_request)?;
            deleted.push(format!("topic '{}'", destination.topic));
        }
        None => {}
    }
    Ok(deleted)
}
