//! What is checked before a migration begins.

use throughline::capabilities::Reach;
use throughline::{Address, Bus, DiagnoseOptions, Error, ErrorKind, PublishOptions, Result};

use super::place::is_same_source;
use super::state::{Kind, MigrationOptions};
use crate::plan::{Fate, Plan};

/// Both addresses, those beside them, the rules and the plan.
pub(super) async fn check(options: &MigrationOptions) -> Result<()> {
    options.rules()?;
    let (old, new): (Address, Address) = (options.old.parse()?, options.new.parse()?);
    let other = |address: &Option<String>| address.as_deref().map(str::parse::<Address>).transpose();
    let (tap, reject) = (other(&options.tap)?, other(&options.reject)?);
    check_places(&old, &new, tap.as_ref(), reject.as_ref())?;
    let buses = [Some(old), Some(new), tap, reject];
    let mut open = Vec::new();
    let checked = check_open(options, buses, &mut open).await;
    let mut closed = Ok(());
    for bus in open {
        closed = closed.and(bus.close().await);
    }
    checked.and(closed)
}

fn check_places(old: &Address, new: &Address, tap: Option<&Address>, reject: Option<&Address>) -> Result<()> {
    let refuse = |address: &Address, text: &'static str| {
        Err(Error::new(ErrorKind::InvalidAddress, text).at("migrate", address))
    };
    if old == new {
        return refuse(old, "is the old place and the new one");
    }
    if let Some(tap) = tap {
        if is_same_source(tap, old) {
            return refuse(
                tap,
                "is what the old consumers consume from: the mirror would take their messages. A tap is a queue, group or \
                 subscription of its own; without one, the mirror forwards",
            );
        }
        if tap == new {
            return refuse(tap, "is the tap and the new place");
        }
    }
    match reject {
        Some(reject) if [Some(old), Some(new), tap].contains(&Some(reject)) => {
            refuse(reject, "is the reject address and another one of the migration")
        }
        _ => Ok(()),
    }
}

async fn check_open(
    options: &MigrationOptions,
    [old, new, tap, reject]: [Option<Address>; 4],
    open: &mut Vec<Bus>,
) -> Result<()> {
    let mut buses = Vec::new();
    for address in [old, new, tap, reject] {
        let bus = match address {
            Some(address) => Some(Bus::connect_to(address).await?),
            None => None,
        };
        open.extend(bus.clone());
        buses.push(bus);
    }
    let mut buses = buses.into_iter();
    let mut next = || buses.next().flatten();
    let (Some(old), Some(new)) = (next(), next()) else { return Ok(()) };
    let (tap, reject) = (next(), next());
    for bus in [Some(&old), Some(&new), tap.as_ref(), reject.as_ref()].into_iter().flatten() {
        // What would be made at first use: a subscription gets messages from then on.
        let is_embedded = bus.capabilities().reach != Reach::Network;
        if is_embedded && bus.address().option("create") != Some("never") {
            bus.create("").await?;
        }
    }
    for bus in [Some(&old), tap.as_ref()].into_iter().flatten() {
        source(bus).await?;
    }
    for bus in [Some(&new), reject.as_ref()].into_iter().flatten() {
        bus.publisher_to("", PublishOptions::default()).await?.close().await?;
    }
    let from = match options.kind() {
        Kind::Tap => tap.as_ref().unwrap_or(&old),
        Kind::Forward => &old,
    };
    let plan = Plan::between(from, &new).await?;
    if plan.may_refuse() && reject.is_none() {
        let refused = plan.steps().filter(|step| step.fate == Fate::Refused);
        let refused: Vec<_> = refused.map(|step| format!("{} ({})", step.what, step.detail)).collect();
        let text = format!(
            "would refuse messages that the old place can hold: {}. Give a reject address for them, or the first one stops the \
             migration",
            refused.join(", ")
        );
        return Err(Error::new(ErrorKind::Unsupported, text).at("migrate", new.address()));
    }
    Ok(())
}

/// That there is something to consume from.
async fn source(bus: &Bus) -> Result<()> {
    // Where it is missing, this error has the command that makes it.
    match bus.depth("").await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if bus.diagnose("", &DiagnoseOptions::default()).await?.consumer.is_none() {
        let text =
            "names nothing to consume from, such as a queue or a group; `throughline doctor` says more";
        return Err(Error::new(ErrorKind::InvalidAddress, text).at("migrate", bus.address()));
    }
    Ok(())
}
