//! One question: an engine's page, and what tells of its GPUs. A source of GPUs that several instances share (the
//! exporter of a host, `nvidia-smi`) is asked once for all of them.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

use super::TIME;
use super::targets::{EnginePage, GpuPage, Target, TlsPeer};
use crate::control::over_tls;
use crate::control::probe::whole;
use crate::decision::signals::{self, gpu};
use crate::tls::{Connectors, Peer};
use crate::types::signals::Signals;
use crate::types::spec::GpuSource;

/// Bytes read of an answer.
const PAGE_LIMIT: usize = 4 << 20;
const NVIDIA_SMI: &str = "nvidia-smi";

/// What an instance's sources have told; `None`: there is no such source.
#[derive(Debug, Default)]
pub(super) struct Answers {
    engine: Option<Result<Signals, String>>,
    gpu: Option<Result<Signals, String>>,
}

impl Answers {
    /// Each source by its name, and whether it told something.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = (&'static str, bool)> {
        let sources = [("engine", &self.engine), ("gpu", &self.gpu)];
        sources.into_iter().filter_map(|(name, answer)| Some((name, answer.as_ref()?.is_ok())))
    }

    /// All of it, and why something is missing. Who is asked for GPUs knows them better than the engine.
    pub(super) fn told(self) -> (Signals, Option<String>) {
        let mut told = Signals::default();
        let mut problems = Vec::new();
        for answer in [self.gpu, self.engine].into_iter().flatten() {
            match answer {
                Ok(signals) => told = told.or(signals),
                Err(problem) => problems.push(problem),
            }
        }
        (told, (!problems.is_empty()).then(|| problems.join("; ")))
    }
}

type Page = Result<Arc<str>, String>;
/// What a shared source last told, and when. Whoever holds the lock asks it.
type Shared = Arc<tokio::sync::Mutex<Option<(Instant, Page)>>>;

/// What asks.
pub(super) struct Asker {
    http1: Client<HttpConnector, Full<Bytes>>,
    http2: Client<HttpConnector, Full<Bytes>>,
    tls: Connectors,
    shared: Mutex<BTreeMap<GpuSource, Shared>>,
}

impl Asker {
    pub(super) fn new(tls: Connectors) -> Self {
        let client = |http2| {
            let mut builder = Client::builder(TokioExecutor::new());
            // Far between, so that no connection is worth keeping.
            builder.pool_max_idle_per_host(0).http2_only(http2).build_http()
        };
        Self { http1: client(false), http2: client(true), tls, shared: Mutex::default() }
    }

