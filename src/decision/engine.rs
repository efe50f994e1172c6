//! What is known of each inference engine: where it tells its health, how it says that it is full, when it
//! closes idle connections, what becomes of its requests when it is stopped, how its metrics are called.
//! A table of facts, each with its source; what follows from them is decided elsewhere: by `config` (the
//! default health path, warnings), [`outcome`](super::outcome) and the proxy.
//!
//! Engines change monthly: who finds a fact outdated changes it here and nowhere else. Sources name the
//! repository and the file, issue or pull request (`owner/name#number`).

use std::time::Duration;

use crate::types::spec::Engine;

/// What is known of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// How people call it.
    pub name: &'static str,
    /// The path of a GET that answers 2xx when, and only when, the engine can serve; what health checks
    /// ask for unless they are told otherwise.
    pub health_path: &'static str,
    /// Paths that look like a health check and are none, each with the reason as a clause ("it …").
    pub misleading_paths: &'static [(&'static str, &'static str)],
    /// Whether a 503 means that the request was not run: the engine is full, or not ready.
    pub full_by_503: bool,
    /// Whether a 429 does.
    pub full_by_429: bool,
    /// How long the first piece of a stream may be waited for, to see whether it is an error that says that
    /// the request was not run ([`first_event_says_not_run`]), before the head goes to the client. `None`:
    /// the engine says so by the status.
    pub first_event_wait: Option<Duration>,
    /// When its server closes idle connections; `None`: not by itself, or not known.
    pub keep_alive: Option<KeepAlive>,
    /// Whether it closes the connection after a stream without saying so in the head, so that the next request
    /// on it would be lost.
    pub closes_after_stream: bool,
    /// What becomes of its requests on SIGTERM.
    pub on_stop: OnStop,
    /// How its metrics are called.
    pub metrics: Metrics,
}

/// How long a server keeps idle connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive {
    /// It closes one that has been idle for this long.
    pub limit: Duration,
    /// How long we may keep one idle: enough below `limit` that no request is sent on one that the server
    /// is about to close.
    pub pool_idle: Duration,
}

/// What an engine does with running requests when it gets SIGTERM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStop {
    /// It finishes them.
    Finishes,
    /// It breaks them off; with this flag, where there is one, it finishes them.
    Aborts {
        /// The flag, such as `--shutdown-timeout`.
        drain_flag: Option<&'static str>,
    },
    /// Not known.
    Unknown,
}

/// The names of an engine's load metrics in the Prometheus format. Several names: the first that is there
/// counts (they were renamed). None: there is no such metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metrics {
    /// The path of a GET that tells them; none: it tells none.
    pub path: Option<&'static str>,
    /// Their port, where it is not the one that requests go to.
    pub port: Option<u16>,
    /// Requests that it works on.
    pub running: &'static [Gauge],
    /// Requests that wait in it.
    pub waiting: &'static [Gauge],
    /// The share of its KV cache in use, 0 to 1.
    pub kv_use: &'static [Gauge],
    /// The flag without which there are none.
    pub flag: Option<&'static str>,
}

/// One series of a gauge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gauge {
    /// The metric.
    pub name: &'static str,
    /// The label and its value that pick the series, where the name alone does not.
    pub label: Option<(&'static str, &'static str)>,
}

const fn gauge(name: &'static str) -> Gauge {
    Gauge { name, label: None }
}

const fn labelled(name: &'static str, label: &'static str, value: &'static str) -> Gauge {
    Gauge { name, label: Some((label, value)) }
}

/// What is known of `engine`.
#[must_use]
pub const fn profile(engine: Engine) -> &'static Profile {
    match engine {
        Engine::Vllm => &VLLM,
        Engine::Sglang => &SGLANG,
        Engine::Tgi => &TGI,
        Engine::Triton => &TRITON,
        Engine::LlamaCpp => &LLAMA_CPP,
        Engine::OpenAi => &OPENAI,
    }
}

