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
        created: Option<Vec<&'a str>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        deleted: Option<Vec<&'a str>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        kept: Vec<&'a str>,
    }
    // What was left, a transport tells with a `not` before it.
    let kept: Vec<_> = what.iter().filter_map(|line| line.strip_prefix("not ")).collect();
    let done: Vec<_> = what.iter().map(String::as_str).filter(|line| !line.starts_with("not ")).collect();
    let text = if json {
        let (is_created, address) = (did == "created", bus.address().to_string());
        let (created, deleted) = if is_created { (Some(done), None) } else { (None, Some(done)) };
        crate::message::json_line(&Report { address, created, deleted, kept })?
    } else if what.is_empty() {
        format!("{nothing}\n")
    } else {
        let line = |did: &str, what: &&str| format!("{did} {}\n", output::visible(what));
        let done = done.iter().map(|what| line(did, what));
        done.chain(kept.iter().map(|what| line("kept", what))).collect()
    };
    output::print(&text)?;
    Ok(Exit::Ok)
}
