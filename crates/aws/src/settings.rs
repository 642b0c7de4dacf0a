//! Region, profile, endpoint and credentials: from the address, and from where AWS's own tools take them.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use throughline_core::address::AddressOption;
use throughline_core::{Address, Error, ErrorKind, Result};
use url::Url;

/// How long a connection may take where the address does not say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request may take, beyond what it is asked to wait.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The options that every address of AWS may have.
pub const OPTIONS: [AddressOption; 5] = [
    AddressOption { name: "region", value: "NAME", help: "The region; else as AWS's own tools find it." },
    AddressOption { name: "profile", value: "NAME", help: "The profile of the shared configuration files." },
    AddressOption {
        name: "endpoint",
        value: "URL",
        help: "Where to send requests instead of AWS, such as http://127.0.0.1:4566; else AWS_ENDPOINT_URL.",
    },
    AddressOption {
        name: "timeout",
        value: "DURATION",
        help: "How long a request may take, beyond the time that it waits for messages; 10s by default.",
    },
    AddressOption {
        name: "connect_timeout",
        value: "DURATION",
        help: "How long a connection may take; 5s by default.",
    },
];

/// The error of an address that cannot be meant.
pub fn bad(address: &Address, text: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidAddress, text).at("read address", address)
}

/// What an address says of the connection. Credentials are never part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The region.
    pub region: Option<String>,
    /// The profile.
    pub profile: Option<String>,
    /// Where requests go instead of AWS.
    pub endpoint: Option<String>,
    /// How long a request may take, beyond what it is asked to wait.
    pub timeout: Duration,
    /// How long a connection may take.
    pub connect_timeout: Duration,
}

impl Settings {
    /// Reads an address. Credentials in it are refused: they have places of their own.
    pub fn of(address: &Address) -> Result<Self> {
        if address.user().is_some() {
            let text = "credentials do not belong into an address of AWS: set AWS_ACCESS_KEY_ID and \
                AWS_SECRET_ACCESS_KEY, or name a profile (?profile=NAME)";
            return Err(bad(address, text));
        }
        let option = |name| address.option(name).filter(|value: &&str| !value.is_empty()).map(str::to_owned);
        let endpoint = option("endpoint");
        if let Some(endpoint) = &endpoint {
            let url = Url::parse(endpoint).ok();
            let is_url = url.is_some_and(|url| {
                matches!(url.scheme(), "http" | "https") && url.has_host() && url.username().is_empty()
            });
            if !is_url {
                return Err(address.bad_option("endpoint", "a URL such as http://127.0.0.1:4566"));
            }
        }
        Ok(Self {
            region: option("region"),
            profile: option("profile"),
            endpoint,
            timeout: address.duration("timeout")?.unwrap_or(TIMEOUT),
            connect_timeout: address.duration("connect_timeout")?.unwrap_or(CONNECT_TIMEOUT),
        })
    }

    /// Finds what the address does not say, as AWS's own tools do: environment, shared files, SSO, the machine's own
    /// role. No request is made but for credentials, and those later.
    ///
    /// The SDK's own retries are off: what is safe to send again, the portable layer sends again.
    pub async fn load(&self, service: Service) -> Result<Connection> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http_client())
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(self.timeouts(Duration::ZERO));
        if let Some(region) = &self.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(profile) = &self.profile {
            loader = loader.profile_name(profile);
        }
        let endpoint = self.endpoint.clone().or_else(|| endpoint_of_environment(service));
        if let Some(endpoint) = &self.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        let is_local = endpoint.as_deref().is_some_and(is_loopback);
        if is_local && self.profile.is_none() && !has_credentials() {
            // An emulator asks for none, and looking for them elsewhere takes its time.
            let none = Credentials::new("test", "test", None, None, "throughline: a loopback endpoint");
            loader = loader.credentials_provider(SharedCredentialsProvider::new(none));
            if self.region.is_none() && std::env::var_os("AWS_REGION").is_none() {
                loader = loader.region(Region::from_static("us-east-1"));
            }
        }
        let config = loader.load().await;
        let Some(region) = config.region() else {
            let text = "no region is known: add ?region=NAME to the address, or set AWS_REGION";
            return Err(Error::new(ErrorKind::InvalidAddress, text));
        };
        let region = region.to_string();
        let server = match endpoint.as_deref().or(config.endpoint_url()).map(Url::parse) {
            Some(Ok(url)) => (url.host_str().unwrap_or_default().to_owned(), url.port_or_known_default()),
            _ => (format!("{}.{region}.amazonaws.com", service.host()), Some(443)),
        };
        Ok(Connection { config, region, server, timeouts: self.clone() })
    }

    /// The time-outs of a request that waits so long for messages.
    fn timeouts(&self, wait: Duration) -> TimeoutConfig {
        TimeoutConfig::builder()
            .connect_timeout(self.connect_timeout)
            .operation_timeout(self.timeout.saturating_add(wait))
            .build()
    }
}

