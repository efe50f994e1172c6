//! TLS towards clients, by rustls with ring: TLS 1.2 and 1.3. Which certificate a client gets is decided by
//! the name it asks for (SNI) and the names that the certificates are for; one that asks for none, or for a
//! name that none is for, gets the first. The files are read again when they change: connections that there
//! are go on as they are, new ones get the new certificates. Files that cannot be used change nothing.

use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{
    ClientHello, ParsedCertificate, ResolvesServerCert, ServerConfig, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::server::TlsStream;

use super::client_io::Transport;
use crate::types::tls::{CertificateFiles, TlsFiles};

/// What clients may choose from, the best first.
const PROTOCOLS: [&[u8]; 2] = [HTTP2, b"http/1.1"];
const HTTP2: &[u8] = b"h2";

/// Why files cannot be used.
#[derive(Debug, Error)]
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

/// The certificates in force; shared by all threads.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    config: ArcSwap<ServerConfig>,
    /// Of the files' contents as they were last looked at, whether they could be used or not.
    seen: AtomicU64,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] when one is missing, is not what it should be, or does not go with the others.
    pub fn load(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let seen = AtomicU64::new(fingerprint(&files));
        let config = ArcSwap::from_pointee(read(&files)?);
        Ok(Arc::new(Self { files, config, seen }))
    }

    /// Takes over the files if they have changed since the last look. Returns whether they have.
    ///
    /// # Errors
    /// [`TlsError`] when they cannot be used: what was in force stays so.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let now = fingerprint(&self.files);
        if self.seen.swap(now, Ordering::Relaxed) == now {
            return Ok(false);
        }
        self.config.store(Arc::new(read(&self.files)?));
        Ok(true)
    }

    /// Agrees with a client on how to speak. Says whether that is HTTP/2.
    ///
    /// # Errors
    /// The handshake's.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> std::io::Result<(TlsStream<TcpStream>, bool)> {
        let stream = TlsAcceptor::from(self.config.load_full()).accept(stream).await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
        Ok((stream, http2))
    }
}

impl Transport for TlsStream<TcpStream> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// Changes whenever a file does; one that cannot be read is like an empty one.
fn fingerprint(files: &TlsFiles) -> u64 {
    let mut hasher = DefaultHasher::new();
    let pairs = files.certificates.iter().flat_map(|one| [&one.chain, &one.key]);
    for path in pairs.chain(&files.client_ca) {
        std::fs::read(path).unwrap_or_default().hash(&mut hasher);
    }
    hasher.finish()
}

fn read(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let known = files
        .certificates
        .iter()
        .map(|files| Ok(Arc::new(certified(files, &provider)?)))
        .collect::<Result<Vec<_>, TlsError>>()?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring knows both versions");
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in chain(path)? {
                roots.add(certificate).map_err(|error| TlsError::new(path, &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| TlsError::new(path, &error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName(known)));
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    // A new one with each change: a session of before does not outlive what vouched for it.
    config.ticketer = ring::Ticketer::new().expect("the system has random numbers");
    Ok(config)
}

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

/// The certificates there are, at least one.
#[derive(Debug)]
struct ByName(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let named = name.and_then(|name| self.0.iter().find(|known| is_for(known, &name)));
        named.or(self.0.first()).cloned()
    }
}

fn is_for(known: &CertifiedKey, name: &ServerName<'_>) -> bool {
    known
        .end_entity_cert()
        .and_then(ParsedCertificate::try_from)
        .is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
}
