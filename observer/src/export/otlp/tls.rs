//! Whom we trust, and who we are.

use super::transport::SetupError;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;

/// The authorities of the system and those of a file; with a certificate of our own if there is one.
pub(super) fn config(ca: Option<&Path>, cert: Option<&Path>, key: Option<&Path>) -> Result<ClientConfig, SetupError> {
    let mut roots = RootCertStore::empty();
    // Read first: a name that is wrong is a better error than "nobody to trust".
    if let Some(path) = ca {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| pem(path, error.to_string()))?;
        }
    }
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| pem(key, error.to_string()))?;
            Some((cert, certificates(cert)?, private))
        }
        (None, None) => None,
        _ => return Err(SetupError::HalfAnIdentity),
    };
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if roots.is_empty() {
        let problem = system.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
        return Err(SetupError::NoRoots { problem });
    }
    let builder = builder()?.with_root_certificates(roots);
    match identity {
        Some((path, chain, key)) => {
            builder.with_client_auth_cert(chain, key).map_err(|error| pem(path, error.to_string()))
        }
        None => Ok(builder.with_no_client_auth()),
    }
}

/// For a connector that is never asked for TLS: trusts nobody.
pub(super) fn unused() -> Result<ClientConfig, SetupError> {
    Ok(builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, SetupError> {
    // Named, not the process' default: another room may have another one.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let problem = |error: rustls::pki_types::pem::Error| pem(path, error.to_string());
    let list: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(problem)?.collect::<Result<_, _>>().map_err(problem)?;
    if list.is_empty() { Err(pem(path, "no certificate in it".to_owned())) } else { Ok(list) }
}

fn pem(path: &Path, problem: String) -> SetupError {
    SetupError::Pem { path: path.to_owned(), problem }
}
