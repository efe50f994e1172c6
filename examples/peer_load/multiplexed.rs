//! What hyper speaks for us: HTTP/2, and both versions over TLS.

use std::sync::Arc;

use bytes::Bytes;
use forebay::runtime::clock;
use futures_util::future::join_all;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::closed::{Options, Protocol, Seen};
use crate::{Error, wire};

/// One connection with its requests, until the time is over.
pub(crate) async fn run(options: &Options, seen: &Seen) -> Result<(), Error> {
    let stream = TcpStream::connect(options.target.address).await?;
    stream.set_nodelay(true)?;
    match options.protocol {
        Protocol::Http1 => unreachable!("it has its own connection"),
        Protocol::H2c => two(options, seen, stream).await,
        Protocol::Tls1 => one(options, seen, secure(options, stream, b"http/1.1").await?).await,
        Protocol::Tls2 => two(options, seen, secure(options, stream, b"h2").await?).await,
    }
}

async fn secure(
    options: &Options,
    stream: TcpStream,
    alpn: &[u8],
) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<>, Error> {
    let mut roots = RootCertStore::empty();
    let file = options.trust.as_ref().ok_or("TLS needs --trust")?;
    roots.add(CertificateDer::from_pem_file(file)?)?;
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::try_from("localhost")?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let agreed = stream.get_ref().1.alpn_protocol();
    if agreed.is_some_and(|agreed| agreed != alpn) {
        return Err(format!("agreed on {agreed:?}").into());
    }
    Ok(stream)
}

async fn one<S>(options: &Options, seen: &Seen, stream: S) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let requests = async {
        while seen.goes_on() {
            let sent = clock::monotonic();
            sender.ready().await?;
            let answer = sender.send_request(request(options, &options.target.path)?).await?;
            finish(answer).await?;
            seen.latency(sent);
        }
        Ok(())
    };
    tokio::select! {
        done = requests => done,
        ended = connection => Err(format!("the connection ended: {ended:?}").into()),
    }
}

async fn two<S>(options: &Options, seen: &Seen, stream: S) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let scheme = if options.protocol == Protocol::Tls2 { "https" } else { "http" };
    let uri = format!("{scheme}://localhost{}", options.target.path);
    let streams = join_all((0..options.streams).map(|_| {
        let (mut sender, uri) = (sender.clone(), &uri);
        async move {
            while seen.goes_on() {
                let sent = clock::monotonic();
                finish(sender.send_request(request(options, uri)?).await?).await?;
                seen.latency(sent);
            }
            Ok::<_, Error>(())
        }
    }));
    tokio::select! {
        done = streams => done.into_iter().collect(),
        ended = connection => Err(format!("the connection ended: {ended:?}").into()),
    }
}

fn request(options: &Options, uri: &str) -> Result<Request<Full<Bytes>>, Error> {
    let body = options.target.body("echo", false);
    let request = Request::post(uri).header("content-type", "application/json");
    let request = if options.protocol == Protocol::Tls1 {
        request.header("host", "localhost")
    } else {
        request
    };
    Ok(request.body(Full::from(body))?)
}

async fn finish(answer: http::Response<hyper::body::Incoming>) -> Result<(), Error> {
    let status = answer.status();
    let content = answer.into_body().collect().await?.to_bytes();
    if status == 200 && content.len() == wire::ANSWER {
        Ok(())
    } else {
        Err(format!("{status}: {content:?}").into())
    }
}
