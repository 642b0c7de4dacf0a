//! What the user may do with what is there, and which permissions are missing.

use throughline_core::Result;
use throughline_core::diagnosis::{Remedy, Severity};

use super::Look;
use super::probe::Access;
use super::rules::quoted;
use crate::config::{Destination, Route, is_pattern};
use crate::delay::Target;

impl Look<'_> {
    /// What the user may do with what is there.
    pub(super) async fn access(&mut self, exchange_there: bool, queue_there: bool) -> Result<()> {
        if !self.known {
            return Ok(());
        }
        let destination = self.rules.destination;
        if let Some(queue) = destination.queue.as_ref().filter(|_| queue_there) {
            let access = self.probe.may_consume(queue).await?;
            let subject = format!("queue '{queue}'");
            self.judge(
                &access,
                "consume-denied",
                &subject,
                "consume from it",
                "consuming fails with PermissionDenied",
            );
        }
        let target = match (&destination.exchange, &destination.queue) {
            (Some(exchange), _) => Some(Target::Exchange(exchange.clone())),
            (None, Some(queue)) => Some(Target::Queue(queue.clone())),
            (None, None) => None,
        };
        // A queue of no tier, so that what is there is not asked about.
        if let Some(name) = target.as_ref().map(|target| target.tier_name(0)) {
            let access = self.probe.may_make(&name).await?;
            let what = "make delay queues (tl.delay.*)";
            let why = "delayed sends, and retries after a time, fail with PermissionDenied";
            self.judge(&access, "delay-denied", "broker", what, why);
        }
        let mut routes = Vec::new();
        if let Some(route) = published_to(destination)
            && (exchange_there && (destination.exchange.is_some() || queue_there))
        {
            routes.push((route, "publish-denied", "publishing fails with PermissionDenied"));
        }
        if let Some(route) = &destination.dead_letter {
            let why = "rejecting a message fails, and it is delivered again";
            routes.push((route.clone(), "dead-letter-denied", why));
        }
        for (route, code, why) in routes {
            let access = self.probe.may_publish(&route).await?;
            let subject = match route.exchange.as_str() {
                "" => "the default exchange".to_owned(),
                exchange => format!("exchange '{exchange}'"),
            };
            self.judge(&access, code, &subject, "publish to it", why);
            // Nothing more is read from this connection.
            if access == Access::Blocked {
                break;
            }
        }
        Ok(())
    }

    fn judge(&mut self, access: &Access, code: &'static str, subject: &str, what: &str, why: &str) {
        match access {
            Access::Granted => {}
            Access::Denied => {
                let remedy = permissions(self.rules.destination, self.vhost);
                self.rules.find(
                    Severity::Error,
                    code,
                    subject,
                    format!("this user may not {what}"),
                    why,
                    remedy,
                );
            }
            Access::Blocked => self.rules.find(
                Severity::Error,
                "broker-blocked",
                "broker",
                "it is short of memory or disk, and takes no messages",
                "publishing waits until its time-out",
                Remedy::text("free memory or disk, or raise the watermark; this shows which")
                    .command("rabbitmq-diagnostics alarms"),
            ),
            Access::Unknown(reason) => {
                let what = format!("whether this user may {what} ({subject})");
                let remedy = self.list("list_permissions", "");
                self.rules.diagnosis.unchecked(what, reason, remedy);
            }
        }
    }
}

/// Where the address publishes to; an exchange without a fixed key is asked about with an empty one.
fn published_to(destination: &Destination) -> Option<Route> {
    match (&destination.exchange, &destination.queue) {
        (Some(exchange), _) => {
            let key = destination.key.clone().filter(|key| !is_pattern(key.as_str()));
            Some(Route { exchange: exchange.clone(), key: key.unwrap_or_default() })
        }
        (None, Some(queue)) => Some(Route::to_queue(queue.clone())),
        (None, None) => None,
    }
}

/// The least permissions that all roles of an address need.
fn permissions(destination: &Destination, vhost: &str) -> Remedy {
    const DELAYS: &str = r"tl\.delay\..*";
    let mut write = vec![r"amq\.default".to_owned()];
    let exchanges =
        destination.exchange.iter().chain(destination.dead_letter.iter().map(|route| &route.exchange));
    for exchange in exchanges.filter(|exchange| !exchange.as_str().is_empty()) {
        write.push(escaped(exchange.as_str()));
    }
    write.push(DELAYS.to_owned());
    let mut read: Vec<_> = destination.queue.iter().map(|queue| escaped(queue.as_str())).collect();
    read.push(DELAYS.to_owned());
    let pattern = |names: &[String]| quoted(format!("^({})$", names.join("|")));
    let set = format!(
        "rabbitmqctl set_permissions -p {} USER {} {} {}",
        quoted(vhost),
        pattern(&[DELAYS.to_owned()]),
        pattern(&write),
        pattern(&read)
    );
    Remedy::text(
        "give the user these permissions, with what it needs elsewhere (they replace those it has: rabbitmqctl \
         list_user_permissions USER)",
    )
    .command(set)
}

/// A name as a regular expression that matches it alone.
fn escaped(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for c in name.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_permissions_name_what_the_address_names_and_no_more() {
        let address = "amqp://h/?queue=a.b&exchange=e*&dead_letter_exchange=dead";
        let destination = Destination::of(&address.parse().unwrap()).unwrap();
        let command = permissions(&destination, "v h").commands.remove(0);
        assert_eq!(
            command,
            r"rabbitmqctl set_permissions -p 'v h' USER '^(tl\.delay\..*)$' '^(amq\.default|e\*|dead|tl\.delay\..*)$' '^(a\.b|tl\.delay\..*)$'"
        );
    }
}