    /// Forgets the sources that none of `targets` has.
    pub(super) fn keep_only<'a>(&self, targets: impl Iterator<Item = &'a Target>) {
        let used: Vec<_> = targets.filter_map(|t| t.gpu.as_ref().map(|gpu| &gpu.source)).collect();
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if !shared.is_empty() {
            shared.retain(|source, _| used.contains(&source));
        }
    }

    pub(super) async fn ask(&self, target: &Target) -> Answers {
        let engine = async {
            match &target.engine {
                Some(page) => Some(self.engine(page).await),
                None => None,
            }
        };
        let gpu = async {
            match &target.gpu {
                Some(page) => Some(self.gpu(page, target.interval).await),
                None => None,
            }
        };
        let (engine, gpu) = tokio::join!(engine, gpu);
        Answers { engine, gpu }
    }

    async fn engine(&self, page: &EnginePage) -> Result<Signals, String> {
        let url = &page.url;
        let told = match in_time(self.engine_text(page)).await {
            Ok(text) => signals::engine_page(&text, page.engine),
            Err(problem) => {
                let flag =
                    page.profile().and_then(|profile| Some((profile, profile.metrics.flag?)));
                let hint = flag.map(|(profile, flag)| {
                    format!(" ({} tells its metrics only when started with {flag})", profile.name)
                });
                return Err(format!("{url}: {problem}{}", hint.unwrap_or_default()));
            }
        };
        if told.is_empty() {
            let whose = page.profile().map_or("any known engine", |profile| profile.name);
            return Err(format!("{url} has none of the metrics of {whose}"));
        }
        Ok(told)
    }

    async fn engine_text(&self, page: &EnginePage) -> Result<String, String> {
        let Some(TlsPeer { address, tls, protocol }) = &page.tls else {
            let client = if page.is_http2 { &self.http2 } else { &self.http1 };
            return fetch(client, &page.url).await;
        };
        let peer = Peer { address, tls: tls.as_ref(), protocol: *protocol };
        // A handshake's state is large, and most engines do without.
        Box::pin(over_tls::exchange(&self.tls, peer, question(&page.url)?, text)).await
    }

    async fn gpu(&self, page: &GpuPage, interval: Duration) -> Result<Signals, String> {
        let text = self.shared_page(&page.source, interval).await;
        let (name, told) = match &page.source {
            GpuSource::Exporter(url) => {
                (url.as_str(), text.map(|text| gpu::exporter_page(&text, &page.labels)))
            }
            GpuSource::NvidiaSmi => {
                (NVIDIA_SMI, text.map(|text| gpu::nvidia_smi(&text, &page.labels)))
            }
        };
        let told = told.map_err(|problem| format!("{name}: {problem}"))?;
        if told.is_empty() {
            let picked = if page.labels.is_empty() { "" } else { " that has the gpu_labels" };
            return Err(format!("{name} tells of no GPU{picked}"));
        }
        Ok(told)
    }

    /// What the source tells, asked now or less than half an interval ago.
    async fn shared_page(&self, source: &GpuSource, interval: Duration) -> Page {
        let slot = {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.entry(source.clone()).or_default().clone()
        };
        let mut last = slot.lock().await;
        if let Some((at, page)) = &*last
            && at.elapsed() < interval / 2
        {
            return page.clone();
        }
        let page = match source {
            GpuSource::Exporter(url) => in_time(fetch(&self.http1, url)).await,
            GpuSource::NvidiaSmi => in_time(run_nvidia_smi()).await,
        };
        let page = page.map(Arc::from);
        *last = Some((Instant::now(), page.clone()));
        page
    }
}

async fn in_time(work: impl Future<Output = Result<String, String>>) -> Result<String, String> {
    timeout(TIME, work).await.unwrap_or_else(|_elapsed| Err(format!("no answer in {TIME:?}")))
}

async fn fetch(client: &Client<HttpConnector, Full<Bytes>>, url: &str) -> Result<String, String> {
    let answer = client.request(question(url)?).await.map_err(|error| whole(&error))?;
    text(answer).await
}

fn question(url: &str) -> Result<Request<Full<Bytes>>, String> {
    Request::get(url)
        .header(header::USER_AGENT, concat!("forebay/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "text/plain;version=0.0.4")
        .body(Full::default())
        .map_err(|error| error.to_string())
}

/// The text of a page that is there.
async fn text(answer: Response<Incoming>) -> Result<String, String> {
    let status = answer.status();
    if !status.is_success() {
        return Err(format!("answered {status}"));
    }
    let body = Limited::new(answer.into_body(), PAGE_LIMIT).collect().await;
    let body = body.map_err(|error| {
        if error.is::<LengthLimitError>() {
            return format!("sends more than {} MiB", PAGE_LIMIT >> 20);
        }
        whole(&*error)
    })?;
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

async fn run_nvidia_smi() -> Result<String, String> {
    let mut child = Command::new(NVIDIA_SMI)
        .arg(format!("--query-gpu={}", gpu::NVIDIA_SMI_COLUMNS))
        .arg("--format=csv,noheader,nounits")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot be run: {error}"))?;
    let mut printed = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = stdout.take(PAGE_LIMIT as u64);
        stdout.read_to_end(&mut printed).await.map_err(|error| error.to_string())?;
    }
    let status = child.wait().await.map_err(|error| error.to_string())?;
    let printed = String::from_utf8_lossy(&printed).into_owned();
    if status.success() {
        return Ok(printed);
    }
    // It tells its own problems on its standard output.
    let words = printed.lines().next().unwrap_or_default();
    Err(format!("ended with {status}: {words}"))
}