/// An HTTP client with a pool of its own: connections belong to the runtime that they were made in. TLS trusts what the
/// system trusts.
pub fn http_client() -> SharedHttpClient {
    Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https()
}

/// Which service a transport speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Simple Queue Service.
    Sqs,
    /// Simple Notification Service.
    Sns,
    /// EventBridge.
    EventBridge,
}

impl Service {
    /// The first part of its host names.
    fn host(self) -> &'static str {
        match self {
            Self::Sqs => "sqs",
            Self::Sns => "sns",
            Self::EventBridge => "events",
        }
    }

    /// The environment variable of its endpoint.
    fn variable(self) -> &'static str {
        match self {
            Self::Sqs => "AWS_ENDPOINT_URL_SQS",
            Self::Sns => "AWS_ENDPOINT_URL_SNS",
            Self::EventBridge => "AWS_ENDPOINT_URL_EVENTBRIDGE",
        }
    }
}

/// What clients are made of.
#[derive(Clone)]
pub struct Connection {
    /// For any of the SDK's clients.
    pub config: SdkConfig,
    /// The region that it is for.
    pub region: String,
    /// The host and port, for spans.
    pub server: (String, Option<u16>),
    timeouts: Settings,
}

impl Connection {
    /// The time-outs of a request that waits so long for messages.
    pub fn timeouts(&self, wait: Duration) -> TimeoutConfig {
        self.timeouts.timeouts(wait)
    }

    /// How requests that change nothing, or change the same thing again, are tried again by the SDK.
    pub fn retries() -> RetryConfig {
        RetryConfig::standard()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("region", &self.region)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

fn endpoint_of_environment(service: Service) -> Option<String> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    variable(service.variable()).or_else(|| variable("AWS_ENDPOINT_URL"))
}

/// Whether the environment names credentials, or where they are.
fn has_credentials() -> bool {
    ["AWS_ACCESS_KEY_ID", "AWS_PROFILE"].into_iter().any(|name| std::env::var_os(name).is_some())
}

/// Whether an endpoint is on this machine.
fn is_loopback(endpoint: &str) -> bool {
    Url::parse(endpoint).is_ok_and(|url| match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings> {
        Settings::of(&text.parse().unwrap())
    }

    #[test]
    fn reads_an_address() {
        let read =
            settings("sqs://q?region=eu-west-1&profile=p&endpoint=http://127.0.0.1:4566&timeout=3s").unwrap();
        assert_eq!((read.region.as_deref(), read.profile.as_deref()), (Some("eu-west-1"), Some("p")));
        assert_eq!(read.endpoint.as_deref(), Some("http://127.0.0.1:4566"));
        assert_eq!((read.timeout, read.connect_timeout), (Duration::from_secs(3), Duration::from_secs(5)));
    }

    #[test]
    fn says_what_is_wrong_and_shows_no_secret() {
        for (text, expected) in [
            ("sqs://AKIA:hunter2@q", "AWS_SECRET_ACCESS_KEY"),
            ("sqs://q?endpoint=127.0.0.1:4566", "a URL such as"),
            ("sqs://q?endpoint=http://user:hunter2@host", "a URL such as"),
            ("sqs://q?timeout=soon", "a duration"),
        ] {
            let error = settings(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidAddress);
            let text = error.to_string();
            assert!(text.contains(expected) && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn knows_this_machine() {
        assert!(
            ["http://127.0.0.1:1", "http://localhost", "http://[::1]:2", "http://sqs.localhost:3"]
                .into_iter()
                .all(is_loopback)
        );
        assert!(!is_loopback("https://sqs.eu-west-1.amazonaws.com") && !is_loopback("x"));
    }
}
