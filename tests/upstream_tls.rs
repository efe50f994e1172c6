//! Workers that are reached over TLS: what is spoken with them, who is believed to be one, what they are
//! shown, and what happens when files change. Certificates are made by each test.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact counts"
)]

mod support;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use rcgen::date_time_ymd;
use support::http::{self, Client};
use support::pki::{Authority, relay, server_config};
use support::{Forebay, Worker, eventually, free_port};
use tokio::runtime::Runtime;
use tokio_rustls::rustls::version::{TLS12, TLS13};

const STREAM: &str =
    r#"{"model":"m","stream":true,"max_tokens":8,"messages":[{"role":"user","content":"hi"}]}"#;
/// Probes that never come again: what a request finds out, it finds out itself.
const ONE_PROBE: &str = "health_interval = \"1h\"\nstartup_health_interval = \"50ms\"\n";

/// Who signs, and where the files are.
struct Files {
    authority: Authority,
    dir: tempfile::TempDir,
}

impl Files {
    /// `ca.pem`, and `worker.pem` for 127.0.0.1 with its key.
    fn new() -> Self {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().expect("dir"));
        fs::write(dir.path().join("ca.pem"), authority.pem()).expect("written");
        authority.certify(dir.path(), "worker", &["127.0.0.1"]);
        Self { authority, dir }
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn at(&self, file: &str) -> String {
        self.dir().join(file).display().to_string()
    }

    /// A key of a config whose value is one of the files.
    fn key(&self, key: &str, file: &str) -> String {
        format!("{key} = {:?}\n", self.at(file))
    }

    fn worker_on(&self, port: u16, file: &str, more: &[&str]) -> Worker {
        let (cert, key) = (self.at(&format!("{file}.pem")), self.at(&format!("{file}.key")));
        let mut args = vec!["--tls-cert", &cert, "--tls-key", &key];
        args.extend(more);
        Worker::start_on(port, &args)
    }

    fn worker(&self) -> Worker {
        self.worker_on(free_port(), "worker", &[])
    }
}

/// The proxy before one worker at `https://ADDRESS`, not waited for.
fn before(address: &str, protocol: &str, tls: &str, variant: &str) -> Forebay {
    Forebay::serve(&format!(
        "[proxy]\nlisten = \"{{proxy}}\"\nthreads = 1\nconnect_timeout = \"500ms\"\n\
         [admin]\nlisten = \"{{admin}}\"\n[provider.existing]\nkind = \"static\"\n\
         [instance_type.t]\nprovider = \"existing\"\nmax_concurrency = 8\nprotocol = \"{protocol}\"\n\
         addresses = [\"https://{address}\"]\n[instance_type.t.tls]\n{tls}\n\
         [[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m\"\n\
         initial_instance_count = 1\nmin_instance_count = 1\nmax_instance_count = 1\n{variant}\n\
         [[endpoint.variant.pool]]\ninstance_type = \"t\"\npriority = 1\n"
    ))
}

/// The same in service.
fn serving(address: SocketAddr, protocol: &str, tls: &str, variant: &str) -> Forebay {
    let forebay = before(&address.to_string(), protocol, tls, variant);
    forebay.wait_in_service(1);
    forebay
}

/// Waits until the instance's last probe failed with `words`, as status and explain tell.
fn wait_for_reason(forebay: &Forebay, words: &str) {
    eventually(&format!("the reason is {words:?}"), || {
        let reason = forebay.instances().first()?["reason"].as_str()?.to_owned();
        reason.contains(words).then_some(())
    });
    // Between the two another probe may have ended in other words.
    eventually("it is explained", || {
        let explained = forebay.cli(&["explain", "e"]);
        String::from_utf8_lossy(&explained.stdout).contains(words).then_some(())
    });
    assert!(forebay.in_service().is_empty());
}

