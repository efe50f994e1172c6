//! Towards clients. Which certificate a client gets is decided by the name it asks for (SNI) and the names
//! that the certificates are for; one that asks for none, or for a name that none is for, gets the first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use rustls::client::verify_server_name;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::server::{
    ClientHello, ParsedCertificate, ResolvesServerCert, ServerConfig, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::server::TlsStream;

use super::{HTTP1, HTTP2, TlsError, certified, fingerprint, roots};
use crate::types::tls::TlsFiles;

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Requests, over HTTP/2 or HTTP/1.1. Where somebody may vouch for clients, they have to show a certificate.
    Requests,
    /// Management, over HTTP/1.1. A certificate is one way to be let in, and may be missing.
    Management,
}

impl Purpose {
    /// What clients may choose from, the best first.
    fn protocols(self) -> &'static [&'static [u8]] {
        match self {
            Self::Requests => &[HTTP2, HTTP1],
            Self::Management => &[HTTP1],
        }
    }
}

/// The certificates in force; shared by all threads.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    purpose: Purpose,
    config: ArcSwap<ServerConfig>,
    /// Of the files' contents as they were last looked at, whether they could be used or not.
    seen: AtomicU64,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] when one is missing, is not what it should be, or does not go with the others.
    pub fn load(files: TlsFiles, purpose: Purpose) -> Result<Arc<Self>, TlsError> {
        let seen = AtomicU64::new(fingerprint(all(&files)));
        let config = ArcSwap::from_pointee(read(&files, purpose)?);
        Ok(Arc::new(Self { files, purpose, config, seen }))
    }

    /// Takes over the files if they have changed since the last look. Returns whether they have.
    ///
    /// # Errors
    /// [`TlsError`] when they cannot be used: what was in force stays so.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let now = fingerprint(all(&self.files));
        if self.seen.swap(now, Ordering::Relaxed) == now {
            return Ok(false);
        }
        self.config.store(Arc::new(read(&self.files, self.purpose)?));
        Ok(true)
    }

    /// Agrees with a client on how to speak. Says whether that is HTTP/2.
    ///
    /// # Errors
    /// The handshake's.
    pub async fn accept(&self, stream: TcpStream) -> std::io::Result<(TlsStream<TcpStream>, bool)> {
        let stream = TlsAcceptor::from(self.config.load_full()).accept(stream).await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
        Ok((stream, http2))
    }
}

/// All that is read.
fn all(files: &TlsFiles) -> impl Iterator<Item = &std::path::PathBuf> {
    let pairs = files.certificates.iter().flat_map(|one| [&one.chain, &one.key]);
    pairs.chain(&files.client_ca)
}

fn read(files: &TlsFiles, purpose: Purpose) -> Result<ServerConfig, TlsError> {
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
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path)?), provider);
            let verifier = match purpose {
                Purpose::Requests => verifier,
                Purpose::Management => verifier.allow_unauthenticated(),
            };
            let verifier = verifier.build().map_err(|error| TlsError::new(path, &error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName(known)));
    config.alpn_protocols = purpose.protocols().iter().map(|name| name.to_vec()).collect();
    // A new one with each change: a session of before does not outlive what vouched for it.
    config.ticketer = ring::Ticketer::new().expect("the system has random numbers");
    Ok(config)
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
