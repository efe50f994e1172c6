//! TLS by rustls with ring, 1.2 and 1.3, towards clients ([`server`]) and towards workers ([`workers`]); a manager is
//! reached as a worker is ([`connector`]).
//! Files are in PEM and are read again when they change: connections that there are go on as they are, new
//! ones go by the new files. Files that cannot be used change nothing.

use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use thiserror::Error;
use tokio_rustls::rustls;

use crate::types::tls::CertificateFiles;

mod connector;
mod server;
mod workers;

pub use connector::Connector;
pub use server::{Purpose, Tls};
pub use workers::{Connectors, Fault, Peer, WorkerTlsError};

/// What is agreed on for HTTP, by ALPN.
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Why files cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: {why}", .path.display())]
pub struct TlsError {
    path: PathBuf,
    why: String,
}

impl TlsError {
    fn new(path: &Path, why: &dyn Display) -> Self {
        Self { path: path.to_owned(), why: why.to_string() }
    }
}

/// Changes whenever a file does; one that cannot be read is like an empty one.
fn fingerprint<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for path in files {
        std::fs::read(path).unwrap_or_default().hash(&mut hasher);
    }
    hasher.finish()
}

/// A certificate with its key, which belong together.
fn certified(
    files: &CertificateFiles,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let chain = chain(&files.chain)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| TlsError::new(&files.key, &error))?;
    CertifiedKey::from_der(chain, key, provider)
        .map_err(|error| TlsError::new(&files.key, &format!("{error} ({})", files.chain.display())))
}

/// The certificates of a file, at least one.
fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| TlsError::new(path, &error))?;
    let Some(first) = found.first() else {
        return Err(TlsError::new(path, &"there is no certificate in it"));
    };
    ParsedCertificate::try_from(first).map_err(|error| TlsError::new(path, &error))?;
    Ok(found)
}

/// Those of a file as ones that may vouch for others.
fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(path)? {
        roots.add(certificate).map_err(|error| TlsError::new(path, &error))?;
    }
    Ok(roots)
}