#[test]
fn both_protocols_are_spoken_over_tls() {
    let files = Files::new();
    for protocol in ["http1", "h2"] {
        let worker = files.worker_on(free_port(), "worker", &["--tokens-per-second", "100"]);
        let forebay = serving(
            worker.address,
            protocol,
            &files.key("ca_file", "ca.pem"),
            "health_interval = \"1h\"",
        );
        let stat = |name: &str| http::get(forebay.proxy, "/stats").json()[name].as_u64();
        let before = stat("connections_accepted").expect("a number");
        for _ in 0..5 {
            let answer = http::post(forebay.proxy, "/echo", &[], "{\"model\":\"m\"}");
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert!(answer.header("x-forebay-instance").is_some());
            let stream = http::post(forebay.proxy, "/v1/chat/completions", &[], STREAM);
            assert!(stream.complete && stream.text().ends_with("data: [DONE]\n\n"));
        }
        let large = format!("{{\"model\":\"m\",\"input\":\"{}\"}}", "x".repeat(1 << 20));
        let answer = http::post(forebay.proxy, "/echo", &[], &large);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(
            stat("connections_accepted"),
            Some(before),
            "{protocol}: one connection is used again"
        );
        let mut leaving = Client::connect(forebay.proxy);
        let endless = STREAM.replace("\"max_tokens\":8", "\"max_tokens\":400");
        leaving.send("POST", "/v1/chat/completions", &[], endless.as_bytes());
        assert_eq!(leaving.read_head().status, 200);
        drop(leaving);
        eventually("the worker has noticed", || (stat("cancelled") == Some(1)).then_some(()));
        forebay.wait_all_zero();
    }
}

#[test]
fn a_name_is_asked_for_and_looked_at() {
    let files = Files::new();
    files.authority.certify(files.dir(), "named", &["localhost", "gpu.example"]);
    let worker = files.worker_on(free_port(), "named", &[]);
    let ca = files.key("ca_file", "ca.pem");
    // By its address's host, by the name that the config gives it, and by neither.
    let by_host = before(&format!("localhost:{}", worker.address.port()), "http1", &ca, "");
    by_host.wait_in_service(1);
    let named = format!("{ca}server_name = \"gpu.example\"\n");
    let by_name = serving(worker.address, "h2", &named, "");
    assert_eq!(http::get(by_name.proxy, "/x").status, 200);
    let soon = "queue_timeout = \"100ms\"\nstartup_health_interval = \"50ms\"";
    let neither = before(&worker.address.to_string(), "http1", &ca, soon);
    wait_for_reason(&neither, "its certificate is for another name");
    assert_eq!(http::get(neither.proxy, "/x").header("x-forebay-error"), Some("queue_timeout"));
}

