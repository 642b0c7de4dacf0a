//! Which dead letters are meant.

use throughline::Failure as Attempt;

use crate::args::DlqRedriveArgs;

/// What a dead letter must be, as far as it is asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    message_type: Option<String>,
    dependency: Option<String>,
    error: Option<String>,
}

impl Filter {
    pub(super) fn new(args: &DlqRedriveArgs) -> Self {
        Self {
            message_type: args.message_type.clone(),
            dependency: args.dependency.clone(),
            error: args.error.clone(),
        }
    }

    pub(super) fn takes(&self, message_type: Option<&str>, last: Option<&Attempt>) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        is(&self.message_type, message_type)
            && is(&self.dependency, last.and_then(|last| last.dependency.as_deref()))
            && is(&self.error, last.map(|last| last.error.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_has_all_that_is_asked_for() {
        let last = Attempt::new("http_503").dependency("ads-api");
        let filter = |message_type: Option<&str>, dependency: Option<&str>, error: Option<&str>| Filter {
            message_type: message_type.map(str::to_owned),
            dependency: dependency.map(str::to_owned),
            error: error.map(str::to_owned),
        };
        assert!(filter(None, None, None).takes(None, None));
        assert!(filter(Some("a"), Some("ads-api"), Some("http_503")).takes(Some("a"), Some(&last)));
        assert!(!filter(Some("b"), None, None).takes(Some("a"), Some(&last)));
        assert!(!filter(None, Some("db"), None).takes(Some("a"), Some(&last)));
        assert!(!filter(None, None, Some("timeout")).takes(Some("a"), Some(&last)));
        assert!(!filter(None, Some("ads-api"), None).takes(Some("a"), None));
    }
}