/// How long a connection to `engine` may be kept idle, as far as the engine is concerned.
#[must_use]
pub fn pool_idle(engine: Option<Engine>) -> Duration {
    let keep_alive = engine.and_then(|engine| profile(engine).keep_alive);
    keep_alive.map_or(Duration::MAX, |keep_alive| keep_alive.pool_idle)
}

/// A list of names is no sign of health: servers answer it without asking the engine (gpustack/gpustack#6203).
const MODELS: (&str, &str) =
    ("/v1/models", "it lists names without asking the engine, so it says 200 when that is dead");

/// Closes what has been idle for 5 s. Two seconds of distance cover the sweeps of our pool and a server whose
/// event loop is busy.
const FIVE_SECONDS: KeepAlive =
    KeepAlive { limit: Duration::from_secs(5), pool_idle: Duration::from_secs(3) };

const VLLM: Profile = Profile {
    name: "vLLM",
    // vllm-project/vllm, entrypoints: `/health` asks the engine client, 503 once the engine is dead; `/ping`
    // is the same handler.
    health_path: "/health",
    misleading_paths: &[MODELS],
    // 503 when `--max-num-queued-reqs` or `--max-num-queued-tokens` is reached (vllm-project/vllm#49445), and
    // when the engine is dead.
    full_by_503: true,
    full_by_429: false,
    first_event_wait: None,
    // uvicorn's `timeout_keep_alive`, from VLLM_HTTP_TIMEOUT_KEEP_ALIVE (vllm-project/vllm, vllm/envs.py: 5).
    keep_alive: Some(FIVE_SECONDS),
    closes_after_stream: false,
    // vllm-project/vllm#36666: aborts with the default `--shutdown-timeout 0`; the flag is in 0.18 and later.
    on_stop: OnStop::Aborts { drain_flag: Some("--shutdown-timeout") },
    metrics: Metrics {
        // vllm-project/vllm, docs/design/metrics.md; `gpu_cache_usage_perc` before V1. Fractions of 1.
        path: Some("/metrics"),
        port: None,
        running: &[gauge("vllm:num_requests_running")],
        waiting: &[gauge("vllm:num_requests_waiting")],
        kv_use: &[gauge("vllm:kv_cache_usage_perc"), gauge("vllm:gpu_cache_usage_perc")],
        flag: None,
    },
};

const SGLANG: Profile = Profile {
    name: "SGLang",
    // sgl-project/sglang, srt/entrypoints/http_server.py: 503 while it starts and while it stops.
    health_path: "/health",
    // The same file: the handler of `/ping` answers 200 whatever the state.
    misleading_paths: &[("/ping", "it says 200 even while the model loads"), MODELS],
    // sgl-project/sglang, srt/managers/scheduler.py: aborted with SERVICE_UNAVAILABLE where
    // `--max-queued-requests` is reached.
    full_by_503: true,
    full_by_429: false,
    // sgl-project/sglang, srt/entrypoints/openai/serving_chat.py: the head of a stream is out by then, so the
    // abort comes as its first event. It comes within one round of the scheduler, milliseconds.
    first_event_wait: Some(Duration::from_secs(1)),
    // uvicorn's `timeout_keep_alive`, from SGLANG_TIMEOUT_KEEP_ALIVE (sgl-project/sglang, srt/environ.py: 5).
    keep_alive: Some(FIVE_SECONDS),
    closes_after_stream: false,
    // sgl-project/sglang, srt/managers/tokenizer_manager.py: its SIGTERM watchdog waits for what runs, unless
    // `SGL_FORCE_SHUTDOWN` is set.
    on_stop: OnStop::Finishes,
    metrics: Metrics {
        // sgl-project/sglang, docs/references/production_metrics.md.
        path: Some("/metrics"),
        port: None,
        running: &[gauge("sglang:num_running_reqs")],
        waiting: &[gauge("sglang:num_queue_reqs")],
        kv_use: &[gauge("sglang:token_usage")],
        flag: Some("--enable-metrics"),
    },
};

