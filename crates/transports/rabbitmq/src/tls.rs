//! TLS by rustls: whom we trust, and who we are.

use std::io;
use std::path::Path;

use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use throughline_core::{Error, ErrorKind, Result};

use crate::config::Tls;

/// Reads what the settings name. Blocks: files are read, and the system's certificates.
pub(crate) fn connector(tls: &Tls) -> Result<RustlsConnector> {
    let roots = match &tls.ca {
        Some(path) => RustlsConnectorConfig::default().with_parsable_certificates(certificates("ca", path)?),
        None => RustlsConnectorConfig::new_with_native_certs().map_err(|error| {
            let text =
                format!("the system has no trusted certificates ({error}); name an authority with 'ca'");
            Error::new(ErrorKind::InvalidAddress, text).with_source(error)
        })?,
    };
    let connector = match &tls.identity {
        Some((certificate, key)) => roots.connector_with_single_cert(
            certificates("client_cert", certificate)?,
            PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable("client_key", key, &error))?,
        ),
        None => roots.connector_with_no_client_auth(),
    };
    connector.map_err(|error: io::Error| {
        Error::new(ErrorKind::InvalidAddress, format!("the TLS files do not fit together: {error}"))
            .with_source(error)
    })
}

fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => Err(unreadable(option, path, &"no certificate in it")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(unreadable(option, path, &error)),
    }
}

fn unreadable(option: &str, path: &Path, why: &dyn std::fmt::Display) -> Error {
    let text = format!("option '{option}': cannot read {} as PEM: {why}", path.display());
    Error::new(ErrorKind::InvalidAddress, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_pem_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for path in [file.path(), Path::new("/nowhere.pem")] {
            let tls = Tls { ca: Some(path.to_owned()), identity: None, server_name: "h".into() };
            let error = connector(&tls).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidAddress);
            assert!(error.to_string().contains("'ca'") && error.to_string().contains(path.to_str().unwrap()));
        }
    }
}
