//! What `publish` prints of a message: the receipt.

use serde::Serialize;
use throughline::{Error, Receipt, Retry};

use crate::failure::Failure;
use crate::message::json_line;
use crate::output::visible;

/// What identifies a message that was sent.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sent {
    /// Its line, with `--lines`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) line: Option<u64>,
    pub(crate) id: String,
    #[serde(rename = "type")]
    pub(crate) message_type: Option<String>,
    pub(crate) trace_id: Option<String>,
}

impl Sent {
    /// One JSON object.
    pub(crate) fn json(&self, receipt: &Receipt) -> Result<String, Failure> {
        #[derive(Serialize)]
        struct Line<'a> {
            #[serde(flatten)]
            sent: &'a Sent,
            native_id: Option<&'a str>,
            deduplicated: bool,
        }
        json_line(&Line {
            sent: self,
            native_id: receipt.native_id.as_deref(),
            deduplicated: receipt.deduplicated,
        })
    }

    /// One JSON object of a line that was not sent, or of which nobody knows.
    pub(crate) fn json_failed(&self, error: &Error) -> Result<String, Failure> {
        #[derive(Serialize)]
        struct Line<'a> {
            #[serde(flatten)]
            sent: &'a Sent,
            error: What<'a>,
        }
        #[derive(Serialize)]
        struct What<'a> {
            kind: String,
            message: &'a str,
            retry: &'static str,
        }
        let retry = match error.retry() {
            Retry::Never => "never",
            Retry::Safe => "safe",
            Retry::Uncertain => "uncertain",
        };
        json_line(&Line {
            sent: self,
            error: What { kind: format!("{:?}", error.kind()), message: error.message(), retry },
        })
    }

    /// A few lines for people; with `--lines`, one.
    pub(crate) fn for_people(&self, receipt: &Receipt) -> String {
        let deduplicated = if receipt.deduplicated { "yes: the broker had it already" } else { "no" };
        if let Some(line) = self.line {
            let native =
                receipt.native_id.as_ref().map(|id| format!("  {}", visible(id))).unwrap_or_default();
            let known = if receipt.deduplicated { "  (the broker had it already)" } else { "" };
            return format!("line {line}  {}{native}{known}\n", visible(&self.id));
        }
        let mut rows = vec![("id", self.id.as_str())];
        rows.extend(self.message_type.as_deref().map(|it| ("type", it)));
        rows.push(("trace id", self.trace_id.as_deref().unwrap_or("none")));
        rows.extend(receipt.native_id.as_deref().map(|it| ("native id", it)));
        rows.push(("deduplicated", deduplicated));
        rows.iter().map(|(label, value)| format!("{label:<14}{}\n", visible(value))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use throughline::ErrorKind;

    fn sent(line: Option<u64>) -> Sent {
        Sent { line, id: "i".into(), message_type: None, trace_id: None }
    }

    #[test]
    fn json_has_a_fixed_set_of_members() {
        assert_eq!(
            sent(None).json(&Receipt::with_native_id("n")).unwrap(),
            "{\"id\":\"i\",\"type\":null,\"trace_id\":null,\"native_id\":\"n\",\"deduplicated\":false}\n"
        );
        let error = Error::new(ErrorKind::Timeout, "no answer").with_retry(Retry::Uncertain);
        assert_eq!(
            sent(Some(3)).json_failed(&error).unwrap(),
            concat!(
                r#"{"line":3,"id":"i","type":null,"trace_id":null,"#,
                r#""error":{"kind":"Timeout","message":"no answer","retry":"uncertain"}}"#,
                "\n"
            )
        );
    }

    #[test]
    fn text_is_safe_for_a_terminal() {
        let mut sent = sent(None);
        sent.id = "\u{1b}[2J".into();
        assert!(!sent.for_people(&Receipt::default()).contains('\u{1b}'));
    }
}
