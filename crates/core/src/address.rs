//! One address, one URL, for every role: create, publish, consume, browse and delete.
//!
//! ```text
//! scheme:[//[user[:password]@]authority][path][?option=value[&option=value]...]
//! ```
//!
//! [`Address`] is our own type, because broker lists, ARNs and queue URLs are not RFC 3986 URLs. The scheme, the user
//! info and the options are understood here; the part between is the transport's own. `#` is an ordinary character
//! (AMQP binding keys use it). Percent-encoding works everywhere; what must be encoded is what has a meaning at its
//! place: `@ : /` in user and password, `/ ?` in a path segment, `& = @` in an option (`@` within a URL needs not).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use crate::error::{Error, ErrorKind, Result};

/// What a redacted secret is shown as.
const REDACTED: &str = "***";

/// A parsed address. [`Display`](fmt::Display) and [`Debug`](fmt::Debug) show it with user info and secret options
/// (those whose names contain `pass`, `pwd`, `secret`, `token`, `credential`, `api_key`, `access_key`, `private_key` or
/// `key.pem`) as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    scheme: String,
    /// Percent-decoded.
    user: Option<String>,
    /// Percent-decoded.
    password: Option<String>,
    /// As written, between `//` and the next `/` or `?`, without user info. `None` where there is no `//`.
    authority: Option<String>,
    /// As written: everything between the authority and the `?`.
    path: String,
    /// Percent-decoded, in order.
    options: Vec<(String, String)>,
}

/// One option that a transport understands: for checking addresses, and for `--help` and the docs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressOption {
    /// Its name, as in `?name=value`; with a `*` at its end, all names that begin so.
    pub name: &'static str,
    /// What its value looks like, such as `NAME`, `DURATION` or `a|b`.
    pub value: &'static str,
    /// One sentence on what it does.
    pub help: &'static str,
}

impl AddressOption {
    /// Whether a name is this option's. Of a family (`kafka.*`), what stands for the `*` is not empty.
    fn is(&self, name: &str) -> bool {
        match self.name.strip_suffix('*') {
            Some(family) => name.strip_prefix(family).is_some_and(|rest| !rest.is_empty()),
            None => self.name == name,
        }
    }
}

