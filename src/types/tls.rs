//! Where TLS finds its certificates and keys.

use std::path::PathBuf;

/// What a listener shows its clients, and what it asks of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates with their keys, at least one; the first is for whoever names none of them.
    pub certificates: Vec<CertificateFiles>,
    /// The certificates of those who may vouch for clients, in PEM; with it, clients have to show one.
    pub client_ca: Option<PathBuf>,
}

/// A certificate, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// It, and those between it and its root, in this order.
    pub chain: PathBuf,
    /// Its private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}
