//! The words around the waterfall.

use crate::scene::Played;

pub(crate) fn before(played: &Played) -> String {
    format!(
        "campaign_sync: one request, one trace\n\n\
         A client asks an API to sync a company's reports. The API publishes an event; a planner takes it and queues a job\n\
         for each profile; a worker reads its database, calls an ads API and saves the report. The ads API is down for one\n\
         call of one profile, which is retried, and for all calls of another, which becomes a dead letter.\n\n\
         events  {}\njobs    {}\ntrace   {}\n\n",
        played.events, played.jobs, played.trace
    )
}

pub(crate) fn after(played: &Played, spans: usize) -> String {
    let dead = &played.dead;
    let mut text = format!(
        "\nOne trace of {spans} spans: {} reports synced, {} attempts put off, 1 dead letter, which says why:\n\n\
         {} ({}), of the {}\n",
        played.done,
        played.retried,
        dead.id,
        dead.key,
        match &dead.trace {
            Some(trace) if *trace == played.trace => "same trace".to_owned(),
            Some(trace) => format!("trace {trace}"),
            None => "trace of nobody".to_owned(),
        }
    );
    for failure in &dead.failures {
        text.push_str(&format!("  attempt {}: {failure}\n", failure.attempt));
    }
    if dead.is_partial {
        text.push_str("  (attempts before these could not be carried)\n");
    }
    text
}
