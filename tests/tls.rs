//! Clients that speak TLS: which certificate they get, what is agreed on, who is let in, and what happens
//! when the files change. Certificates are made by each test.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact counts"
)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use support::pki::{Authority, client_config};
use support::{Forebay, Worker, eventually, free_port, local};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, StreamOwned, crypto::ring};

struct House {
    authority: Authority,
    dir: tempfile::TempDir,
    forebay: Forebay,
    tls: SocketAddr,
}

impl House {
    /// The proxy with a certificate for `a.example` and one for `b.example`.
    fn new(worker: &Worker, with_client_ca: bool) -> Self {
        Self::with(worker, with_client_ca, "")
    }

    fn with(worker: &Worker, with_client_ca: bool, proxy_keys: &str) -> Self {
        let authority = Authority::new();
        let dir = tempfile::tempdir().expect("dir");
        authority.certify(dir.path(), "a", &["a.example", "*.a.example"]);
        authority.certify(dir.path(), "b", &["b.example"]);
        let at = |file: &str| dir.path().join(file).display().to_string();
        let tls = local(free_port());
        let mut keys = format!(
            "{proxy_keys}takeover = \"takeover.sock\"\nidle_timeout = \"1s\"\n[proxy.tls]\nlisten = \"{tls}\"\n"
        );
        if with_client_ca {
            fs::write(dir.path().join("ca.pem"), authority.pem()).expect("written");
            keys += &format!("client_ca = {:?}\n", at("ca.pem"));
        }
        for name in ["a", "b"] {
            keys += &format!(
                "[[proxy.tls.certificate]]\nchain = {:?}\nkey = {:?}\n",
                at(&format!("{name}.pem")),
                at(&format!("{name}.key"))
            );
        }
        let forebay = Forebay::limited(worker, &keys);
        Self { authority, dir, forebay, tls }
    }

    fn client(&self, protocols: &[&str]) -> ClientConfig {
        client_config(&self.authority, protocols)
    }

    fn connect(&self, name: &str, config: ClientConfig) -> std::io::Result<Tls> {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let socket = TcpStream::connect(self.tls)?;
        socket.set_read_timeout(Some(support::DEADLINE))?;
        let mut tls = StreamOwned::new(client, socket);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        Ok(tls)
    }

    /// The certificate that is shown to whoever asks for `name`.
    fn shown(&self, name: &str) -> Option<CertificateDer<'static>> {
        let tls = self.connect(name, self.client(&[])).ok()?;
        tls.conn.peer_certificates()?.first().cloned()
    }
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// One request on a connection that stays open. Returns the head and the body.
fn ask(tls: &mut Tls) -> std::io::Result<String> {
    tls.write_all(b"POST /x HTTP/1.1\r\nhost: a.example\r\ncontent-length: 2\r\n\r\n{}")?;
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let length = tls.read(&mut piece)?;
        if length == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        text.extend_from_slice(&piece[..length]);
        let head = text.windows(4).position(|end| end == b"\r\n\r\n");
        let Some(head) = head else { continue };
        let text = String::from_utf8_lossy(&text).into_owned();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        if text.len() >= head + 4 + length.expect("a length").parse::<usize>().expect("a number") {
            return Ok(text);
        }
    }
}

fn file(house: &House, name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(house.dir.path().join(name)).expect("a certificate")
}

#[test]
fn the_certificate_is_the_one_for_the_name_that_is_asked_for() {
    let worker = Worker::start(&[]);
    let house = House::new(&worker, false);
    assert_eq!(house.shown("a.example"), Some(file(&house, "a.pem")));
    assert_eq!(house.shown("x.a.example"), Some(file(&house, "a.pem")));
    assert_eq!(house.shown("b.example"), Some(file(&house, "b.pem")));
    // Any other gets the first, which its client then refuses.
    let error = house.connect("c.example", house.client(&[])).expect_err("not its name");
    assert!(error.to_string().contains("a.example"), "{error}");
    eventually("it is counted", || {
        (house.forebay.gauge("forebay_tls_handshake_failures_total") == 1.0).then_some(())
    });
}

