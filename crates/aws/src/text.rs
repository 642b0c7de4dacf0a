//! What SQS and SNS take as text.
//!
//! <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html>

/// The longest name of an attribute, in bytes.
pub const MAX_NAME: usize = 256;

/// Whether every character may stand in a body or a string attribute: `#x9 #xA #xD #x20-#xD7FF #xE000-#xFFFD
/// #x10000-#x10FFFF`. Anything else makes SQS refuse the message.
pub fn is_legal(text: &str) -> bool {
    text.chars().all(|c| match c {
        '\t' | '\n' | '\r' => true,
        '\u{fffe}' | '\u{ffff}' => false,
        c => c >= ' ',
    })
}

/// Whether an attribute may have this name: at most 256 of `A-Z a-z 0-9 _ - .`, no full stop at either end or next to
/// another, and not one of AWS's own.
pub fn is_attribute_name(name: &str) -> bool {
    let own = |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !name.contains("..")
        && !own("aws.")
        && !own("amazon.")
}

/// Whether SQS and SNS take it as a `Number`: at most 38 digits, with an exponent between -128 and 126.
pub fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits(whole)
        && digits(fraction)
        && mantissa.len() <= 38
        && exponent.is_none_or(|exponent| {
            exponent.parse::<i32>().is_ok_and(|exponent| (-90..=88).contains(&exponent))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_non_characters_are_not_legal() {
        assert!(is_legal("") && is_legal("a\t\n\rä\u{d7ff}\u{e000}\u{fffd}\u{10000}\u{10ffff}"));
        for c in ['\0', '\u{8}', '\u{b}', '\u{1f}', '\u{fffe}', '\u{ffff}'] {
            assert!(!is_legal(&format!("a{c}b")), "{c:?}");
        }
    }

    #[test]
    fn attribute_names() {
        assert!(["a", "traceparent", "A-b_c.1"].into_iter().all(is_attribute_name));
        assert!(is_attribute_name(&"x".repeat(256)) && !is_attribute_name(&"x".repeat(257)));
        for bad in ["", ".a", "a.", "a..b", "ä", "a b", "AWS.x", "aws.x", "Amazon.x", "AMAZON."] {
            assert!(!is_attribute_name(bad), "{bad}");
        }
        assert!(is_attribute_name("awsome"));
    }

    #[test]
    fn numbers() {
        assert!(["0", "-1", "1.5", "1e3", "-2.5E-10"].into_iter().all(is_number));
        for bad in ["", "-", "1.", ".5", "1e", "1e999", "abc", "0x1", "NaN", &"1".repeat(39)] {
            assert!(!is_number(bad), "{bad}");
        }
    }
}
