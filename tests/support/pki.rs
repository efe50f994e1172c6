//! Certificates that tests make for themselves.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, crypto::ring,
};

/// Somebody who signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>, String);

impl Authority {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self::named(&format!("authority {}", NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// One that calls itself so, whoever else does.
    pub fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"), name.to_owned())
    }

    pub fn name(&self) -> &str {
        &self.1
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a root");
        roots
    }

    /// Writes `NAME.pem` and `NAME.key` for these names.
    pub fn certify(&self, dir: &Path, file: &str, names: &[&str]) {
        self.certify_with(dir, file, names, |_| {});
    }

    /// The same with something special about it.
    pub fn certify_with(
        &self,
        dir: &Path,
        file: &str,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.0).expect("signed");
        // The key first: between the two writes the pair does not match, which must do no harm.
        fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).expect("written");
        fs::write(dir.join(format!("{file}.pem")), certificate.pem()).expect("written");
    }
}

/// A client that trusts `authority`.
pub fn client_config(authority: &Authority, protocols: &[&str]) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(authority.roots())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    config
}

/// A server with `NAME.pem` and `NAME.key`.
pub fn server_config(
    dir: &Path,
    file: &str,
    versions: &[&'static SupportedProtocolVersion],
    protocols: &[&str],
) -> ServerConfig {
    let at = |end: &str| -> PathBuf { dir.join(format!("{file}.{end}")) };
    let chain = CertificateDer::from_pem_file(at("pem")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(at("key")).expect("a key");
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .expect("a pair");
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    config
}

/// A TLS server that passes what it decrypts on to `to`.
pub fn relay(runtime: &Runtime, config: ServerConfig, to: SocketAddr) -> SocketAddr {
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
    let address = listener.local_addr().expect("address");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    runtime.spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(socket).await else { return };
                let mut plain = tokio::net::TcpStream::connect(to).await.expect("connects");
                drop(tokio::io::copy_bidirectional(&mut tls, &mut plain).await);
            });
        }
    });
    address
}