#[test]
fn both_protocols_are_agreed_on_by_alpn() {
    let worker = Worker::start(&[]);
    let house = House::new(&worker, false);
    let mut tls = house.connect("a.example", house.client(&["http/1.1"])).expect("connects");
    assert_eq!(tls.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    for _ in 0..2 {
        let answer = ask(&mut tls).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let tls = house.connect("a.example", house.client(&["h2", "http/1.1"])).expect("connects");
    assert_eq!(tls.conn.alpn_protocol(), Some(&b"h2"[..]));
    drop(tls);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(house.client(&["h2"])));
        let socket = tokio::net::TcpStream::connect(house.tls).await.expect("connects");
        let name = ServerName::try_from("b.example").expect("a name");
        let tls = connector.connect(name, socket).await.expect("agrees");
        let (mut sender, connection) = h2::client::handshake(tls).await.expect("HTTP/2");
        tokio::spawn(connection);
        let request = http::Request::get("https://b.example/x").body(()).expect("a request");
        let (answer, _) = sender.send_request(request, true).expect("is sent");
        assert_eq!(answer.await.expect("an answer").status(), 200);
    });
    // Who speaks neither TLS nor sense is closed on, and the listener goes on.
    let mut plain = TcpStream::connect(house.tls).expect("connects");
    plain.write_all(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n").expect("sent");
    let mut rest = Vec::new();
    drop(plain.read_to_end(&mut rest));
    assert!(!rest.starts_with(b"HTTP"), "no answer in clear");
    assert!(house.shown("a.example").is_some());
}

#[test]
fn clients_have_to_show_a_certificate_where_that_is_asked_for() {
    let worker = Worker::start(&[]);
    let house = House::new(&worker, true);
    let refused = house
        .connect("a.example", house.client(&[]))
        .and_then(|mut tls| ask(&mut tls))
        .expect_err("nobody vouches for it");
    assert!(refused.to_string().contains("CertificateRequired"), "{refused}");
    let with = |authority: &Authority| {
        authority.certify(house.dir.path(), "client", &["client"]);
        let key = PrivateKeyDer::from_pem_file(house.dir.path().join("client.key")).expect("a key");
        ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(house.authority.roots())
            .with_client_auth_cert(vec![file(&house, "client.pem")], key)
            .expect("a pair")
    };
    let known = with(&house.authority);
    let mut tls = house.connect("a.example", known).expect("connects");
    assert!(ask(&mut tls).expect("an answer").starts_with("HTTP/1.1 200"));
    let stranger = with(&Authority::new());
    let refused = house
        .connect("a.example", stranger)
        .and_then(|mut tls| ask(&mut tls))
        .expect_err("stranger");
    assert!(refused.to_string().contains("received fatal alert"), "{refused}");
}

#[test]
fn the_end_of_a_connection_is_said_and_not_only_made() {
    let worker = Worker::start(&[]);
    let house = House::new(&worker, false);
    for (head, answered) in [("connection: close\r\n", "200"), ("host: b\r\n", "400")] {
        let mut tls = house.connect("a.example", house.client(&[])).expect("connects");
        let request = format!("POST /x HTTP/1.1\r\nhost: a\r\n{head}content-length: 2\r\n\r\n{{}}");
        tls.write_all(request.as_bytes()).expect("sent");
        // Without it this is an error: the answer could be cut off anywhere.
        let mut text = String::new();
        tls.read_to_string(&mut text).expect("an end that is said");
        assert!(text.starts_with(&format!("HTTP/1.1 {answered}")), "{text}");
    }
}

