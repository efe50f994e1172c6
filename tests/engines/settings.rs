//! What follows from `engine` in a config: defaults and warnings, each with its line and sentence.

use forebay::config::{self, Config};
use forebay::types::VariantKey;
use forebay::types::spec::{Engine, HealthCheck};

/// Line by line: a proxy, providers, two types and a variant, with gaps for what a case sets.
fn config(proxy: &str, command: &str, first: &str, second: &str, variant: &str) -> String {
    format!(
        r#"[proxy]
{proxy}
[provider.local]
kind = "process"
command = {command}
[provider.existing]
kind = "static"
[instance_type.one]
provider = "local"
{first}
[instance_type.two]
provider = "existing"
addresses = ["http://127.0.0.1:9001"]
{second}
[[endpoint]]
name = "e"
[[endpoint.variant]]
name = "v"
model = "m"
{variant}
[[endpoint.variant.pool]]
instance_type = "one"
[[endpoint.variant.pool]]
instance_type = "two"
priority = 2
"#
    )
}

const PLAIN: &str = r#"["engine", "--port", "{port}"]"#;

const DRAINS: &str = r#"["sh", "-c", "exec vllm serve --port {port} --shutdown-timeout=60"]"#;

/// The config and its warnings as `line: sentence`.
fn load(text: &str) -> (Config, Vec<String>) {
    let (config, warnings) = config::load_str(text, "f").expect("no mistake");
    let shown = warnings.iter().map(|warning| {
        let line = warning.position.expect("a place").line;
        assert!(!warning.is_error(), "{warning}");
        format!("{line}: {}", warning.message)
    });
    (config, shown.collect())
}

fn health_path(config: &Config) -> &str {
    match &config.fleet.endpoints[0].variants[0].health.check {
        HealthCheck::Get(path) => path,
        other @ HealthCheck::Grpc(_) => panic!("{other:?}"),
    }
}

#[test]
fn the_health_path_comes_from_the_engine() {
    for (engine, path) in [
        ("sglang", "/health"),
        ("tgi", "/health"),
        ("triton", "/v2/health/ready"),
        ("llama.cpp", "/health"),
        ("openai", "/health"),
    ] {
        let key = format!("engine = \"{engine}\"");
        let (config, warnings) = load(&config("", PLAIN, &key, &key, ""));
        assert_eq!((health_path(&config), warnings), (path, vec![]), "{engine}");
        // The same from the variant, and what the file says goes first.
        let (of_variant, warnings) = load(&self::config("", PLAIN, "", "", &key));
        assert_eq!((health_path(&of_variant), warnings), (path, vec![]), "{engine}");
        let own = format!("{key}\nhealth_path = \"/own\"");
        let (own, warnings) = load(&self::config("", PLAIN, "", "", &own));
        assert_eq!((health_path(&own), warnings), ("/own", vec![]), "{engine}");
    }
    let (config, warnings) = load(&config("", PLAIN, "", "", ""));
    assert_eq!((health_path(&config), warnings), ("/ping", vec![]));
}

#[test]
fn the_types_engine_goes_before_the_variants() {
    let text = config("", PLAIN, "engine = \"tgi\"", "", "engine = \"sglang\"");
    let (config, warnings) = load(&text);
    assert_eq!(warnings, Vec::<String>::new());
    let key = VariantKey {
        endpoint: "e".parse().expect("a name"),
        variant: "v".parse().expect("a name"),
    };
    let variant = config.fleet.variant(&key).expect("the variant");
    let engine = |name: &str| config.fleet.engine(&name.parse().expect("a name"), variant);
    assert_eq!((engine("one"), engine("two")), (Some(Engine::Tgi), Some(Engine::Sglang)));
}

/// What each case is about, its config, and the warnings of it.
type Cases<'a> = Vec<(&'a str, String, Vec<String>)>;

fn assert_warnings(cases: Cases<'_>) {
    for (what, text, expected) in cases {
        assert_eq!(load(&text).1, expected, "{what}");
    }
}

fn named(engine: &str) -> String {
    format!("engine = \"{engine}\"")
}

/// A variant with one key before its engine's name: in line 20.
fn variant(key: &str, engine: &str, command: &str) -> String {
    config("", command, "", "", &format!("{key}\n{}", named(engine)))
}