const TGI: Profile = Profile {
    name: "TGI",
    // huggingface/text-generation-inference, router/src/server.rs: 503 until the shards answer; `/ping` is
    // the same handler.
    health_path: "/health",
    misleading_paths: &[MODELS],
    full_by_503: false,
    // The same file: 429 `overloaded` when `--max-concurrent-requests` permits are taken.
    full_by_429: true,
    first_event_wait: None,
    // None is known: its server is hyper under axum, as it comes.
    keep_alive: None,
    closes_after_stream: false,
    // The same repository, launcher/src/main.rs: waits up to 90 s for the shards' requests.
    on_stop: OnStop::Finishes,
    metrics: Metrics {
        // The same repository, docs/source/reference/metrics.md.
        path: Some("/metrics"),
        port: None,
        running: &[gauge("tgi_batch_current_size")],
        waiting: &[gauge("tgi_queue_size")],
        kv_use: &[],
        flag: None,
    },
};

const TRITON: Profile = Profile {
    name: "Triton",
    // triton-inference-server/server, docs/protocol (KServe's health endpoints): 400 until all models are loaded.
    health_path: "/v2/health/ready",
    // The same: `live` is the server's, not the models'.
    misleading_paths: &[("/v2/health/live", "it says 200 before the models are loaded")],
    // triton-inference-server/core, model configuration `max_queue_size`: UNAVAILABLE, 503 over HTTP.
    full_by_503: true,
    full_by_429: false,
    first_event_wait: None,
    // None is known.
    keep_alive: None,
    closes_after_stream: false,
    // triton-inference-server/server, `--exit-timeout-secs` (30): finishes what runs.
    on_stop: OnStop::Finishes,
    metrics: Metrics {
        // triton-inference-server/server, docs/user_guide/metrics.md and tensorrtllm_backend; on port 8002.
        path: Some("/metrics"),
        port: Some(8002),
        running: &[labelled("nv_trt_llm_request_metrics", "request_type", "scheduled")],
        // What waits in the batch manager of TensorRT-LLM; without it, in Triton's own queues.
        waiting: &[
            labelled("nv_trt_llm_request_metrics", "request_type", "waiting"),
            gauge("nv_inference_pending_request_count"),
        ],
        kv_use: &[labelled("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", "fraction")],
        flag: None,
    },
};

const LLAMA_CPP: Profile = Profile {
    name: "llama.cpp",
    // ggml-org/llama.cpp, tools/server/server-http.cpp: 503 "Loading model" until it can serve.
    health_path: "/health",
    // The same repository, tools/server/server.cpp: no such route.
    misleading_paths: &[("/ping", "it does not exist there (404)")],
    // The middleware of server-http.cpp: 503 only while it loads. It never refuses for being full: what
    // exceeds `-np` waits in it. Measured with build 11434: the slot of a stream whose client leaves is free
    // within 30 ms, but that of a plain request only once no result of any request has come for a second
    // (tools/server/server-queue.cpp, `recv_with_timeout`): `on_client_abort = "finish"` counts it until then.
    full_by_503: true,
    full_by_429: false,
    first_event_wait: None,
    // The same repository, vendor/cpp-httplib/httplib.h: CPPHTTPLIB_KEEPALIVE_TIMEOUT_SECOND, which no flag
    // changes. A connection also ends after 100 requests, which its last answer says.
    keep_alive: Some(FIVE_SECONDS),
    // The same repository, tools/server/server-http.cpp: its provider of chunks ends with `false`, which the
    // library takes for a failure. Measured with build 11434: closed at once, behind a head that says
    // `Keep-Alive: timeout=5, max=100`.
    closes_after_stream: true,
    // tools/server/server.cpp: SIGTERM ends the loop that runs the slots. Measured with build 11434: a stream
    // then says nothing until its next ping (30 s) and breaks off, a plain request gets no answer at all, and
    // the process does not end before its clients have gone.
    on_stop: OnStop::Aborts { drain_flag: None },
    metrics: Metrics {
        // tools/server/server-task.cpp. The KV cache's share was removed; `/slots` tells which slots are taken.
        path: Some("/metrics"),
        port: None,
        running: &[gauge("llamacpp:requests_processing")],
        waiting: &[gauge("llamacpp:requests_deferred")],
        kv_use: &[],
        flag: Some("--metrics"),
    },
};

