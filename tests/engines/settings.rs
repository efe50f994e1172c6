//! What follows from `engine` in a config: defaults and warnings, each with its line and sentence.

use forebay::config::{self, Config};
use forebay::types::VariantKey;
use forebay::types::spec::Engine;

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
    &config.fleet.endpoints[0].variants[0].health.path
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

#[test]
fn wrong_pairings_are_warned_of() {
    let vllm = r#"["vllm", "serve", "--port", "{port}"]"#;
    let drains = r#"["sh", "-c", "exec vllm serve --port {port} --shutdown-timeout=60"]"#;
    let stand_in = r#"["{forebay}", "worker", "--listen", "{address}"]"#;
    let no_flag = "vLLM breaks off its requests when it is stopped unless it is started with \
                   --shutdown-timeout and a number of seconds: add that to the `command` of provider \"local\"";
    let short = |name: &str, took: &str| {
        format!(
            "`drain_timeout` is {took}, and {name} breaks off what still runs when it is stopped then: give it \
             as long as the longest answer takes, at least 1m"
        )
    };
    let pool = |name: &str, took: &str| {
        format!(
            "2: `pool_idle_timeout` is {took}, but {name} closes a connection that was idle for 5s: those to \
             it are kept for 3s only; write less than 5s"
        )
    };
    let misleading = |path: &str, name: &str, why: &str, good: &str| {
        format!(
            "20: `health_path` \"{path}\" does not tell {name}'s health: {why}; write \"{good}\" or leave it out"
        )
    };
    let differ = "17: the engines of this variant's pools tell their health at different paths (\"/health\", \
                  \"/ping\"), so all are asked at \"/health\": write a `health_path` that all of them have, or give \
                  each engine a variant of its own";
    let e = |engine: &str| format!("engine = \"{engine}\"");
    let cases: Vec<(&str, String, Vec<String>)> = vec![
        ("no flag", config("", vllm, &e("vllm"), &e("vllm"), ""), vec![format!("10: {no_flag}")]),
        (
            "no flag, by the variant",
            config("", vllm, "", "", &e("vllm")),
            vec![format!("20: {no_flag}")],
        ),
        ("the flag is in a shell's line", config("", drains, "", "", &e("vllm")), vec![]),
        ("a stand-in takes no such flag", config("", stand_in, "", "", &e("vllm")), vec![]),
        ("nobody stops a static one", config("", PLAIN, &e("tgi"), &e("vllm"), ""), vec![]),
        (
            "a short drain",
            config("", PLAIN, "", "", &format!("drain_timeout = \"59s\"\n{}", e("llama.cpp"))),
            vec![format!("20: {}", short("llama.cpp", "59s"))],
        ),
        (
            "long enough",
            config("", PLAIN, "", "", &format!("drain_timeout = \"60s\"\n{}", e("llama.cpp"))),
            vec![],
        ),
        (
            "a short drain, but the flag",
            config("", drains, "", "", &format!("drain_timeout = \"10s\"\n{}", e("vllm"))),
            vec![],
        ),
        (
            "a short drain of one that finishes",
            config("", PLAIN, "", "", &format!("drain_timeout = \"10s\"\n{}", e("sglang"))),
            vec![],
        ),
        (
            "SGLang's /ping",
            config("", PLAIN, "", "", &format!("health_path = \"/ping\"\n{}", e("sglang"))),
            vec![misleading(
                "/ping",
                "SGLang",
                "it says 200 even while the model loads",
                "/health",
            )],
        ),
        (
            "llama.cpp's /ping, with a query",
            config("", PLAIN, "", "", &format!("health_path = \"/ping?x=1\"\n{}", e("llama.cpp"))),
            vec![misleading("/ping", "llama.cpp", "it does not exist there (404)", "/health")],
        ),
        (
            "Triton's life",
            config(
                "",
                PLAIN,
                "",
                "",
                &format!("health_path = \"/v2/health/live\"\n{}", e("triton")),
            ),
            vec![misleading(
                "/v2/health/live",
                "Triton",
                "it says 200 before the models are loaded",
                "/v2/health/ready",
            )],
        ),
        (
            "a list of models",
            config("", PLAIN, "", "", &format!("health_path = \"/v1/models\"\n{}", e("openai"))),
            vec![misleading(
                "/v1/models",
                "an OpenAI-compatible server",
                "it lists names without asking the engine, so it says 200 when that is dead",
                "/health",
            )],
        ),
        (
            "vLLM's /ping is right",
            config("", drains, "", "", &format!("health_path = \"/ping\"\n{}", e("vllm"))),
            vec![],
        ),
        (
            "idle for too long",
            config("pool_idle_timeout = \"5s\"", PLAIN, "", "", &e("sglang")),
            vec![pool("SGLang", "5s")],
        ),
        (
            "idle for too long for two",
            config("pool_idle_timeout = \"1m\"", PLAIN, &e("sglang"), &e("llama.cpp"), ""),
            vec![pool("SGLang", "1m"), pool("llama.cpp", "1m")],
        ),
        (
            "idle for less",
            config("pool_idle_timeout = \"4900ms\"", PLAIN, "", "", &e("sglang")),
            vec![],
        ),
        (
            "no limit is known",
            config("pool_idle_timeout = \"1h\"", PLAIN, "", "", &e("tgi")),
            vec![],
        ),
        ("different paths", config("", PLAIN, &e("tgi"), "", ""), vec![differ.to_owned()]),
        ("different engines, one path", config("", PLAIN, &e("tgi"), &e("sglang"), ""), vec![]),
        (
            "nobody asks the variant",
            config("", PLAIN, &e("tgi"), &e("tgi"), &e("sglang")),
            vec![
                "20: `engine` has no effect here: the instance types of all pools name theirs"
                    .to_owned(),
            ],
        ),
    ];
    for (what, text, expected) in cases {
        assert_eq!(load(&text).1, expected, "{what}");
    }
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
