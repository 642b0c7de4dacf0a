//! The client's errors as ours: which kind, and whether trying again is safe.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use throughline_core::{Error, ErrorKind, Retry};

/// What an error is, in our terms. Its retry class is that of an operation that the broker has certainly not performed;
/// who knows that it may have says so.
pub(crate) fn map(error: KafkaError) -> Error {
    let code = match &error {
        KafkaError::AdminOp(code) => Some(*code),
        error => error.rdkafka_error_code(),
    };
    let Some(code) = code else {
        // Its text can hold the value of a property: a secret.
        if let KafkaError::ClientConfig(_, _, property, _) = &error {
            let text = format!("librdkafka does not take the value of '{property}'");
            return Error::new(ErrorKind::InvalidAddress, text);
        }
        return Error::new(ErrorKind::Internal, error.to_string()).with_source(error);
    };
    let (kind, retry) = classify(code);
    Error::new(kind, text(code)).with_retry(retry).with_source(error)
}

/// An error code of the broker or of librdkafka.
pub(crate) fn of_code(code: Code) -> Error {
    map(KafkaError::Global(code))
}

/// What became of a message whose delivery failed.
pub(crate) fn of_delivery(error: &KafkaError, surely_not_stored: bool) -> Error {
    let error = map(error.clone());
    match error.retry() {
        Retry::Safe if !surely_not_stored => error.with_retry(Retry::Uncertain),
        _ => error,
    }
}

/// The text of a code, which never names payloads or credentials.
fn text(code: Code) -> String {
    match code {
        Code::MessageTimedOut => {
            "the brokers did not take the message in time (kafka.message.timeout.ms)".into()
        }
        Code::AllBrokersDown | Code::BrokerTransportFailure => "no broker can be reached".into(),
        Code::Authentication | Code::SaslAuthenticationFailed => {
            "the broker refused the user name or password".into()
        }
        Code::SSL => {
            "TLS failed; does kafka.ssl.ca.location name the authority of the brokers' certificates, and is this their TLS \
             port?"
                .into()
        }
        Code::AutoOffsetReset | Code::OffsetOutOfRange => {
            "the group has no committed position in the log, and the address says from=none".into()
        }
        _ => format!("Kafka says: {code}"),
    }
}

fn classify(code: Code) -> (ErrorKind, Retry) {
    use ErrorKind as Kind;
    match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
            (Kind::NotFound, Retry::Never)
        }
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => (Kind::PermissionDenied, Retry::Never),
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState => (Kind::Unauthenticated, Retry::Never),
        // It does not mend by waiting.
        Code::SSL => (Kind::Disconnected, Retry::Never),
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => (Kind::LimitExceeded, Retry::Never),
        Code::TopicAlreadyExists | Code::NonEmptyGroup => (Kind::Conflict, Retry::Never),
        Code::InvalidTopic
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidConfig
        | Code::InvalidGroupId
        | Code::InvalidSessionTimeout => (Kind::InvalidAddress, Retry::Never),
        Code::PolicyViolation | Code::InvalidTimestamp | Code::InvalidMessage | Code::AutoOffsetReset => {
            (Kind::Refused, Retry::Never)
        }
        Code::UnsupportedVersion | Code::UnsupportedFeature | Code::InconsistentGroupProtocol => {
            (Kind::Unsupported, Retry::Never)
        }
        Code::IllegalGeneration
        | Code::UnknownMemberId
        | Code::RebalanceInProgress
        | Code::AssignmentLost
        | Code::StaleMemberEpoch
        | Code::FencedMemberEpoch => (Kind::Stale, Retry::Never),
        Code::MessageTimedOut | Code::OperationTimedOut | Code::TimedOutQueue | Code::RequestTimedOut => {
            (Kind::Timeout, Retry::Safe)
        }
        Code::QueueFull | Code::ThrottlingQuotaExceeded => (Kind::Throttled, Retry::Safe),
        Code::PurgeQueue | Code::PurgeInflight | Code::DestroyBroker => (Kind::Closed, Retry::Safe),
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::NetworkException
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::BrokerNotAvailable
        | Code::ReplicaNotAvailable
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::NotCoordinator
        | Code::NotController
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::KafkaStorageError
        | Code::WaitingForCoordinator
        | Code::Fatal
        | Code::OutOfOrderSequenceNumber
        | Code::InvalidProducerEpoch
        | Code::UnknownProducerId => (Kind::Disconnected, Retry::Safe),
        _ => (Kind::Internal, Retry::Never),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_stored_is_uncertain_and_what_was_refused_is_final() {
        for (code, surely_not, kind, retry) in [
            (Code::MessageTimedOut, true, ErrorKind::Timeout, Retry::Safe),
            (Code::MessageTimedOut, false, ErrorKind::Timeout, Retry::Uncertain),
            (Code::PurgeQueue, true, ErrorKind::Closed, Retry::Safe),
            (Code::PurgeInflight, false, ErrorKind::Closed, Retry::Uncertain),
            (Code::MessageSizeTooLarge, false, ErrorKind::LimitExceeded, Retry::Never),
            (Code::TopicAuthorizationFailed, false, ErrorKind::PermissionDenied, Retry::Never),
            (Code::UnknownTopicOrPartition, true, ErrorKind::NotFound, Retry::Never),
            (Code::NotEnoughReplicasAfterAppend, false, ErrorKind::Disconnected, Retry::Uncertain),
        ] {
            let error = of_delivery(&KafkaError::MessageProduction(code), surely_not);
            assert_eq!((error.kind(), error.retry()), (kind, retry), "{code}");
            assert!(error.native::<KafkaError>().is_some());
        }
    }

    #[test]
    fn a_refused_property_is_named_without_its_value() {
        let error = rdkafka::ClientConfig::new()
            .set("ssl.key.location", "hunter2")
            .set("sasl.mechanism", "hunter2")
            .create_native_config()
            .err()
            .map(map);
        if let Some(error) = error {
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }
}
