//! TLS and SASL, on a broker of its own: `cargo test -p throughline-kafka --features ssl --test secure`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use throughline_brokers::Kafka;
use throughline_brokers::kafka::{Secure, StartOptions};
use throughline_core::driver::Transport;
use throughline_core::{
    Address, ConsumeOptions, Consumer, Envelope, ErrorKind, PublishOptions, Publisher, Result,
};
use throughline_kafka::REGISTRATION;

const USER: &str = "app";
const PASSWORD: &str = "well-kept";

/// An authority of this name, and what a broker on loopback shows of it: certificates and key.
fn certificates(name: &str) -> (String, String, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // OpenSSL takes a certificate whose issuer has its own name for one that nobody has signed.
    params.distinguished_name.push(DnType::CommonName, name);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    (authority.pem(), certificate.pem(), key.serialize_pem())
}

async fn connect(address: &str) -> Result<std::sync::Arc<dyn Transport>> {
    (REGISTRATION.connect)(address.parse()?).await
}

async fn round_trip(address: &str) {
    let transport = connect(address).await.unwrap();
    let address: Address = address.parse().unwrap();
    transport.create(&address).await.unwrap();
    let publisher =
        Publisher::new(transport.publisher(&address).await.unwrap(), &address, PublishOptions::default());
    publisher.publish(Envelope::builder("secure.test").payload("x").build()).await.unwrap();
    publisher.close().await.unwrap();
    let options = ConsumeOptions::default();
    let driver = transport.consumer(&address, &options).await.unwrap();
    let mut consumer = Consumer::new(driver, &address, options);
    let delivery =
        tokio::time::timeout(Duration::from_secs(60), consumer.next()).await.expect("a message in time");
    delivery.unwrap().unwrap().ack().await.unwrap();
    consumer.close().await.unwrap();
    transport.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_and_scram_over_tls_work_and_what_is_wrong_is_told() {
    if !Kafka::installed() {
        throughline_brokers::skip(
            "plain_and_scram_over_tls_work_and_what_is_wrong_is_told",
            "Apache Kafka is not installed",
        );
        return;
    }
    let (authority, certificates, key) = certificates("authority");
    let secure = Secure { certificates, key, user: USER.to_owned(), password: PASSWORD.to_owned() };
    let options = StartOptions { secure: Some(secure), ..StartOptions::default() };
    let broker = Kafka::start(&options).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let trusted = folder.path().join("authority.pem");
    std::fs::write(&trusted, &authority).unwrap();
    let at = broker.secure_broker();
    let trust = format!("kafka.ssl.ca.location={}", trusted.display());

    // PLAIN, which a password in the address means.
    round_trip(&format!("kafka://{USER}:{PASSWORD}@{at}/plain?group=g&{trust}")).await;
    let scram = "kafka.sasl.mechanism=SCRAM-SHA-512";
    round_trip(&format!("kafka://{USER}:{PASSWORD}@{at}/scram?group=g&{trust}&{scram}")).await;

    for mechanism in ["PLAIN", "SCRAM-SHA-512"] {
        let address = format!("kafka://{USER}:ill-kept@{at}/plain?{trust}&kafka.sasl.mechanism={mechanism}");
        let error = connect(&address).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{mechanism}: {error}");
        assert!(!format!("{error} {error:?}").contains("ill-kept"), "{error:?}");
    }
    // Another authority's certificate is not trusted.
    std::fs::write(&trusted, self::certificates("stranger").0).unwrap();
    let error = connect(&format!("kafka://{USER}:{PASSWORD}@{at}/plain?{trust}")).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(!format!("{error} {error:?}").contains(PASSWORD), "{error:?}");
    // Without TLS nobody answers, and the password is not sent.
    let plain =
        format!("kafka://{USER}:{PASSWORD}@{at}/plain?kafka.security.protocol=plaintext&connect_timeout=3s");
    assert!(connect(&plain).await.is_err());
}
