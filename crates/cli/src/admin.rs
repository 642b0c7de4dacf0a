//! `create` and `delete`.

use serde::Serialize;
use throughline::Bus;

use crate::args::AdminArgs;
use crate::bus::connect;
use crate::failure::{Exit, Failure};
use crate::output;

pub(crate) async fn create(args: &AdminArgs) -> Result<Exit, Failure> {
    let bus = connect(&args.url, "create").await?;
    let made = bus.create("").await;
    let made = closing(&bus, made).await?;
    report(&bus, args.json, "created", "nothing to create: it exists already, as asked for", &made)
}

pub(crate) async fn delete(args: &AdminArgs) -> Result<Exit, Failure> {
    let bus = connect(&args.url, "delete").await?;
    let gone = bus.delete("").await;
    let gone = closing(&bus, gone).await?;
    report(&bus, args.json, "deleted", "nothing to delete: it does not exist", &gone)
}

/// Closes the bus; the first error is the one to tell.
pub(crate) async fn closing<T>(bus: &Bus, result: throughline::Result<T>) -> throughline::Result<T> {
    let closed = bus.close().await;
    let value = result?;
    closed.map(|()| value)
}

fn report(bus: &Bus, json: bool, did: &'static str, nothing: &str, what: &[String]) -> Result<Exit, Failure> {
    #[derive(Serialize)]
    struct Report<'a> {
        address: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        created: Option<&'a [String]>,
        #[serde(skip_serializing_if = "Option::is_none")]
        deleted: Option<&'a [String]>,
    }
    let text = if json {
        let report = Report {
            address: bus.address().to_string(),
            created: (did == "created").then_some(what),
            deleted: (did == "deleted").then_some(what),
        };
        crate::message::json_line(&report)?
    } else if what.is_empty() {
        format!("{nothing}\n")
    } else {
        what.iter().map(|what| format!("{did} {}\n", output::visible(what))).collect()
    };
    output::print(&text)?;
    Ok(Exit::Ok)
}
