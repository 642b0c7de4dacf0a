//! The planner: takes the API's event, and asks for the work that it calls for.

use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt;
use throughline::{Consumer, Error, Publisher};

use super::services::{self, Job, OPERATION};
use super::worker::next_of;
use crate::failure::Failure;

/// Plans until the demo's event is done; gives the id of the job.
pub(super) async fn plan(mut consumer: Consumer, event: &str, jobs: &Publisher) -> Result<String, Failure> {
    let mut foreign = Vec::new();
    let planned = async {
        let delivery = next_of(event, &mut consumer, &mut foreign).await?;
        let work = async {
            let job: Job = delivery.json()?;
            Context::current().span().set_attributes(job.attributes());
            let message = services::message(OPERATION, &job)?;
            let id = message.id.clone();
            jobs.publish(message).await?;
            Ok::<_, Error>(id)
        };
        let id = delivery.process(work).await?;
        delivery.ack().await?;
        Ok::<_, Failure>(id)
    };
    let planned = planned.await;
    drop(foreign);
    let closed = consumer.close().await;
    let id = planned?;
    closed?;
    Ok(id)
}
