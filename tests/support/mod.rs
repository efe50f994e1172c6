//! What black-box tests share: the real binary with a config of its own, stand-in workers, a plain
//! HTTP/1.1 client that shows what is on the wire. Whatever is started here is ended here, by its pid.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::disallowed_methods, reason = "tests run in real time")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub mod bulk;
pub mod by_hand;
pub mod chaos;
pub mod frames;
pub mod grpc;
pub mod h2;
pub mod http;
pub mod pki;

pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `check` gives a value.
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ports that the kernel gives to nobody by itself: neither another test's `bind` to port 0 nor an outgoing
/// connection takes one between our look and the program's own bind.
const PORTS: std::ops::Range<u32> = 12_000..32_000;

/// A port that nobody listens on, and that no other call of this process returns.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test binaries that run side by side begin far from each other.
    let start = std::process::id().wrapping_mul(257);
    for _ in PORTS {
        let step = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port =
            u16::try_from(PORTS.start + step % (PORTS.end - PORTS.start)).expect("below 65,536");
        if TcpListener::bind(local(port)).is_ok() {
            return port;
        }
    }
    panic!("no free port in {PORTS:?}")
}

pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A child process that ends with the test.
pub struct Process {
    child: Child,
}

impl Process {
    pub fn start(args: &[&str], dir: &Path, log: &str) -> Self {
        Self::start_with(args, dir, log, &[])
    }

    /// With further environment variables.
    pub fn start_with(args: &[&str], dir: &Path, log: &str, env: &[(&str, &str)]) -> Self {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join(log))
            .expect("log file");
        let child = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(args)
            .envs(env.iter().copied())
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log file"))
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        Self { child }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_some()
    }

    pub fn wait(&mut self) -> std::process::ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status;
            }
            assert!(start.elapsed() < DEADLINE, "process {} does not end", self.pid());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Sends a signal to a process that the test started, directly or through the binary.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.expect("kill runs").success(), "kill -{name} {pid}");
}

/// How much memory a process takes.
pub fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

/// A stand-in worker on a port of its own.
pub struct Worker {
    pub process: Process,
    pub address: SocketAddr,
    dir: tempfile::TempDir,
    args: Vec<String>,
}

impl Worker {
    pub fn start(args: &[&str]) -> Self {
        Self::start_on(free_port(), args)
    }

    pub fn start_on(port: u16, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let address = local(port);
        let mut all = vec!["worker".to_owned(), "--listen".into(), address.to_string()];
        for (flag, value) in [("--instance-type", "ml.test"), ("--model", "m")] {
            if !args.contains(&flag) {
                all.extend([flag.to_owned(), value.to_owned()]);
            }
        }
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let refs: Vec<_> = all.iter().map(String::as_str).collect();
        let process = Process::start(&refs, dir.path(), "worker.log");
        eventually("the worker listens", || TcpStream::connect(address).ok());
        Self { process, address, dir, args: all }
    }

    /// One of its counters, from `/stats`.
    pub fn stat(&self, name: &str) -> u64 {
        let answer = http::get(self.address, "/stats");
        let stats: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        stats[name].as_u64().unwrap_or_else(|| panic!("no counter {name} in {stats}"))
    }
}

/// The binary with a config of its own.
pub struct Forebay {
    pub process: Process,
    pub proxy: SocketAddr,
    pub admin: SocketAddr,
    pub dir: tempfile::TempDir,
    args: Vec<String>,
}

impl Forebay {
    /// `forebay serve` with `{proxy}` and `{admin}` in the config replaced by free addresses.
    pub fn serve(config: &str) -> Self {
        Self::serve_with(config, &[])
    }

    /// The same with further files beside the config.
    pub fn serve_with(config: &str, files: &[(&str, &str)]) -> Self {
        Self::start_with("serve", config, files)
    }

    /// The same for any of the commands that serve.
    pub fn start_with(command: &str, config: &str, files: &[(&str, &str)]) -> Self {
        Self::start_in(command, config, files, &[])
    }

