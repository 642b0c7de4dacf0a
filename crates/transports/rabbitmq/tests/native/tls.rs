//! TLS, through a proxy that terminates it in front of the plain port.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tempfile::TempDir;
use throughline_core::ErrorKind;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::connecting::broker;
use crate::rig::{Rig, body, connect, message, name, next};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A terminating proxy; with `clients`, only who has a certificate of theirs gets in.
async fn terminate(target: String, authority: &Authority, clients: Option<&Authority>) -> u16 {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(clients.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
        None => builder.with_no_client_auth(),
    };
    let config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (acceptor, target) = (acceptor.clone(), target.clone());
            tokio::spawn(async move {
                let Ok(mut client) = acceptor.accept(client).await else { return };
                let mut server = TcpStream::connect(target).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}

fn file(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_works_with_the_right_authority_only() {
    let Some(rig) = Rig::new("tls_works_with_the_right_authority_only").await else { return };
    let queue = rig.queue("").await;
    let folder = TempDir::new().unwrap();
    let (right, wrong) = (authority(), authority());
    let port = terminate(broker(&rig), &right, None).await;
    let url = |ca: &PathBuf| {
        format!("amqps://guest:guest@localhost:{port}/%2f?queue={}&ca={}", name(&queue), ca.display())
    };
    let ca = file(&folder, "right.pem", &right.pem());
    let transport = connect(&url(&ca)).await.unwrap();
    let address = url(&ca).parse().unwrap();
    let (publisher, mut consumer) = {
        use throughline_core::{ConsumeOptions, Consumer, PublishOptions, Publisher};
        let options = ConsumeOptions::default();
        let driver = transport.publisher(&address).await.unwrap();
        let publisher = Publisher::new(driver, &address, PublishOptions::default());
        let driver = transport.consumer(&address, &options).await.unwrap();
        (publisher, Consumer::new(driver, &address, options))
    };
    publisher.publish(message("secret")).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(body(&delivery), "secret");
    delivery.ack().await.unwrap();
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    transport.close().await.unwrap();

    let error = connect(&url(&file(&folder, "wrong.pem", &wrong.pem()))).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    assert!(error.to_string().contains("certificate") && error.to_string().contains("'ca'"), "{error}");
    // A plain port is not a TLS one.
    let plain = format!("amqps://guest:guest@{}/%2f?ca={}", broker(&rig), ca.display());
    let error = connect(&plain).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
    // The certificate is for localhost.
    let other = format!("{}&server_name=example.org", url(&ca));
    let error = connect(&other).await.err().unwrap();
    assert!(error.to_string().contains("certificate"), "{error}");
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown() {
    let Some(rig) = Rig::new("a_client_certificate_is_shown").await else { return };
    let folder = TempDir::new().unwrap();
    let (servers, clients) = (authority(), authority());
    let port = terminate(broker(&rig), &servers, Some(&clients)).await;
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &clients).unwrap();
    let ca = file(&folder, "ca.pem", &servers.pem());
    let cert = file(&folder, "cert.pem", &certificate.pem());
    let key = file(&folder, "key.pem", &key.serialize_pem());
    let bare = format!("amqps://guest:guest@localhost:{port}/%2f?ca={}", ca.display());
    let identified = format!("{bare}&client_cert={}&client_key={}", cert.display(), key.display());
    connect(&identified).await.unwrap().close().await.unwrap();
    let error = connect(&bare).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
    rig.finish().await;
}
