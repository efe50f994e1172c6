//! Where TLS finds its certificates and keys.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a listener shows its clients, and what it asks of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates with their keys, at least one; the first is for whoever names none of them.
    pub certificates: Vec<CertificateFiles>,
    /// The certificates of those who may vouch for clients, in PEM.
    pub client_ca: Option<PathBuf>,
}

/// How workers, or a manager, are spoken to over TLS. Travels in the routing table: whoever follows it reads the files at
/// these paths on its own machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerTls {
    /// The certificates of those who may vouch for workers; `None`: whom the platform trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// What workers that ask for a certificate are shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<CertificateFiles>,
    /// The name that a worker's certificate has to be for, and that it is asked for (SNI); `None`: the
    /// host of its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Whether its certificate is looked at at all.
    pub verify: bool,
}

impl Default for WorkerTls {
    fn default() -> Self {
        Self { ca_file: None, client: None, server_name: None, verify: true }
    }
}

/// A certificate, in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CertificateFiles {
    /// It, and those between it and its root, in this order.
    pub chain: PathBuf,
    /// Its private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}