impl Address {
    /// The scheme, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The user name, decoded.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The password, decoded. Never log it.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// Host, port or broker list: what stands after `//` and any user info, as written.
    pub fn authority(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    /// What stands between the authority (or the scheme) and the options, as written.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The whole path, percent-decoded.
    pub fn decoded_path(&self) -> Result<String> {
        decode(&self.path, "the path").map_err(|error| error.at("read address", self))
    }

    /// The value of an option, decoded.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// All options, decoded, in the order they were written.
    pub fn options(&self) -> impl Iterator<Item = (&str, &str)> {
        self.options.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }

    /// The value of an option in any type that can be parsed; `expected` says in the error what would have been right.
    pub fn parsed<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>> {
        self.option(name).map(|value| value.parse().map_err(|_| self.bad_option(name, expected))).transpose()
    }

    /// An option that is one of a few words.
    pub fn one_of<'a>(&self, name: &str, words: &[&'a str]) -> Result<Option<&'a str>> {
        self.option(name)
            .map(|value| {
                words
                    .iter()
                    .find(|word| **word == value)
                    .copied()
                    .ok_or_else(|| self.bad_option(name, &words.join(" or ")))
            })
            .transpose()
    }

    /// A duration such as `500ms`, `30s` or `5m`.
    pub fn duration(&self, name: &str) -> Result<Option<Duration>> {
        self.option(name)
            .map(|value| {
                humantime::parse_duration(value)
                    .map_err(|_| self.bad_option(name, "a duration such as 500ms, 30s or 5m"))
            })
            .transpose()
    }

    /// The error for an option whose value is not of the expected form. Secret values are not repeated.
    pub fn bad_option(&self, name: &str, expected: &str) -> Error {
        let shown = match self.option(name) {
            Some(value) if !is_secret(name) => format!(" '{}'", without_user_info(value)),
            _ => String::new(),
        };
        Error::new(ErrorKind::InvalidAddress, format!("option '{name}'{shown} is not {expected}"))
            .at("read address", self)
    }

    /// Refuses options that no role of this transport knows, naming the nearest that it does.
    pub fn check_options(&self, known: &[AddressOption]) -> Result<()> {
        for (name, _) in self.options() {
            if known.iter().any(|option| option.is(name)) {
                continue;
            }
            let nearest = known
                .iter()
                .map(|option| (strsim::damerau_levenshtein(option.name, name), option.name))
                .filter(|(distance, _)| *distance <= 3)
                .min();
            let hint = match nearest {
                Some((_, nearest)) => format!("did you mean '{nearest}'?"),
                None => {
                    let names: Vec<_> = known.iter().map(|option| option.name).collect();
                    format!("there are {}", names.join(", "))
                }
            };
            // Without the values: a misspelt name may be that of a secret.
            let mut shown = self.clone();
            shown.options.clear();
            return Err(Error::new(ErrorKind::InvalidAddress, format!("unknown option '{name}'; {hint}"))
                .at("read address", &shown));
        }
        Ok(())
    }

    /// The same address with one option set to another value (added if it was not there).
    pub fn with_option(mut self, name: &str, value: &str) -> Self {
        match self.options.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value.to_owned(),
            None => self.options.push((name.to_owned(), value.to_owned())),
        }
        self
    }

    /// The same address without these options.
    pub fn without_options(mut self, names: &[&str]) -> Self {
        self.options.retain(|(name, _)| !names.contains(&name.as_str()));
        self
    }

    /// The same address at another host and port.
    pub fn with_authority(self, authority: &str) -> Self {
        Self { authority: Some(authority.to_owned()), ..self }
    }

    /// The same address with another path, which must be percent-encoded where that is needed.
    pub fn with_path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// The same connection with the options, and so the destination, of another address.
    pub fn with_options_of(&self, other: &Self) -> Self {
        Self { options: other.options.clone(), ..self.clone() }
    }

    /// Whether scheme, credentials and authority are the same. What the path means, the transport knows.
    pub fn same_connection(&self, other: &Self) -> bool {
        let connection =
            |a: &Self| (a.scheme.clone(), a.user.clone(), a.password.clone(), a.authority.clone());
        connection(self) == connection(other)
    }
}

impl FromStr for Address {
    type Err = Error;

