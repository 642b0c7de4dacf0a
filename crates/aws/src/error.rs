//! What AWS answers, as Throughline's errors: which kind, and whether sending again is safe.

use std::error::Error as StdError;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::{DispatchFailure, SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use throughline_core::{Error, ErrorKind, Retry};

/// AWS's texts are shown up to here.
const MAX_TEXT: usize = 500;

/// The error of a whole request. Its retry class is that of a send: `Uncertain` where AWS may have done what was asked.
pub fn of_request<E>(error: SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let mapped = match &error {
        SdkError::ServiceError(service) => {
            let status = service.raw().status().as_u16();
            let (code, message) = (service.err().code(), service.err().message());
            of_code(code.unwrap_or_default(), message.unwrap_or_default(), status)
        }
        SdkError::ConstructionFailure(_) => of_source(&error, None),
        SdkError::DispatchFailure(failure) => of_source(&error, Some(failure)),
        SdkError::TimeoutError(_) => uncertain(
            ErrorKind::Timeout,
            "no answer in time; a longer time can be set with ?timeout=DURATION",
        ),
        SdkError::ResponseError(_) => uncertain(ErrorKind::Internal, "an answer that cannot be read"),
        _ => uncertain(ErrorKind::Internal, "the AWS client failed"),
    };
    // An answer that cannot be read may hold messages, and would be shown with the error.
    if matches!(error, SdkError::ResponseError(_)) { mapped } else { mapped.with_source(error) }
}

/// The error of one entry of a batch whose request went through: the entry was certainly not accepted.
pub fn of_entry(code: &str, message: &str, sender_fault: bool) -> Error {
    let error = of_code(code, message, if sender_fault { 400 } else { 500 });
    let retry = match error.retry() {
        Retry::Never if !sender_fault && error.kind() == ErrorKind::Internal => Retry::Safe,
        Retry::Uncertain => Retry::Safe,
        retry => retry,
    };
    error.with_retry(retry)
}

fn uncertain(kind: ErrorKind, text: &'static str) -> Error {
    Error::new(kind, text).with_retry(Retry::Uncertain)
}

/// A failure before there was an answer.
fn of_source(error: &(dyn StdError + 'static), dispatch: Option<&DispatchFailure>) -> Error {
    let mut chain = vec![error];
    let mut cause = error.source();
    while let Some(error) = cause {
        chain.push(error);
        cause = error.source();
    }
    let text = || chain.last().map(ToString::to_string).unwrap_or_default();
    let client = chain.iter().find_map(|error| error.downcast_ref::<hyper_util::client::legacy::Error>());
    if client.is_some_and(hyper_util::client::legacy::Error::is_connect) {
        let text = format!("cannot connect: {}; is the region or the endpoint right?", clip(&text()));
        return Error::new(ErrorKind::Disconnected, text).with_retry(Retry::Safe);
    }
    if dispatch.is_some_and(DispatchFailure::is_timeout) {
        return uncertain(ErrorKind::Timeout, "no answer in time");
    }
    let is_credentials = chain.iter().any(|error| {
        error.downcast_ref::<aws_credential_types::provider::error::CredentialsError>().is_some()
            || error.to_string().contains("credentials")
    });
    if is_credentials {
        // What the provider says may quote what it was given.
        let text = "no credentials could be had: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile \
            (?profile=NAME), or log in again (aws sso login)";
        return Error::new(ErrorKind::Unauthenticated, text);
    }
    if dispatch.is_some_and(|dispatch| !dispatch.is_user()) {
        let text = format!("the connection was lost: {}", clip(&text()));
        return Error::new(ErrorKind::Disconnected, text).with_retry(Retry::Uncertain);
    }
    Error::new(ErrorKind::Internal, format!("the request could not be made: {}", clip(&text())))
}

/// The error of a code, as SQS, SNS and EventBridge write it: with or without a prefix or suffix.
fn of_code(code: &str, message: &str, status: u16) -> Error {
    let name = code.rsplit(['#', '.']).next().unwrap_or(code);
    let name = name.strip_suffix("Exception").or(name.strip_suffix("Fault")).unwrap_or(name);
    let said = || format!("AWS says {code}: {}", clip(message));
    let forbidden = || {
        let said = said();
        format!(
            "{said}; the credentials are valid, but their policies, or the resource's own, do not allow this"
        )
    };
    let error = |kind, retry, text: String| Error::new(kind, text).with_retry(retry);
    match name {
        "Throttling"
        | "ThrottledRequest"
        | "RequestThrottled"
        | "RequestLimitExceeded"
        | "TooManyRequests"
        | "Throttled"
        | "KMSThrottling"
        | "KmsThrottled"
        | "SlowDown"
        | "OverLimit"
        | "LimitExceeded" => error(ErrorKind::Throttled, Retry::Safe, said()),
        "ServiceUnavailable" => error(ErrorKind::Disconnected, Retry::Safe, said()),
        "QueueDoesNotExist" | "NonExistentQueue" | "NotFound" | "ResourceNotFound" => {
            error(ErrorKind::NotFound, Retry::Never, said())
        }
        "QueueDeletedRecently" => error(ErrorKind::Conflict, Retry::Safe, said()),
        "QueueAlreadyExists" | "QueueNameExists" | "ResourceAlreadyExists" | "ConcurrentModification" => {
            error(ErrorKind::Conflict, Retry::Never, said())
        }
        // The clock is put right by the client from this answer; the next request is on time.
        "RequestTimeTooSkewed" | "RequestInTheFuture" | "RequestExpired" => error(
            ErrorKind::Unauthenticated,
            Retry::Safe,
            format!("AWS says {code}: this machine's clock is wrong"),
        ),
        "ExpiredToken" | "TokenRefreshRequired" => error(
            ErrorKind::Unauthenticated,
            Retry::Never,
            format!("AWS says {code}: the credentials have expired; get new ones (aws sso login)"),
        ),
        "InvalidClientTokenId"
        | "UnrecognizedClient"
        | "InvalidAccessKeyId"
        | "MissingAuthenticationToken"
        | "SignatureDoesNotMatch"
        | "InvalidSignature"
        | "IncompleteSignature"
        | "AuthFailure"
        | "NotAuthorized"
        | "InvalidToken" => error(
            ErrorKind::Unauthenticated,
            Retry::Never,
            // The text would quote the request.
            format!("AWS says {code}: it does not accept the credentials, or not in this region"),
        ),
        "AccessDenied"
        | "AuthorizationError"
        | "UnauthorizedOperation"
        | "KMSAccessDenied"
        | "KmsAccessDenied"
        | "KMSDisabled"
        | "KmsDisabled"
        | "OptInRequired"
        | "InvalidSecurity" => error(ErrorKind::PermissionDenied, Retry::Never, forbidden()),
        "ReceiptHandleIsInvalid" | "MessageNotInflight" | "InvalidIdFormat" => {
            error(ErrorKind::Stale, Retry::Never, said())
        }
        // What SQS says of a receipt whose message has gone, or was received again since.
        "InvalidParameterValue" if message.contains("eceipt") => {
            error(ErrorKind::Stale, Retry::Never, said())
        }
        "BatchRequestTooLong" => error(ErrorKind::LimitExceeded, Retry::Never, said()),
        "InvalidParameterValue"
        | "InvalidParameter"
        | "InvalidMessageContents"
        | "MissingParameter"
        | "InvalidAttributeName"
        | "InvalidAttributeValue"
        | "InvalidBatchEntryId"
        | "ValidationError"
        | "Validation"
        | "MalformedDetail"
        | "InvalidArgument"
        | "NotAuthorizedForSource" => error(ErrorKind::InvalidMessage, Retry::Never, said()),
        "UnsupportedOperation" => error(ErrorKind::Unsupported, Retry::Never, said()),
        _ if status == 429 || status == 503 => error(ErrorKind::Throttled, Retry::Safe, said()),
        _ if status >= 500 => error(ErrorKind::Disconnected, Retry::Uncertain, said()),
        _ if status == 403 => error(ErrorKind::PermissionDenied, Retry::Never, said()),
        _ => error(ErrorKind::Internal, Retry::Never, said()),
    }
}

fn clip(text: &str) -> &str {
    let end = (0..=MAX_TEXT.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_classed_by_what_mends_them() {
        for (code, status, kind, retry) in [
            ("ThrottlingException", 400, ErrorKind::Throttled, Retry::Safe),
            ("AWS.SimpleQueueService.NonExistentQueue", 400, ErrorKind::NotFound, Retry::Never),
            ("com.amazonaws.sqs#QueueDoesNotExist", 400, ErrorKind::NotFound, Retry::Never),
            ("AccessDeniedException", 403, ErrorKind::PermissionDenied, Retry::Never),
            ("InvalidClientTokenId", 403, ErrorKind::Unauthenticated, Retry::Never),
            ("ExpiredTokenException", 400, ErrorKind::Unauthenticated, Retry::Never),
            ("RequestTimeTooSkewed", 403, ErrorKind::Unauthenticated, Retry::Safe),
            ("ReceiptHandleIsInvalid", 400, ErrorKind::Stale, Retry::Never),
            ("InternalFailure", 500, ErrorKind::Disconnected, Retry::Uncertain),
            ("", 503, ErrorKind::Throttled, Retry::Safe),
            ("Unheard", 400, ErrorKind::Internal, Retry::Never),
        ] {
            let error = of_code(code, "text", status);
            assert_eq!((error.kind(), error.retry()), (kind, retry), "{code}");
        }
        let stale = of_code("InvalidParameterValue", "Value x for parameter ReceiptHandle is invalid", 400);
        assert_eq!(stale.kind(), ErrorKind::Stale);
    }

    #[test]
    fn an_entry_that_failed_was_not_accepted() {
        for (code, sender, retry) in [
            ("InternalError", false, Retry::Safe),
            ("ThrottlingException", false, Retry::Safe),
            ("Unheard", false, Retry::Safe),
            ("InvalidMessageContents", true, Retry::Never),
            ("Unheard", true, Retry::Never),
        ] {
            assert_eq!(of_entry(code, "text", sender).retry(), retry, "{code}");
        }
    }

    #[test]
    fn long_texts_are_cut_and_a_refused_signature_quotes_nothing() {
        assert!(of_code("x", &"ä".repeat(1000), 400).to_string().len() < 600);
        assert!(!of_code("SignatureDoesNotMatch", "hunter2", 403).to_string().contains("hunter2"));
    }
}