#[test]
fn paths_that_say_nothing_of_an_engines_health_are_warned_of() {
    let misleading = |path: &str, name: &str, why: &str, good: &str| {
        vec![format!(
            "20: `health_path` \"{path}\" does not tell {name}'s health: {why}; write \"{good}\" or leave it out"
        )]
    };
    let path = |path: &str, engine| variant(&format!("health_path = \"{path}\""), engine, DRAINS);
    let differ = "17: the engines of this variant's pools tell their health at different paths (\"/health\", \
                  \"/ping\"), so all are asked at \"/health\": write a `health_path` that all of them have, or give \
                  each engine a variant of its own";
    let always = "it says 200 even while the model loads";
    let lists = "it lists names without asking the engine, so it says 200 when that is dead";
    let live = "it says 200 before the models are loaded";
    let none = "it does not exist there (404)";
    assert_warnings(vec![
        ("SGLang", path("/ping", "sglang"), misleading("/ping", "SGLang", always, "/health")),
        (
            "a query",
            path("/ping?a", "llama.cpp"),
            misleading("/ping", "llama.cpp", none, "/health"),
        ),
        (
            "Triton's life",
            path("/v2/health/live", "triton"),
            misleading("/v2/health/live", "Triton", live, "/v2/health/ready"),
        ),
        (
            "a list of models",
            path("/v1/models", "openai"),
            misleading("/v1/models", "an OpenAI-compatible server", lists, "/health"),
        ),
        ("vLLM's /ping is right", path("/ping", "vllm"), vec![]),
        ("two paths", config("", PLAIN, &named("tgi"), "", ""), vec![differ.to_owned()]),
        ("one path", config("", PLAIN, &named("tgi"), &named("sglang"), ""), vec![]),
    ]);
}

#[test]
fn engines_that_break_off_their_requests_are_warned_of() {
    let vllm = r#"["vllm", "serve", "--port", "{port}"]"#;
    let stand_in = r#"["{forebay}", "worker", "--listen", "{address}"]"#;
    let no_flag = "vLLM breaks off its requests when it is stopped unless it is started with \
                   --shutdown-timeout and a number of seconds: add that to the `command` of provider \"local\"";
    let short = "20: `drain_timeout` is 59s, and llama.cpp breaks off what still runs when it is stopped then: \
                 give it as long as the longest answer takes, at least 1m";
    let drain = |time: &str, engine, command| {
        variant(&format!("drain_timeout = \"{time}\""), engine, command)
    };
    let v = &named("vllm");
    assert_warnings(vec![
        ("no flag", config("", vllm, v, v, ""), vec![format!("10: {no_flag}")]),
        ("by the variant", config("", vllm, "", "", v), vec![format!("20: {no_flag}")]),
        ("the flag is in a shell's line", config("", DRAINS, "", "", v), vec![]),
        ("a stand-in takes no such flag", config("", stand_in, "", "", v), vec![]),
        ("nobody stops a static one", config("", PLAIN, &named("tgi"), v, ""), vec![]),
        ("a short drain", drain("59s", "llama.cpp", PLAIN), vec![short.to_owned()]),
        ("long enough", drain("60s", "llama.cpp", PLAIN), vec![]),
        ("a short drain, but the flag", drain("10s", "vllm", DRAINS), vec![]),
        ("a short drain of one that finishes", drain("10s", "sglang", PLAIN), vec![]),
    ]);
}

#[test]
fn connections_that_would_be_idle_for_too_long_are_warned_of() {
    let long = |name: &str, took: &str| {
        format!(
            "2: `pool_idle_timeout` is {took}, but {name} closes a connection that was idle for 5s: those to \
             it are kept for 3s only; write less than 5s"
        )
    };
    let idle = |time: &str, first: &str, second: &str| {
        let key = format!("pool_idle_timeout = \"{time}\"");
        config(&key, PLAIN, &named(first), &named(second), "")
    };
    assert_warnings(vec![
        ("too long", idle("5s", "sglang", "sglang"), vec![long("SGLang", "5s")]),
        (
            "too long for two",
            idle("1m", "sglang", "llama.cpp"),
            vec![long("SGLang", "1m"), long("llama.cpp", "1m")],
        ),
        ("less", idle("4900ms", "sglang", "sglang"), vec![]),
        ("no limit is known", idle("1h", "tgi", "tgi"), vec![]),
    ]);
}

#[test]
fn an_engine_that_nobody_asks_for_is_warned_of() {
    let text = config("", PLAIN, &named("tgi"), &named("tgi"), &named("sglang"));
    let rule = "20: `engine` has no effect here: the instance types of all pools name theirs";
    assert_warnings(vec![("no effect", text, vec![rule.to_owned()])]);
}

#[test]
fn an_unknown_engine_is_a_mistake() {
    let text = config("", PLAIN, "engine = \"vlm\"", "", "engine = \"llamacpp\"");
    let mistakes = config::load_str(&text, "f").expect_err("two mistakes");
    let shown: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
    let known = r#""vllm", "sglang", "tgi", "triton", "llama.cpp", "openai""#;
    assert_eq!(
        shown,
        [
            format!(
                "f:10:10: error: `engine` must be one of {known}, not \"vlm\"; did you mean \"vllm\"?"
            ),
            format!(
                "f:20:10: error: `engine` must be one of {known}, not \"llamacpp\"; did you mean \"llama.cpp\"?"
            ),
        ]
    );
}
