//! From the address on the command line to a connected bus.

use throughline::capabilities::Reach;
use throughline::{Address, Bus, registered, registrations};

use crate::failure::Failure;

/// Reads an address, and refuses one that lives only within a process: this one ends with the command.
pub(crate) fn outside_this_process(url: &str, command: &str) -> Result<Address, Failure> {
    let address: Address = url.parse()?;
    let transport = registered(&address).map_err(|error| error.at(operation(command), &address))?;
    if transport.capabilities.reach != Reach::Process {
        // `connect` does so too, but a body may be read before.
        address.check_options(transport.options)?;
        return Ok(address);
    }
    let others: Vec<_> = registrations()
        .filter(|other| other.capabilities.reach != Reach::Process)
        .flat_map(|other| other.schemes)
        .map(|scheme| format!("{scheme}:"))
        .collect();
    let hint = format!(
        "use a broker's address ({}), or see `throughline demo`, which publishes and consumes in one process",
        others.join(", ")
    );
    Err(Failure::usage(format!(
        "{command} {address}: a {}: address exists only within one process, and would be gone with this command",
        address.scheme()
    ))
    .hint(hint))
}

/// Connects to an address that outlives the command.
pub(crate) async fn connect(url: &str, command: &str) -> Result<Bus, Failure> {
    let address = outside_this_process(url, command)?;
    Ok(Bus::connect_to(address).await?)
}

fn operation(command: &str) -> &'static str {
    match command {
        "publish" => "publish",
        "consume" => "consume",
        "create" => "create",
        "delete" => "delete",
        "doctor" => "diagnose",
        "dlq" => "dlq",
        "bridge" => "bridge",
        "migrate" => "migrate",
        _ => "connect",
    }
}
