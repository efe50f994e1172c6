//! Towards workers. Whoever connects to one asks [`Connectors`], which keep what was read of the files.
//!
//! * Trusted are the certificates of `ca_file` and those that they vouch for; without it, whom the platform
//!   trusts (its store is read once, and again only while it cannot be used).
//! * The worker's certificate has to be for `server_name`; without it for the host of the worker's address,
//!   which may be an IP address. A name is also asked for (SNI), an IP address never is (RFC 6066, 3).
//! * What is spoken after that is agreed on by ALPN. HTTP/2 has to be; HTTP/1.1 is spoken with workers that
//!   know no ALPN, too.
//! * Without `verify`, whoever answers is believed to be the worker.
//! * A worker that wants a certificate of ours and does not like it says so only after the handshake is over
//!   for us (TLS 1.3), so that the first request breaks off instead.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsConnector, rustls};

use super::{HTTP1, HTTP2, TlsError, certified, fingerprint, roots};
use crate::types::tls::WorkerTls;
use crate::types::{Address, Protocol};

/// Looks at the files after which what nobody asked for in between is forgotten.
const LOOKS_UNUSED: u32 = 3600;

/// Whom a connection goes to.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// Where it is; its host is the name that is expected, unless `tls` has another.
    pub address: &'a Address,
    /// How; `None`: as by default.
    pub tls: Option<&'a Arc<WorkerTls>>,
    /// What is to be spoken.
    pub protocol: Protocol,
}

/// What went wrong, in words that may be told to anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Fault {
    /// Too late.
    #[error("its certificate has expired")]
    Expired,
    /// Too early.
    #[error("its certificate is not valid yet")]
    NotValidYet,
    /// Another's.
    #[error("its certificate is for another name")]
    WrongName,
    /// No root of ours vouches for it.
    #[error("its certificate is from nobody who is trusted")]
    UnknownIssuer,
    /// Anything else about it.
    #[error("its certificate is not acceptable")]
    BadCertificate,
    /// It is not one that serves HTTP/2 over TLS.
    #[error("it does not agree on HTTP/2")]
    NoHttp2,
    /// It ended the handshake: it wants a certificate, or another, or nothing that we speak.
    #[error("it refused the handshake")]
    Refused,
    /// The handshake broke off, or was none.
    #[error("the handshake broke off")]
    Broken,
    /// The files that the config names.
    #[error("the TLS files on this side cannot be used")]
    Files,
}

/// Why a worker is not spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("TLS failed: {fault} ({detail})")]
pub struct WorkerTlsError {
    fault: Fault,
    detail: String,
}

impl WorkerTlsError {
    /// The kind of it.
    #[must_use]
    pub fn fault(&self) -> Fault {
        self.fault
    }

    /// The kind of `error`, where it is one of these.
    #[must_use]
    pub fn fault_of(error: &io::Error) -> Option<Fault> {
        Some(error.get_ref()?.downcast_ref::<Self>()?.fault)
    }

    fn of_handshake(error: &io::Error) -> Self {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        let fault = match cause {
            Some(rustls::Error::InvalidCertificate(error)) => of_certificate(error),
            Some(rustls::Error::NoApplicationProtocol) => Fault::NoHttp2,
            Some(rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)) => {
                Fault::NoHttp2
            }
            Some(rustls::Error::AlertReceived(_)) => Fault::Refused,
            _ => Fault::Broken,
        };
        Self { fault, detail: error.to_string() }
    }
}

impl From<TlsError> for WorkerTlsError {
    fn from(error: TlsError) -> Self {
        Self { fault: Fault::Files, detail: error.to_string() }
    }
}

impl From<WorkerTlsError> for io::Error {
    fn from(error: WorkerTlsError) -> Self {
        Self::other(error)
    }
}

fn of_certificate(error: &CertificateError) -> Fault {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Fault::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            Fault::NotValidYet
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Fault::WrongName
        }
        // Signed by another one of a name that we know.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Fault::UnknownIssuer,
        _ => Fault::BadCertificate,
    }
}

/// What is in force for each way of speaking TLS; shared by all who connect. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Connectors {
    known: Arc<Mutex<HashMap<Arc<WorkerTls>, Arc<Known>>>>,
}

impl Connectors {
    /// Agrees with the worker on `stream` on how to speak.
    ///
    /// # Errors
    /// [`WorkerTlsError`].
    pub async fn connect(
        &self,
        stream: TcpStream,
        peer: Peer<'_>,
    ) -> Result<TlsStream<TcpStream>, WorkerTlsError> {
        let known = self.known(peer.tls).await?;
        let configs = known.current.load_full();
        let configs = configs.as_ref().as_ref().map_err(Clone::clone)?;
        let named = peer.tls.and_then(|tls| tls.server_name.as_deref());
        let name = named.unwrap_or_else(|| peer.address.bare_host());
        let name = ServerName::try_from(name.to_owned()).map_err(|error| WorkerTlsError {
            fault: Fault::WrongName,
            detail: format!("\"{name}\": {error}"),
        })?;
        let http2 = peer.protocol != Protocol::Http1;
        let config = if http2 { &configs.http2 } else { &configs.http1 };
        let stream = TlsConnector::from(Arc::clone(config))
            .connect(name, stream)
            .await
            .map_err(|error| WorkerTlsError::of_handshake(&error))?;
        if http2 && stream.get_ref().1.alpn_protocol() != Some(HTTP2) {
            let detail = "it knows no ALPN".to_owned();
            return Err(WorkerTlsError { fault: Fault::NoHttp2, detail });
        }
        Ok(stream)
    }