#[test]
fn a_worker_that_turns_out_to_be_another_gets_no_request_and_the_client_is_told_why() {
    let files = Files::new();
    Authority::new().certify(files.dir(), "stranger", &["127.0.0.1"]);
    Authority::named(files.authority.name()).certify(files.dir(), "namesake", &["127.0.0.1"]);
    files.authority.certify(files.dir(), "elsewhere", &["elsewhere.example"]);
    files.authority.certify_with(files.dir(), "old", &["127.0.0.1"], |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    files.authority.certify_with(files.dir(), "early", &["127.0.0.1"], |params| {
        params.not_before = date_time_ymd(2200, 1, 1);
        params.not_after = date_time_ymd(2201, 1, 1);
    });
    let tls = files.key("ca_file", "ca.pem");
    for (file, protocol, words) in [
        ("stranger", "http1", "its certificate is from nobody who is trusted"),
        ("namesake", "h2", "its certificate is from nobody who is trusted"),
        ("elsewhere", "h2", "its certificate is for another name"),
        ("old", "http1", "its certificate has expired"),
        ("early", "h2", "its certificate is not valid yet"),
    ] {
        let worker = files.worker();
        let forebay = serving(worker.address, protocol, &tls, ONE_PROBE);
        let port = worker.address.port();
        drop(worker);
        let _other = files.worker_on(port, file, &[]);
        let answer = http::post(forebay.proxy, "/x", &[], "{}");
        assert_eq!((answer.status, answer.header("x-forebay-error")), (502, Some("tls_failed")));
        assert!(answer.text().contains(words), "{}", answer.text());
        // The failure has the instance asked, which finds the same.
        eventually("a probe finds it too", || {
            let instance = forebay.instances().into_iter().next()?;
            instance["reason"].as_str()?.contains(words).then_some(())
        });
        forebay.wait_all_zero();
    }
}

#[test]
fn workers_that_ask_for_a_certificate_are_shown_ours() {
    let files = Files::new();
    files.authority.certify(files.dir(), "proxy", &["proxy"]);
    Authority::new().certify(files.dir(), "stranger", &["proxy"]);
    let ca = files.at("ca.pem");
    let pair = |name: &str| {
        files.key("client_cert", &format!("{name}.pem"))
            + &files.key("client_key", &format!("{name}.key"))
    };
    let trusted = files.key("ca_file", "ca.pem");
    for protocol in ["http1", "h2"] {
        let worker = files.worker_on(free_port(), "worker", &["--tls-client-ca", &ca]);
        let forebay = serving(worker.address, protocol, &format!("{trusted}{}", pair("proxy")), "");
        assert_eq!(http::get(forebay.proxy, "/x").status, 200);
        for (shown, words) in
            [(String::new(), "CertificateRequired"), (pair("stranger"), "UnknownCA")]
        {
            let forebay = before(
                &worker.address.to_string(),
                protocol,
                &format!("{trusted}{shown}"),
                "startup_health_interval = \"50ms\"",
            );
            wait_for_reason(&forebay, words);
        }
    }
}

#[test]
fn changed_files_count_for_new_connections_without_a_restart() {
    let files = Files::new();
    let new = Authority::new();
    new.certify(files.dir(), "next", &["127.0.0.1"]);
    let worker = files.worker();
    let port = worker.address.port();
    let forebay = serving(
        worker.address,
        "http1",
        &files.key("ca_file", "ca.pem"),
        "health_interval = \"100ms\"",
    );
    assert_eq!(http::get(forebay.proxy, "/x").status, 200);
    // Both are trusted, then the worker changes, then only the new one is: as it is done.
    fs::write(files.dir().join("ca.pem"), files.authority.pem() + &new.pem()).expect("written");
    eventually("they are read", || {
        forebay.log().contains("new TLS files for connections to workers").then_some(())
    });
    drop(worker);
    let worker = files.worker_on(port, "next", &[]);
    eventually("it serves", || (http::get(forebay.proxy, "/x").status == 200).then_some(()));
    // What cannot be used is complained about and changes nothing.
    fs::write(files.dir().join("ca.pem"), "no certificate").expect("written");
    eventually("the bad one is complained about", || {
        forebay.log().contains("there is no certificate in it").then_some(())
    });
    drop(worker);
    let worker = files.worker_on(port, "next", &[]);
    eventually("it serves still", || (http::get(forebay.proxy, "/x").status == 200).then_some(()));
    fs::write(files.dir().join("ca.pem"), files.authority.pem()).expect("written");
    eventually("the worker's own is trusted no more", || {
        let reason = forebay.instances().first()?["reason"].as_str()?.to_owned();
        reason.contains("from nobody who is trusted").then_some(())
    });
    drop(worker);
    forebay.wait_all_zero();
}

#[test]
fn files_that_come_later_are_taken_up() {
    let files = Files::new();
    let worker = files.worker_on(free_port(), "worker", &["--tls-client-ca", &files.at("ca.pem")]);
    let tls = files.key("ca_file", "later.pem")
        + &files.key("client_cert", "proxy.pem")
        + &files.key("client_key", "proxy.key");
    let forebay =
        before(&worker.address.to_string(), "h2", &tls, "startup_health_interval = \"50ms\"");
    wait_for_reason(&forebay, "the TLS files on this side cannot be used");
    wait_for_reason(&forebay, "later.pem");
    fs::write(files.dir().join("later.pem"), files.authority.pem()).expect("written");
    wait_for_reason(&forebay, "proxy.pem");
    files.authority.certify(files.dir(), "proxy", &["proxy"]);
    forebay.wait_in_service(1);
    assert_eq!(http::get(forebay.proxy, "/x").status, 200);
}

#[test]
fn nothing_is_verified_only_where_the_config_says_so() {
    let files = Files::new();
    Authority::new().certify(files.dir(), "stranger", &["elsewhere.example"]);
    let worker = files.worker_on(free_port(), "stranger", &[]);
    let forebay = serving(worker.address, "h2", "verify = false\n", "");
    assert_eq!(http::get(forebay.proxy, "/x").status, 200);
    // By default it is whom the machine trusts, of whom none has signed this.
    let default =
        before(&worker.address.to_string(), "h2", "", "startup_health_interval = \"50ms\"");
    eventually("it is refused", || {
        let reason = default.instances().first()?["reason"].as_str()?.to_owned();
        ["from nobody who is trusted", "has no trusted certificates"]
            .iter()
            .any(|words| reason.contains(words))
            .then_some(())
    });
    assert!(default.in_service().is_empty());
}

#[test]
fn a_handshake_that_does_not_end_counts_as_connecting() {
    let files = Files::new();
    for protocol in ["http1", "h2"] {
        let worker = files.worker();
        let forebay = serving(worker.address, protocol, &files.key("ca_file", "ca.pem"), ONE_PROBE);
        let address = worker.address;
        drop(worker);
        // Takes connections, and says nothing.
        let silent = TcpListener::bind(address).expect("its port");
        let start = Instant::now();
        let answer = http::post(forebay.proxy, "/x", &[], "{}");
        assert_eq!(
            (answer.status, answer.header("x-forebay-error")),
            (502, Some("connect_failed"))
        );
        let took = start.elapsed();
        assert!((Duration::from_millis(450)..Duration::from_secs(5)).contains(&took), "{took:?}");
        drop(silent);
        forebay.wait_all_zero();
    }
}

#[test]
fn old_tls_and_workers_without_alpn_are_spoken_to_where_that_is_safe() {
    let (files, runtime) = (Files::new(), Runtime::new().expect("a runtime"));
    let plain = Worker::start(&[]);
    let tls = files.key("ca_file", "ca.pem");
    let at = |version, protocols: &[&str]| {
        let config = server_config(files.dir(), "worker", &[version], protocols);
        relay(&runtime, config, plain.address)
    };
    for (version, protocols, protocol) in [
        (&TLS12, &["h2"][..], "h2"),
        (&TLS12, &["http/1.1"][..], "http1"),
        (&TLS13, &[][..], "http1"),
    ] {
        let forebay = serving(at(version, protocols), protocol, &tls, "");
        assert_eq!(http::post(forebay.proxy, "/x", &[], "{}").status, 200);
    }
    for (protocols, protocol) in [(&["http/1.1"][..], "h2"), (&[][..], "h2")] {
        let address = at(&TLS13, protocols).to_string();
        let forebay = before(&address, protocol, &tls, "startup_health_interval = \"50ms\"");
        wait_for_reason(&forebay, "it does not agree on HTTP/2");
    }
}

#[test]
fn upgrades_are_tunnelled_over_tls() {
    use std::io::{Read, Write};
    let (files, runtime) = (Files::new(), Runtime::new().expect("a runtime"));
    let plain = support::by_hand::healthy(|_, stream| {
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nfirst")
            .expect("sent");
        let mut piece = [0; 64];
        while let Ok(length @ 1..) = stream.read(&mut piece) {
            stream.write_all(&piece[..length]).expect("sent");
        }
    });
    let config = server_config(files.dir(), "worker", &[&TLS13], &["http/1.1"]);
    let address = relay(&runtime, config, plain);
    let forebay = serving(address, "http1", &files.key("ca_file", "ca.pem"), "");
    let mut client = Client::connect(forebay.proxy);
    client.send("GET", "/ws", &[("connection", "upgrade"), ("upgrade", "echo")], b"");
    assert_eq!(client.read_head().status, 101);
    client.stream.write_all(b" and second").expect("sent");
    let mut said = Vec::new();
    eventually("it comes back", || {
        let mut piece = [0; 64];
        let length = client.stream.read(&mut piece).expect("reads");
        said.extend_from_slice(&piece[..length]);
        said.ends_with(b"and second").then_some(())
    });
    assert_eq!(forebay.gauge("forebay_outstanding_requests"), 1.0);
    drop(client);
    forebay.wait_all_zero();
}
