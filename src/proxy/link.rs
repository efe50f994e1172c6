//! The proxy's side of its tie to a manager in another process: follows the routing table, keeps the last
//! one on disk, reports what is counted. Nothing here is ever waited for by a request: without a manager
//! the proxy serves on with the table it has.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use thiserror::Error;

use super::router::Router;
use crate::runtime::rng;
use crate::runtime::tasks::Tasks;
use crate::runtime::tokens::SentToken;
use crate::tls::{Connector, Connectors};
use crate::types::Address;
use crate::types::report::ProxyReport;
use crate::types::table::RoutingTable;
use crate::types::tls::WorkerTls;

/// How long the manager holds a question for a newer table.
const LONG_POLL: Duration = Duration::from_secs(20);
/// Beyond the long poll, how long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Reports are sent at least this often, and at once when something is worth it,
pub const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// but not more often than this.
pub const REPORT_SPACING: Duration = Duration::from_millis(50);
/// How long a table may take to reach the disk before requests are routed by it.
const SAVE_PATIENCE: Duration = Duration::from_secs(2);
/// How long the last word of a proxy that has a successor may take to be heard.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(4);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(2);
/// A table of 10,000 instances has about 4 MiB.
const LARGEST_TABLE: usize = 64 << 20;

/// Where the manager is and where the last table is kept.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// The manager's admin listener.
    pub manager: Address,
    /// What it wants to be sent, if it wants a token.
    pub token: Option<SentToken>,
    /// How it is spoken to where its address is `https`,
    pub tls: Arc<WorkerTls>,
    /// and what keeps the files for that.
    pub connectors: Connectors,
    /// The file that the last table is kept in.
    pub table_path: PathBuf,
}

#[derive(Debug, Error)]
enum LinkError {
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error(
        "the manager wants a token, and not the one that is sent: set [proxy] manager_token_file"
    )]
    Unauthenticated,
    #[error("the manager answered {0}")]
    Status(StatusCode),
    #[error(transparent)]
    Connection(#[from] hyper_util::client::legacy::Error),
    #[error("the answer broke off or is too large: {0}")]
    Body(String),
    #[error("the answer is no routing table of format {format}: {0}", format = RoutingTable::FORMAT)]
    Format(String),
}

/// Starts following and reporting, after the table on disk (if there is one) has been applied.
///
/// # Errors
/// When the table on disk exists and cannot be read.
pub fn start(options: &LinkOptions, router: &Arc<Router>, tasks: &Tasks) -> io::Result<()> {
    match load(&options.table_path)? {
        Some(table) => {
            tracing::info!(version = %table.version, "serving by the last table from disk");
            router.apply(&table);
        }
        None => {
            tracing::info!(manager = %options.manager, "no table on disk: waiting for the manager");
        }
    }
    Link::new(options.clone(), router).run(tasks);
    Ok(())
}

/// Starts following and reporting for a proxy that drains: it keeps no table.
pub fn join(options: LinkOptions, router: &Arc<Router>, tasks: &Tasks) {
    Link::new(options, router).run(tasks);
}

impl Link {
    fn new(options: LinkOptions, router: &Arc<Router>) -> Self {
        let LinkOptions { manager, tls, connectors, .. } = options.clone();
        let connector = Connector::new(manager, tls, connectors, ANSWER_TIMEOUT);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .build(connector);
        Self { options, router: Arc::clone(router), client }
    }

    fn run(self, tasks: &Tasks) {
        let link = self;
        tasks.spawn_until_stopped("table-follower", link.clone().follow());
        let stopping = tasks.stopping();
        tasks.spawn("reporter", async move {
            tokio::select! {
                () = link.report_for_ever() => {}
                () = stopping.cancelled() => {
                    // The last word: nothing is left here, the manager need not wait for this proxy.
                    link.say_goodbye().await;
                }
            }
        });
    }
}

#[derive(Debug, Clone)]
struct Link {
    options: LinkOptions,
    router: Arc<Router>,
    client: Client<Connector, Full<Bytes>>,
}

impl Link {
    async fn follow(self) {
        let mut retry = FIRST_RETRY;
        loop {
            match self.next_table().await {
                Ok(table) => {
                    retry = FIRST_RETRY;
                    if let Some(table) = table {
                        self.adopt(table).await;
                    }
                }
                Err(error) => {
                    if retry == FIRST_RETRY {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(manager = %self.options.manager, error, "cannot follow the manager's table; serving on with the last one");
                    }
                    tokio::time::sleep(jittered(retry)).await;
                    retry = (retry * 2).min(LAST_RETRY);
                }
            }
        }
    }