    async fn known(&self, tls: Option<&Arc<WorkerTls>>) -> Result<Arc<Known>, WorkerTlsError> {
        let wanted = tls.cloned().unwrap_or_default();
        let found = self.lock().get(&wanted).cloned();
        if let Some(found) = found {
            found.looks_unused.store(0, Ordering::Relaxed);
            return Ok(found);
        }
        // Reading files blocks. Two who begin at once read twice; the first one's stays.
        let fresh = tokio::task::spawn_blocking(move || Arc::new(Known::new(wanted))).await;
        let fresh = fresh.map_err(|error| WorkerTlsError {
            fault: Fault::Files,
            detail: format!("reading them broke off: {error}"),
        })?;
        Ok(Arc::clone(self.lock().entry(Arc::clone(&fresh.tls)).or_insert(fresh)))
    }

    /// Looks whether files have changed, and takes them over. Tells the log what it finds. Blocks.
    pub fn reload(&self) {
        let known: Vec<_> = self.lock().values().cloned().collect();
        for known in &known {
            known.reload();
        }
        self.lock().retain(|_, known| known.looks_unused.load(Ordering::Relaxed) < LOOKS_UNUSED);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<WorkerTls>, Arc<Known>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the files of one way of speaking TLS say.
#[derive(Debug)]
struct Known {
    tls: Arc<WorkerTls>,
    current: ArcSwap<Result<Configs, TlsError>>,
    /// Of the files' contents as they were last looked at, whether they could be used or not.
    seen: AtomicU64,
    looks_unused: AtomicU32,
}

/// One for each protocol to agree on.
#[derive(Debug)]
struct Configs {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

impl Known {
    fn new(tls: Arc<WorkerTls>) -> Self {
        let seen = AtomicU64::new(fingerprint(files(&tls)));
        let current = read(&tls);
        if let Err(error) = &current {
            tracing::warn!(%error, "TLS files cannot be used: no worker is reached with them");
        }
        Self { tls, current: ArcSwap::from_pointee(current), seen, looks_unused: AtomicU32::new(0) }
    }

    fn reload(&self) {
        self.looks_unused.fetch_add(1, Ordering::Relaxed);
        let before = self.current.load();
        let now = fingerprint(files(&self.tls));
        let has_changed = self.seen.swap(now, Ordering::Relaxed) != now;
        if !has_changed && before.is_ok() {
            return;
        }
        match (read(&self.tls), &**before) {
            (Ok(configs), _) => {
                self.current.store(Arc::new(Ok(configs)));
                tracing::info!("new TLS files for connections to workers are in force");
            }
            (Err(error), Ok(_)) => {
                tracing::warn!(%error, "the changed TLS files for connections to workers cannot be used; those of before stay in force");
            }
            (Err(error), Err(known)) if error == *known => {}
            (Err(error), Err(_)) => {
                tracing::warn!(%error, "TLS files cannot be used: no worker is reached with them");
                self.current.store(Arc::new(Err(error)));
            }
        }
    }
}

/// All that is read, but for the platform's store.
fn files(tls: &WorkerTls) -> impl Iterator<Item = &std::path::PathBuf> {
    tls.ca_file.iter().chain(tls.client.iter().flat_map(|pair| [&pair.chain, &pair.key]))
}

fn read(tls: &WorkerTls) -> Result<Configs, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring knows both versions");
    let builder = if tls.verify {
        let roots = match &tls.ca_file {
            Some(path) => roots(path)?,
            None => platform_roots()?,
        };
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .expect("there is a root, and no list of what was revoked");
        builder.with_webpki_verifier(verifier)
    } else {
        let anybody = Arc::new(Anybody(Arc::clone(&provider)));
        builder.dangerous().with_custom_certificate_verifier(anybody)
    };
    let mut http1 = match &tls.client {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let shown = SingleCertAndKey::from(certified(files, &provider)?);
            builder.with_client_cert_resolver(Arc::new(shown))
        }
    };
    // Sessions are remembered in it: one of before new files does not outlive what vouched for it.
    let mut http2 = http1.clone();
    http1.alpn_protocols = vec![HTTP1.to_vec()];
    http2.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(Configs { http1: Arc::new(http1), http2: Arc::new(http2) })
}

/// Those whom this machine trusts, or whom `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
fn platform_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (taken, _) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        let errors = found.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let why =
            format!("this machine has no trusted certificates; name some by `ca_file` {errors}");
        return Err(TlsError::new("the platform's store".as_ref(), &why.trim_end()));
    }
    Ok(roots)
}

/// Takes any certificate, but only from whoever has its key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