    /// Parses an address. The error says what is wrong but never repeats the text, which may hold a password.
    fn from_str(text: &str) -> Result<Self> {
        let bad = |what: &str| Error::new(ErrorKind::InvalidAddress, format!("malformed address: {what}"));
        if let Some(at) = text.find(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(bad(&format!(
                "a space or control character at byte {at}; write it percent-encoded (a space is %20)"
            )));
        }
        let (scheme, rest) = text
            .split_once(':')
            .ok_or_else(|| bad("no scheme; an address looks like memory:demo?queue=jobs"))?;
        let valid = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+.-".contains(c));
        if !valid {
            return Err(bad(
                "what stands before the first ':' is not a scheme; an address looks like memory:demo?queue=jobs",
            ));
        }
        let (body, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut address = Self {
            scheme: scheme.to_ascii_lowercase(),
            user: None,
            password: None,
            authority: None,
            path: body.to_owned(),
            options: Vec::new(),
        };
        if let Some(hierarchical) = body.strip_prefix("//") {
            let split = hierarchical.find('/').unwrap_or(hierarchical.len());
            let (authority, path) = hierarchical.split_at(split);
            let host = match authority.rsplit_once('@') {
                Some((user_info, host)) => {
                    let (user, password) = match user_info.split_once(':') {
                        Some((user, password)) => (user, Some(password)),
                        None => (user_info, None),
                    };
                    address.user = Some(decode(user, "the user name")?);
                    address.password =
                        password.map(|password| decode(password, "the password")).transpose()?;
                    host
                }
                None => authority,
            };
            // A password with a raw / or ? would end the authority, and be shown as a path or an option.
            if path.contains('@') {
                return Err(unencoded(&bad));
            }
            address.authority = Some(host.to_owned());
            address.path = path.to_owned();
        }
        // The same in an opaque path that is a URL of its own.
        if address.authority.is_none()
            && let Some((_, inner)) = body.split_once("//")
            && inner.split_once('/').is_some_and(|(_, path)| path.contains('@'))
        {
            return Err(unencoded(&bad));
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if name.contains('@') {
                return Err(unencoded(&bad));
            }
            let name = decode(name, "an option's name")?;
            if name.is_empty() {
                return Err(bad("an option without a name; options look like ?queue=jobs&prefetch=100"));
            }
            if address.option(&name).is_some() {
                return Err(bad(&format!("option '{name}' is given twice")));
            }
            // A password with a raw ? and = would be shown as this value. Behind // it is a URL's, and redacted.
            if value.split_once("//").map_or(value, |(before, _)| before).contains('@') {
                return Err(unencoded(&bad));
            }
            let value = decode(value, &format!("the value of option '{name}'"))?;
            address.options.push((name, value));
        }
        Ok(address)
    }
}

fn unencoded(bad: &impl Fn(&str) -> Error) -> Error {
    bad("an '@' where none can be; write it as %40, and in a user name or password / as %2f and ? as %3f")
}

/// The form that parses back, but for what is redacted.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme)?;
        if let Some(authority) = &self.authority {
            f.write_str("//")?;
            if self.user.is_some() {
                write!(f, "{REDACTED}@")?;
            }
            f.write_str(authority)?;
        }
        // An opaque path can be a URL of its own (`sqs:https://user:secret@host/queue`).
        match &self.authority {
            Some(_) => f.write_str(&self.path)?,
            None => f.write_str(&without_user_info(&self.path))?,
        }
        for (index, (name, value)) in self.options().enumerate() {
            f.write_str(if index == 0 { "?" } else { "&" })?;
            write!(f, "{}=", utf8_percent_encode(name, PLAIN))?;
            if is_secret(name) {
                f.write_str(REDACTED)?;
            } else {
                write!(f, "{}", encode(&without_user_info(value)))?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

/// A URL within a text, with its user info redacted; any other text as it is.
fn without_user_info(text: &str) -> Cow<'_, str> {
    if let Some((before, after)) = text.split_once("//") {
        // Up to the last '@', wherever it stands: rather too much than a part of a password.
        if let Some((_, rest)) = after.rsplit_once('@') {
            return format!("{before}//{REDACTED}@{rest}").into();
        }
    }
    text.into()
}

fn is_secret(option: &str) -> bool {
    let name = option.to_ascii_lowercase();
    ["pass", "pwd", "secret", "token", "credential", "api_key", "access_key", "private_key", "key.pem"]
        .iter()
        .any(|word| name.contains(word))
}

fn decode(text: &str, what: &str) -> Result<String> {
    percent_decode_str(text).decode_utf8().map(|decoded| decoded.into_owned()).map_err(|_| {
        Error::new(
            ErrorKind::InvalidAddress,
            format!("malformed address: {what} is not UTF-8 when percent-decoded"),
        )
    })
}

/// What would end an option, plus what the parser refuses. Everything else stays readable.
const SET: &AsciiSet = &CONTROLS.add(b' ').add(b'&').add(b'=').add(b'%').add(b'?');
/// The same outside a URL: in a name even within one.
const PLAIN: &AsciiSet = &SET.add(b'@');

fn encode(text: &str) -> String {
    let (plain, url) = text.split_at(text.find("//").unwrap_or(text.len()));
    format!("{}{}", utf8_percent_encode(plain, PLAIN), utf8_percent_encode(url, SET))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn reads_every_form_in_the_design() {
        let amqp = parse("amqps://us%40er:p%3Aw@host:5671/%2f?queue=jobs&key=a.#");
        assert_eq!((amqp.scheme(), amqp.user(), amqp.password()), ("amqps", Some("us@er"), Some("p:w")));
        assert_eq!((amqp.authority(), amqp.path()), (Some("host:5671"), "/%2f"));
        assert_eq!(amqp.decoded_path().unwrap(), "//");
        assert_eq!((amqp.option("queue"), amqp.option("key")), (Some("jobs"), Some("a.#")));
        let kafka = parse("kafka://b1:9092,b2:9092/topic?group=g");
        assert_eq!((kafka.authority(), kafka.path()), (Some("b1:9092,b2:9092"), "/topic"));
        assert_eq!(parse("memory:demo?queue=q").path(), "demo");
        assert_eq!(parse("sqs:arn:aws:sqs:eu-west-1:1:q").path(), "arn:aws:sqs:eu-west-1:1:q");
        assert_eq!(parse("sqs:https://host/1/q?region=x").to_string(), "sqs:https://host/1/q?region=x");
    }

    #[test]
    fn never_shows_a_secret() {
        for text in [
            "amqp://user:hunter2@host/%2f?queue=q",
            "amqp://host/?tls_password=hunter2",
            "sqs:https://user:hunter2@host/q",
            "sqs://q?session_token=hunter2",
            "kafka://b/t?kafka.ssl.key.pem=hunter2",
            "kafka://b/t?kafka.sasl.password=hunter2",
            "sqs://q?endpoint=http://user:hunter2@host/x",
        ] {
            let address = parse(text);
            let shown = format!("{address} {address:?}");
            assert!(!shown.contains("hunter2") && shown.contains(REDACTED), "{shown}");
        }
        for text in [
            "amqp://user:hunter2@host with space",
            "amqp://user:hun/hunter2@host/v?queue=q",
            "amqp://user:hun?hunter2@host/v?queue=q",
            "sqs:https://user:hun/hunter2@host/q",
            "amqp://user:hun?queue=hunter2@host/v",
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let error = parse("sqs://q?endpoint=http://user:hunter2@host").bad_option("endpoint", "a URL");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let error = parse("amqp://host?tls_pasword=hunter2").check_options(&[]).unwrap_err();
        assert!(
            error.to_string().contains("tls_pasword") && !error.to_string().contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn options_and_authority_can_be_changed() {
        let address = parse("amqp://u:p@host/v?queue=a&heartbeat=5s").without_options(&["queue"]);
        let address = address.with_authority("127.0.0.1:9").with_option("queue", "b");
        assert_eq!(address, parse("amqp://u:p@127.0.0.1:9/v?heartbeat=5s&queue=b"));
    }

    #[test]
    fn an_at_in_a_name_is_shown_so_that_it_parses() {
        let address = parse("memory:p?a//b%40c=x//y@z");
        assert_eq!(address.option("a//b@c"), Some("x//y@z"));
        assert_eq!(parse(&address.to_string()).option("a//b@c"), Some("x//***@z"));
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, expected) in [
            ("jobs", "no scheme"),
            ("9a:x", "not a scheme"),
            ("memory:a?queue=1&queue=2", "given twice"),
            ("memory:a?=1", "without a name"),
            ("memory:a?queue=%ff", "option 'queue' is not UTF-8"),
            ("memory:a b", "byte 8"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidAddress);
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn an_unknown_option_names_the_nearest() {
        let known = [AddressOption { name: "queue", value: "NAME", help: "" }];
        let error = parse("memory:a?qeue=x").check_options(&known).unwrap_err();
        assert!(error.to_string().contains("did you mean 'queue'?"), "{error}");
        let family = [AddressOption { name: "kafka.*", value: "VALUE", help: "" }];
        assert!(parse("kafka:a?kafka.acks=1").check_options(&family).is_ok());
        for unknown in ["kafka:a?kafka.=1", "kafka:a?acks=1"] {
            assert!(parse(unknown).check_options(&family).is_err(), "{unknown}");
        }
        let error = parse("memory:a?completely=x").check_options(&known).unwrap_err();
        assert!(error.to_string().contains("there are queue"), "{error}");
    }

    proptest! {
        #[test]
        fn no_input_panics(text in ".*") {
            if let Ok(address) = text.parse::<Address>() {
                let _ = (address.to_string(), address.decoded_path());
            }
        }

        #[test]
        fn what_is_shown_parses_back(name in "[a-z]{1,8}", value in "\\PC*", path in "[a-z/.]{0,9}") {
            let address = parse(&format!("memory:p{path}")).with_option(&format!("o{name}"), &value);
            prop_assume!(!is_secret(&name) && without_user_info(&value) == value && !value.chars().any(char::is_whitespace) && !path.contains("//"));
            prop_assert_eq!(parse(&address.to_string()), address);
        }
    }
}