const OPENAI: Profile = Profile {
    name: "an OpenAI-compatible server",
    // No part of OpenAI's API, but what such servers have in common: NVIDIA/TensorRT-LLM (trtllm-serve) and
    // InternLM/lmdeploy (api_server) have it, as most of the above do.
    health_path: "/health",
    misleading_paths: &[MODELS],
    // Not known, so nothing is assumed: a request may have run.
    full_by_503: false,
    full_by_429: false,
    first_event_wait: None,
    keep_alive: None,
    closes_after_stream: false,
    on_stop: OnStop::Unknown,
    metrics: Metrics {
        path: None,
        port: None,
        running: &[],
        waiting: &[],
        kv_use: &[],
        flag: None,
    },
};

/// Bytes of an event beyond which it is no short error.
const LONGEST_ERROR_EVENT: usize = 8 << 10;

/// Whether the beginning of an event stream says that the request was not run: its first event is an error
/// with code 503, from an engine that says so only when it is full. `bytes` are the first that came of the
/// body; where they do not hold the event to its end, nothing is claimed.
///
/// # Examples
/// ```
/// use forebay::decision::engine::first_event_says_not_run;
/// use forebay::types::spec::Engine;
/// let event = b"data: {\"error\": {\"message\": \"The request queue is full.\", \"code\": 503}}\n\n";
/// assert!(first_event_says_not_run(Some(Engine::Sglang), event));
/// assert!(!first_event_says_not_run(Some(Engine::Vllm), event));
/// ```
#[must_use]
pub fn first_event_says_not_run(engine: Option<Engine>, bytes: &[u8]) -> bool {
    let asked = engine.is_some_and(|engine| profile(engine).first_event_wait.is_some());
    asked && first_data(bytes).is_some_and(|data| error_code(&data) == Some(503))
}

/// The data of the first event that has any: its `data` lines joined (WHATWG HTML, 9.2.6).
fn first_data(bytes: &[u8]) -> Option<String> {
    let head = &bytes[..bytes.len().min(LONGEST_ERROR_EVENT)];
    // A character may be cut in two at the end; an event that ends before it is whole.
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&head[..error.valid_up_to()]).ok()?,
    };
    let mut data: Option<String> = None;
    for line in text.trim_start_matches('\u{feff}').split_inclusive('\n') {
        let line = line.strip_suffix('\n')?;
        let line = line.strip_suffix('\r').unwrap_or(line);
        match line.split_once(':').unwrap_or((line, "")) {
            // The blank line ends an event; one without data is none.
            ("", "") if line.is_empty() && data.is_some() => return data,
            ("data", value) => {
                let value = value.strip_prefix(' ').unwrap_or(value);
                match &mut data {
                    None => data = Some(value.to_owned()),
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                }
            }
            _ => {}
        }
    }
    None
}

