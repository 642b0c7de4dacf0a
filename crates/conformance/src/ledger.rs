//! Known deviations: where a broker cannot do what a case asks, and why that is so.

use serde::Serialize;
use throughline_core::Address;

/// One known deviation. A case that fails as told here is a deviation, not a failure; one that passes in spite of it is a
/// failure, so that the entry goes when its reason does.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Entry {
    /// The transport's name; with a variant's behind it (`sqs fifo`), only where that is under test.
    pub transport: &'static str,
    /// The case's name.
    pub case: &'static str,
    /// From this version of the broker on; empty: from the first.
    pub from: &'static str,
    /// Before this version of the broker; empty: to the latest.
    pub before: &'static str,
    /// Only where addresses have this option: its name and value.
    pub only: Option<(&'static str, &'static str)>,
    /// Not where addresses have this option.
    pub unless: Option<(&'static str, &'static str)>,
    /// A part of what the case says then. Another failure is one.
    pub says: &'static str,
    /// Why it is so, and what that means for a user.
    pub reason: &'static str,
}

/// All of them.
pub const LEDGER: &[Entry] = &[
    Entry {
        transport: "rabbitmq",
        case: "release_records_no_attempt",
        from: "",
        before: "4.3",
        only: None,
        unless: Some(("queue_type", "classic")),
        says: "it is attempt 2",
        reason: "before 4.3 a quorum queue counts what is given back like what failed; the adapter cannot tell them apart",
    },
    Entry {
        transport: "kafka",
        case: "stopping_releases_the_unread",
        from: "",
        before: "",
        only: None,
        unless: None,
        says: "0 of 49 messages have come",
        reason: "a partition is one consumer's, and who leaves a group leaves all of it: a stopped consumer gives its \
                 partitions up once all that it has handed out is settled, not before, since those settlements would be lost",
    },
    Entry {
        transport: "kafka MockCluster",
        case: "delete_is_idempotent",
        from: "",
        before: "",
        only: None,
        unless: None,
        says: "'old' outlived its queue",
        reason: "librdkafka's mock cannot delete a topic: it is only unknown until it is created again, with what it held",
    },
    told_as_the_first("sqs"),
    told_as_the_first("sns"),
    without_binary("dead_letter_keeps_the_message"),
    without_binary("every_field_survives"),
    without_binary("generated_envelopes_survive"),
    without_binary("awkward_header_values_survive"),
    without_binary("odd_trace_headers_are_carried"),
];

/// The answer to the second send of an operation has the first one's id, and nothing else to know it by.
const fn told_as_the_first(transport: &'static str) -> Entry {
    Entry {
        transport,
        case: "second_send_is_deduplicated",
        from: "",
        before: "",
        only: Some(("fifo", "true")),
        unless: None,
        says: "the second send of an operation is told as deduplicated: false",
        reason: "AWS delivers it once, but answers as it does to the first send, and so the receipt does not tell",
    }
}

/// SNS answers with no version; AWS keeps binary attributes.
const fn without_binary(case: &'static str) -> Entry {
    Entry {
        transport: "sns",
        case,
        from: "",
        before: "1.6",
        only: None,
        unless: None,
        says: "Typed(sqs:Binary, 0 bytes)",
        reason: "the emulator ministack 1.5 loses the values of binary attributes in batches; a header of bytes is one",
    }
}

impl Entry {
    /// Whether it is about this transport, this variant of it.
    pub(crate) fn is_of(&self, transport: &str, variant: Option<&str>) -> bool {
        match self.transport.split_once(' ') {
            Some((of, only)) => of == transport && variant == Some(only),
            None => self.transport == transport,
        }
    }

    /// Whether it is about addresses like this one.
    pub(crate) fn applies(&self, address: Option<&Address>) -> bool {
        let has = |(name, value)| address.and_then(|address| address.option(name)) == Some(value);
        self.only.is_none_or(has) && !self.unless.is_some_and(has)
    }
}

/// What the ledger says of a case.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The entry.
    pub entry: &'static Entry,
    /// Whether the version is known to be in its range. Where the broker does not tell its version, an entry with a range
    /// excuses, but nothing is unexpected.
    pub certain: bool,
}

/// The entry for a case on a transport (and this variant), with addresses like this one, and with this version of the
/// broker.
pub fn known(
    (transport, variant): (&str, Option<&str>),
    case: &str,
    address: Option<&Address>,
    version: Option<&str>,
) -> Option<Known> {
    let entry = LEDGER
        .iter()
        .find(|entry| entry.is_of(transport, variant) && entry.case == case && entry.applies(address))?;
    let ranged = !entry.from.is_empty() || !entry.before.is_empty();
    match version {
        None => Some(Known { entry, certain: !ranged }),
        Some(version) => {
            let version = parts(version);
            let within = (entry.from.is_empty() || version >= parts(entry.from))
                && (entry.before.is_empty() || version < parts(entry.before));
            within.then_some(Known { entry, certain: true })
        }
    }
}

/// The numbers of a version: `3.10.8-1+deb` is 3, 10, 8.
fn parts(version: &str) -> Vec<u64> {
    version
        .split('.')
        .map_while(|part| {
            let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(parts("3.9") < parts("3.10.8-1+deb12u1"));
        assert!(parts("4.3") <= parts("4.3.0"));
        assert!(parts("4.2.9") < parts("4.3"));
    }

    #[test]
    fn every_entry_is_of_a_case_and_says_why() {
        for entry in LEDGER {
            assert!(crate::suite::cases().any(|case| case.name == entry.case), "{}", entry.case);
            assert!(!entry.says.is_empty() && !entry.reason.is_empty(), "{}", entry.case);
        }
    }
}