    /// The same with further environment variables.
    pub fn start_in(
        command: &str,
        config: &str,
        files: &[(&str, &str)],
        env: &[(&str, &str)],
    ) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).expect("written");
        }
        let (proxy, admin) = (local(free_port()), local(free_port()));
        let path = dir.path().join("forebay.toml");
        write_config(&path, config, proxy, admin);
        let args = vec![command.to_owned(), "--config".into(), path.display().to_string()];
        let refs: Vec<_> = args.iter().map(String::as_str).collect();
        let process = Process::start_with(&refs, dir.path(), "forebay.log", env);
        let forebay = Self { process, proxy, admin, dir, args };
        for listener in [admin, proxy] {
            eventually("it listens", || TcpStream::connect(listener).ok());
        }
        forebay
    }

    /// A look at processes that somebody else has started in `dir`.
    pub fn view(
        process: Process,
        proxy: SocketAddr,
        admin: SocketAddr,
        dir: tempfile::TempDir,
    ) -> Self {
        eventually("the admin listener answers", || TcpStream::connect(admin).ok());
        Self { process, proxy, admin, dir, args: Vec::new() }
    }

    /// The proxy in front of static workers, waiting until all of them are in service. `extra` are further
    /// keys of the variant.
    pub fn in_front_of(workers: &[(&Worker, u32)], extra: &str) -> Self {
        let addresses: Vec<_> =
            workers.iter().map(|(worker, slots)| (worker.address, *slots)).collect();
        Self::in_front_of_addresses(&addresses, extra)
    }

    /// The proxy with these keys of its own in front of one worker with four slots.
    pub fn limited(worker: &Worker, proxy_keys: &str) -> Self {
        Self::limited_at(worker.address, proxy_keys)
    }

    /// The same in front of any other server.
    pub fn limited_at(worker: SocketAddr, proxy_keys: &str) -> Self {
        let forebay = Self::serve(&format!(
            "[proxy]\nlisten = \"{{proxy}}\"\n{proxy_keys}\n[admin]\nlisten = \"{{admin}}\"\n\
             [provider.existing]\nkind = \"static\"\n\
             [instance_type.t]\nprovider = \"existing\"\nmax_concurrency = 4\naddresses = [\"http://{worker}\"]\n\
             [[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m\"\n\
             initial_instance_count = 1\nmin_instance_count = 1\nmax_instance_count = 1\n\
             [[endpoint.variant.pool]]\ninstance_type = \"t\"\npriority = 1\n"
        ));
        forebay.wait_in_service(1);
        forebay
    }

    pub fn in_front_of_addresses(addresses: &[(SocketAddr, u32)], extra: &str) -> Self {
        let types: Vec<_> =
            addresses.iter().map(|(address, slots)| (*address, *slots, "")).collect();
        Self::in_front_of_types(&types, extra)
    }

    /// One instance type `ml.tN` for each address, with further keys of its own.
    pub fn in_front_of_types(types: &[(SocketAddr, u32, &str)], extra: &str) -> Self {
        let mut config = String::from(
            "[proxy]\nlisten = \"{proxy}\"\n[admin]\nlisten = \"{admin}\"\n[provider.existing]\nkind = \"static\"\n",
        );
        let mut pools = String::new();
        for (number, (address, max_concurrency, keys)) in types.iter().enumerate() {
            config += &format!(
                "[instance_type.\"ml.t{number}\"]\nprovider = \"existing\"\nmax_concurrency = {max_concurrency}\naddresses = [\"http://{address}\"]\n{keys}",
            );
            pools += &format!(
                "[[endpoint.variant.pool]]\ninstance_type = \"ml.t{number}\"\npriority = {}\n",
                number + 1
            );
        }
        config += &format!(
            "[[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m\"\ninitial_instance_count = {0}\nmin_instance_count = 1\nmax_instance_count = {0}\nfallback = \"at_once\"\nhealth_interval = \"200ms\"\nstartup_health_interval = \"50ms\"\n{extra}\n{pools}",
            types.len()
        );
        let forebay = Self::serve(&config);
        forebay.wait_in_service(types.len());
        forebay
    }

    pub fn wait_in_service(&self, count: usize) {
        eventually(&format!("{count} instances in service"), || {
            (self.in_service().len() == count && self.proxies_are_current()).then_some(())
        });
    }

    /// Whether every proxy routes by the newest table.
    pub fn proxies_are_current(&self) -> bool {
        let status = self.status();
        let proxies = status["proxies"].as_array().cloned().unwrap_or_default();
        !proxies.is_empty()
            && proxies.iter().all(|proxy| proxy["applied"] == status["table_version"])
    }

    pub fn status(&self) -> serde_json::Value {
        // Nobody answers while the manager is down.
        if TcpStream::connect(self.admin).is_err() {
            return serde_json::Value::Null;
        }
        let answer = http::get(self.admin, "/api/v1/status");
        serde_json::from_slice(&answer.body).unwrap_or_default()
    }

    pub fn instances(&self) -> Vec<serde_json::Value> {
        let status = self.status();
        let variants = status["endpoints"].as_array().cloned().unwrap_or_default();
        variants
            .iter()
            .flat_map(|e| e["variants"].as_array().cloned().unwrap_or_default())
            .flat_map(|v| v["instances"].as_array().cloned().unwrap_or_default())
            .collect()
    }

    pub fn in_service(&self) -> Vec<serde_json::Value> {
        self.instances().into_iter().filter(|i| i["state"] == "InService").collect()
    }

    /// Outstanding and queued requests as the metrics tell them, over all series.
    pub fn gauge(&self, name: &str) -> f64 {
        self.gauge_where(name, "")
    }

    /// The same over the series whose labels contain `label`.
    pub fn gauge_where(&self, name: &str, label: &str) -> f64 {
        let text = http::get(self.admin, "/metrics").text();
        text.lines()
            .filter(|line| line.starts_with(name) && line[name.len()..].starts_with(['{', ' ']))
            .filter(|line| line.contains(label))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Waits until no request is counted anywhere.
    pub fn wait_all_zero(&self) {
        eventually("every counter is back at 0", || {
            let taken = ["forebay_outstanding_requests", "forebay_queued_requests"];
            taken.iter().all(|name| self.gauge(name) == 0.0).then_some(())
        });
    }

    /// Runs a subcommand of the binary against this one's manager.
    pub fn cli(&self, args: &[&str]) -> std::process::Output {
        self.cli_with(args, &[])
    }

    /// With further environment variables.
    pub fn cli_with(&self, args: &[&str], env: &[(&str, &str)]) -> std::process::Output {
        Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(args)
            .envs(env.iter().copied())
            .env("FOREBAY_ADMIN", format!("http://{}", self.admin))
            .output()
            .expect("the binary runs")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("forebay.log")).unwrap_or_default()
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("forebay.toml")
    }

    /// Starts another one of the same config beside it. Returns the one that ran before.
    pub fn succeed(&mut self) -> Process {
        let successor = start(&self.args, self.dir.path());
        std::mem::replace(&mut self.process, successor)
    }

    /// Starts it again, as it was started first.
    pub fn restart(&mut self) {
        self.process = start(&self.args, self.dir.path());
        eventually("the admin listener answers", || TcpStream::connect(self.admin).ok());
    }
}

impl Drop for Forebay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the log of the failed test ---\n{}", self.log());
        }
        // Gently first: it ends the workers that it has launched.
        if !self.process.has_ended() {
            self.process.signal("TERM");
            let start = Instant::now();
            while !self.process.has_ended() && start.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        end_workers_of(self.dir.path());
    }
}

/// Workers that outlived their manager: they still carry the test's folder in their environment.
pub fn end_workers_of(dir: &Path) {
    let mark = dir.display().to_string();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let environment = String::from_utf8_lossy(&environment);
        if environment.contains("FOREBAY_INSTANCE=") && environment.contains(&mark) {
            drop(Command::new("kill").args(["-9", &pid.to_string()]).status());
        }
    }
}

pub fn write_config(path: &Path, config: &str, proxy: SocketAddr, admin: SocketAddr) {
    let text = config.replace("{proxy}", &proxy.to_string()).replace("{admin}", &admin.to_string());
    std::fs::write(path, text).expect("config written");
}

fn start(args: &[String], dir: &Path) -> Process {
    let refs: Vec<_> = args.iter().map(String::as_str).collect();
    Process::start(&refs, dir, "forebay.log")
}