    async fn adopt(&self, table: RoutingTable) {
        tracing::info!(version = %table.version, "routing by a new table");
        if self.router.is_draining() {
            // What is on disk is its successor's.
            self.router.apply(&table);
            return;
        }
        // On disk first: a proxy that is killed must not come back with an older table than it has
        // confirmed. A disk that hangs must not keep the table from requests, though.
        let path = self.options.table_path.clone();
        let kept = table.clone();
        let saving = tokio::task::spawn_blocking(move || save(&path, &kept));
        match tokio::time::timeout(SAVE_PATIENCE, saving).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => {
                tracing::error!(path = %self.options.table_path.display(), %error, "cannot keep the table on disk");
            }
            Ok(Err(_)) | Err(_) => {
                tracing::error!(path = %self.options.table_path.display(), "the table is not on disk yet; routing by it all the same");
            }
        }
        self.router.apply(&table);
    }

    async fn next_table(&self) -> Result<Option<RoutingTable>, LinkError> {
        let path = format!(
            "/internal/v1/table?after={}&wait_ms={}",
            self.router.version(),
            LONG_POLL.as_millis()
        );
        let body = self.ask(Method::GET, &path, Bytes::new(), LONG_POLL + ANSWER_TIMEOUT).await?;
        body.map(|body| parse(&body).map_err(LinkError::Format)).transpose()
    }

    async fn report_for_ever(&self) {
        let mut reached = true;
        loop {
            let report = self.router.report().short();
            match self.report(&report).await {
                Ok(()) if !reached => {
                    reached = true;
                    tracing::info!(manager = %self.options.manager, "the manager takes reports again");
                }
                Err(error) if reached => {
                    reached = false;
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(manager = %self.options.manager, error, "cannot report to the manager");
                }
                Ok(()) | Err(_) => {}
            }
            tokio::time::sleep(REPORT_SPACING).await;
            // Either way it is time to report.
            drop(tokio::time::timeout(REPORT_INTERVAL, self.router.report_wanted()).await);
        }
    }

    /// A manager that has just taken over may not listen yet; any other is not waited for.
    async fn say_goodbye(&self) {
        let report = ProxyReport { leaving: true, ..self.router.report() };
        if !self.router.is_draining() {
            drop(self.report(&report).await);
            return;
        }
        let saying = async {
            while self.report(&report).await.is_err() {
                tokio::time::sleep(FIRST_RETRY).await;
            }
        };
        drop(tokio::time::timeout(GOODBYE_PATIENCE, saying).await);
    }

    async fn report(&self, report: &ProxyReport) -> Result<(), LinkError> {
        let body =
            serde_json::to_vec(report).map_err(|error| LinkError::Body(error.to_string()))?;
        self.ask(Method::POST, "/internal/v1/report", body.into(), ANSWER_TIMEOUT).await.map(drop)
    }

    /// The answer's body; `None` for 204.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Option<Bytes>, LinkError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.options.manager))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| LinkError::Body(error.to_string()))?;
        if let Some(token) = &self.options.token {
            request.headers_mut().insert(AUTHORIZATION, token.header());
        }
        let exchange = async {
            let response = self.client.request(request).await?;
            match response.status() {
                StatusCode::NO_CONTENT => Ok(None),
                status if status.is_success() => Limited::new(response.into_body(), LARGEST_TABLE)
                    .collect()
                    .await
                    .map(|body| Some(body.to_bytes()))
                    .map_err(|error| LinkError::Body(error.to_string())),
                StatusCode::UNAUTHORIZED => {
                    self.look_for_another_token().await;
                    Err(LinkError::Unauthenticated)
                }
                status => Err(LinkError::Status(status)),
            }
        };
        tokio::time::timeout(limit, exchange).await.map_err(|_| LinkError::TimedOut(limit))?
    }
}

impl Link {
    /// The manager's may have been replaced; the next try has what is in the file now.
    async fn look_for_another_token(&self) {
        let Some(token) = self.options.token.clone() else { return };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || token.refresh()).await {
            tracing::warn!(%error, "cannot read the manager's token again");
        }
    }
}

/// Half to one and a half of `span`, so that many proxies do not come back at the same moment.
fn jittered(span: Duration) -> Duration {
    span / 2 + span.mul_f64((rng::draw() >> 11) as f64 / (1_u64 << 53) as f64)
}

fn parse(bytes: &[u8]) -> Result<RoutingTable, String> {
    let table: RoutingTable = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if table.format == RoutingTable::FORMAT {
        Ok(table)
    } else {
        Err(format!("its format is {}", table.format))
    }
}

fn load(path: &Path) -> io::Result<Option<RoutingTable>> {
    match std::fs::read(path) {
        Ok(bytes) => match parse(&bytes) {
            Ok(table) => Ok(Some(table)),
            Err(reason) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{} is not a routing table: {reason}; delete it to wait for the manager's",
                    path.display()
                ),
            )),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}

/// Whole or not at all: written beside it, then renamed over it.
fn save(path: &Path, table: &RoutingTable) -> io::Result<()> {
    let beside = path.with_extension("new");
    let file = std::fs::File::create(&beside)?;
    let mut writer = io::BufWriter::new(file);
    serde_json::to_writer(&mut writer, table)?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::table::TableVersion;

    #[test]
    fn the_last_table_survives() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("table.json");
        assert!(load(&path).expect("absent").is_none());
        let version = TableVersion { epoch: 3, revision: 4 };
        let table =
            RoutingTable { format: RoutingTable::FORMAT, version, ..RoutingTable::default() };
        save(&path, &table).expect("written");
        assert_eq!(load(&path).expect("read"), Some(table));
    }

    #[test]
    fn garbage_on_disk_is_reported_not_served() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("table.json");
        for garbage in
            ["", "{", r#"{"format":99,"version":{"epoch":1,"revision":1},"endpoints":[]}"#]
        {
            std::fs::write(&path, garbage).expect("written");
            let error = load(&path).expect_err("garbage");
            assert!(error.to_string().contains("delete it"), "{error}");
        }
    }
}