#[test]
fn new_files_are_taken_over_under_load_and_bad_ones_are_not() {
    let worker = Worker::start(&[]);
    let house = House::new(&worker, false);
    let before = file(&house, "a.pem");
    let (over, done, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for keep in [true, false] {
            let (house, over, done, failed) = (&house, &over, &done, &failed);
            scope.spawn(move || {
                let connect = || house.connect("a.example", house.client(&[]));
                let mut tls = connect().expect("connects");
                while !over.load(Ordering::Relaxed) {
                    if !keep {
                        let Ok(fresh) = connect() else {
                            failed.fetch_add(1, Ordering::Relaxed);
                            continue;
                        };
                        tls = fresh;
                    }
                    let counter = if ask(&mut tls).is_ok() { done } else { failed };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        house.authority.certify(house.dir.path(), "a", &["a.example"]);
        let new = file(&house, "a.pem");
        assert_ne!(before, new);
        eventually("the new one is shown", || {
            (house.shown("a.example").as_ref() == Some(&new)).then_some(())
        });
        fs::write(house.dir.path().join("a.pem"), "no certificate").expect("written");
        eventually("the bad one is complained about", || {
            house.forebay.log().contains("there is no certificate in it").then_some(())
        });
        assert_eq!(house.shown("a.example"), Some(new), "the one of before stays");
        house.authority.certify(house.dir.path(), "a", &["a.example"]);
        let last = file(&house, "a.pem");
        eventually("a good one is taken over again", || {
            (house.shown("a.example").as_ref() == Some(&last)).then_some(())
        });
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(failed.load(Ordering::Relaxed), 0, "no request noticed");
    assert!(done.load(Ordering::Relaxed) > 100);
}

#[test]
fn a_takeover_refuses_no_handshake() {
    let worker = Worker::start(&[]);
    let mut house = House::new(&worker, false);
    let place = house.forebay.dir.path().join("takeover.sock");
    eventually("it can be taken over", || place.exists().then_some(()));
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let (successor, failures) = std::thread::scope(|scope| {
        let (house, over, done) = (&house, &over, &done);
        let load = scope.spawn(move || {
            let mut failures = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let tls = house.connect("a.example", house.client(&[]));
                match tls.and_then(|mut tls| ask(&mut tls)) {
                    Ok(_) => drop(done.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => failures.push(error.to_string()),
                }
            }
            failures
        });
        let so_far = || done.load(Ordering::Relaxed);
        eventually("the load is on", || (so_far() > 10).then_some(()));
        let config = house.forebay.config_path().display().to_string();
        let args = ["serve", "--config", &config];
        let successor = support::Process::start(&args, house.forebay.dir.path(), "forebay.log");
        eventually("it takes over", || {
            house.forebay.log().contains("a successor has taken over").then_some(())
        });
        let before = so_far();
        eventually("it serves", || (so_far() > before + 50).then_some(()));
        over.store(true, Ordering::Relaxed);
        (successor, load.join().expect("the load's end"))
    });
    assert!(failures.is_empty(), "{failures:?}");
    let mut before = std::mem::replace(&mut house.forebay.process, successor);
    assert!(before.wait().success());
    assert_eq!(house.shown("b.example"), Some(file(&house, "b.pem")));
}

/// A text where a handshake is expected is nothing that its client could read.
#[test]
fn one_connection_too_many_is_closed_without_a_word() {
    let worker = Worker::start(&[]);
    let house = House::with(&worker, false, "max_connections = 1\n");
    let _first = TcpStream::connect(house.forebay.proxy).expect("connects");
    eventually("it is counted", || {
        (house.forebay.gauge("forebay_client_connections") == 1.0).then_some(())
    });
    let mut second = TcpStream::connect(house.tls).expect("connects");
    let mut seen = Vec::new();
    drop(second.read_to_end(&mut seen));
    assert!(seen.is_empty(), "{}", String::from_utf8_lossy(&seen));
}

#[test]
fn a_handshake_that_is_not_finished_holds_nothing() {
    let worker = Worker::start(&[]);
    let house = House::new(&worker, false);
    let mut silent = TcpStream::connect(house.tls).expect("connects");
    let mut half = TcpStream::connect(house.tls).expect("connects");
    // The beginning of a ClientHello.
    half.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).expect("sent");
    for socket in [&mut silent, &mut half] {
        socket.set_read_timeout(Some(support::DEADLINE)).expect("set");
        // An alert may come first; what counts is the end.
        drop(socket.read_to_end(&mut Vec::new()));
    }
    eventually("both are gone", || {
        (house.forebay.gauge("forebay_client_connections") == 0.0).then_some(())
    });
    assert_eq!(house.forebay.gauge("forebay_tls_handshake_failures_total"), 2.0);
}

#[test]
fn files_that_cannot_be_used_are_a_clear_end_at_the_start() {
    let dir = tempfile::tempdir().expect("dir");
    let authority = Authority::new();
    authority.certify(dir.path(), "a", &["a.example"]);
    authority.certify(dir.path(), "b", &["b.example"]);
    let text = |chain: &str, key: &str| {
        let at = |file: &str| dir.path().join(file).display().to_string();
        format!(
            "[proxy]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [store]\npath = {:?}\n[proxy.tls]\nlisten = \"127.0.0.1:0\"\n\
             [[proxy.tls.certificate]]\nchain = {:?}\nkey = {:?}\n",
            at("forebay.db"),
            at(chain),
            at(key)
        )
    };
    for (chain, key, says) in [
        ("none.pem", "a.key", "none.pem: "),
        ("a.key", "a.key", "a.key: there is no certificate in it"),
        ("a.pem", "b.key", "b.key: "),
        ("a.pem", "a.pem", "a.pem: "),
    ] {
        let config = dir.path().join("forebay.toml");
        fs::write(&config, text(chain, key)).expect("written");
        let mut process = support::Process::start(
            &["serve", "--config", &config.display().to_string()],
            dir.path(),
            "forebay.log",
        );
        assert_eq!(process.wait().code(), Some(1));
        let log = fs::read_to_string(dir.path().join("forebay.log")).expect("a log");
        assert!(log.contains("cannot serve TLS: ") && log.contains(says), "{log}");
    }
}