/// The code of an error in JSON, bare or under `error`.
fn error_code(data: &str) -> Option<u64> {
    if !data.contains("503") {
        return None;
    }
    let value: serde_json::Value = serde_json::from_str(data).ok()?;
    let bare = value.get("object").is_some_and(|object| object == "error").then_some(&value);
    value.get("error").or(bare)?.get("code")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        use std::fmt::Write as _;
        let names = |gauges: &[Gauge]| {
            let shown = gauges.iter().map(|gauge| match gauge.label {
                Some((label, value)) => format!("{}{{{label}={value:?}}}", gauge.name),
                None => gauge.name.to_owned(),
            });
            shown.collect::<Vec<_>>().join(" or ")
        };
        let mut table = String::new();
        for engine in Engine::ALL {
            let Profile { name, health_path, on_stop, metrics, .. } = profile(engine);
            let p = profile(engine);
            let bad: Vec<_> = p.misleading_paths.iter().map(|(path, _)| *path).collect();
            let idle = p.keep_alive.map(|k| (k.limit, k.pool_idle));
            writeln!(table, "{name}").expect("text");
            writeln!(table, "  health {health_path}, not {bad:?}").expect("text");
            let (full, event) = ((p.full_by_503, p.full_by_429), p.first_event_wait);
            writeln!(table, "  full by 503, 429: {full:?}, first event {event:?}").expect("text");
            let closes = p.closes_after_stream;
            writeln!(table, "  idle {idle:?}, closes after a stream {closes}").expect("text");
            writeln!(table, "  on SIGTERM {on_stop:?}").expect("text");
            let (path, port) = (metrics.path.unwrap_or("nowhere"), metrics.port);
            writeln!(table, "  metrics at {path}, port {port:?}").expect("text");
            writeln!(table, "  running {}", names(metrics.running)).expect("text");
            writeln!(table, "  waiting {}", names(metrics.waiting)).expect("text");
            writeln!(table, "  kv {}, by {:?}", names(metrics.kv_use), metrics.flag).expect("text");
        }
        insta::assert_snapshot!("the_table", table);
    }

    #[test]
    fn profiles_make_sense() {
        for engine in Engine::ALL {
            let profile = profile(engine);
            let name = profile.name;
            assert!(profile.health_path.starts_with('/'), "{name}");
            for (path, reason) in profile.misleading_paths {
                assert_ne!(*path, profile.health_path, "{name}");
                assert!(reason.starts_with("it "), "{name}: {reason}");
            }
            if let Some(KeepAlive { limit, pool_idle }) = profile.keep_alive {
                assert!(
                    pool_idle + Duration::from_secs(1) < limit,
                    "{name}: a sweep takes a second"
                );
            }
        }
    }

    #[test]
    fn a_first_event_that_says_not_run() {
        let full = r#"{"error":{"object":"error","message":"full","type":"S","code":503}}"#;
        let bare = r#"{"object":"error","message":"full","code":503}"#;
        let delta = r#"{"choices":[{"delta":{"content":"code 503"}}]}"#;
        for (text, says) in [
            (format!("data: {full}\n\n"), true),
            (format!("data:{full}\r\n\r\ndata: [DONE]\r\n\r\n"), true),
            (format!(": hello\n\nevent: error\ndata: {full}\n\n"), true),
            (format!("\u{feff}data: {bare}\n\n"), true),
            (format!("data: {}\ndata: {}\n\n", &full[..9], &full[9..]), true),
            // Not the first event; not to its end; not an error; not this error; not JSON.
            (format!("data: {delta}\n\ndata: {full}\n\n"), false),
            (format!("data: {full}"), false),
            (format!("data: {full}\n"), false),
            (format!("data: {}", &full[..20]), false),
            (format!("data: {delta}\n\n"), false),
            ("data: {\"error\":{\"code\":500,\"message\":\"503\"}}\n\n".to_owned(), false),
            ("data: {\"error\":{\"code\":\"503\"}}\n\n".to_owned(), false),
            ("data: {\"code\":503}\n\n".to_owned(), false),
            ("data: 503\n\n".to_owned(), false),
            ("data: {\"error\":503}\n\n".to_owned(), false),
            (full.to_owned(), false),
            (format!("data: {}{full}\n\n", " ".repeat(LONGEST_ERROR_EVENT)), false),
            (String::new(), false),
        ] {
            let said = first_event_says_not_run(Some(Engine::Sglang), text.as_bytes());
            assert_eq!(said, says, "{text:?}");
            for other in Engine::ALL.into_iter().filter(|engine| *engine != Engine::Sglang) {
                assert!(!first_event_says_not_run(Some(other), text.as_bytes()), "{text:?}");
            }
            assert!(!first_event_says_not_run(None, text.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn a_cut_character_hides_no_event_before_it() {
        let mut bytes = b"data: {\"error\":{\"code\":503}}\n\ndata: \xc3".to_vec();
        assert!(first_event_says_not_run(Some(Engine::Sglang), &bytes));
        bytes.splice(0..0, [0xff]);
        assert!(!first_event_says_not_run(Some(Engine::Sglang), &bytes), "no text at all");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let says = first_event_says_not_run(Some(Engine::Sglang), &bytes);
            proptest::prop_assert!(!says || bytes.windows(3).any(|three| three == b"503"));
        }
    }
}
