//! What a config may not say: every mistake with its place and its sentence, all of them at once, and
//! the exit codes of the real binary.

use std::fmt::Write as _;

use forebay::config::{self, Mistake};
use proptest::prelude::*;

mod binary;
mod scaling;

/// A config without a mistake, from which each case departs in one place.
const BASE: &str = r#"[proxy]
listen = "127.0.0.1:8080"
threads = 2
connect_timeout = "2s"
max_body_buffer = "1MiB"

[admin]
listen = "127.0.0.1:8081"

[manager]
on_exit = "keep"

[store]
path = "forebay.db"

[provider.local]
kind = "process"
command = ["{forebay}", "worker", "--listen", "{address}"]
env = { A = "b" }

[provider.existing]
kind = "static"

[instance_type."ml.p5"]
provider = "local"
capacity = 4
max_concurrency = 20

[instance_type."onprem"]
provider = "existing"
addresses = ["http://127.0.0.1:9001", "http://127.0.0.1:9002"]

[[endpoint]]
name = "chat"
  [[endpoint.variant]]
  name = "primary"
  model = "llm"
  weight = 1.0
  initial_instance_count = 2
  min_instance_count = 1
  max_instance_count = 6
  routing = "RANDOM"
  health_path = "/ping"
    [[endpoint.variant.pool]]
    instance_type = "ml.p5"
    priority = 1
    [[endpoint.variant.pool]]
    instance_type = "onprem"
    priority = 2
"#;

/// All mistakes in `text`, warnings included, without the file's name.
fn mistakes(text: &str) -> Vec<String> {
    let found = match config::load_str(text, "f") {
        Ok((_, warnings)) => warnings,
        Err(mistakes) => mistakes,
    };
    found.iter().map(|mistake| mistake.to_string()[2..].to_owned()).collect()
}

/// `BASE` with its only `old` replaced, and where that is: `line:column`.
fn changed(old: &str, new: &str) -> (String, usize) {
    assert_eq!(BASE.matches(old).count(), 1, "{old:?} must be in the base once");
    let at = BASE.find(old).expect("found");
    (BASE.replace(old, new), BASE[..at].matches('\n').count() + 1)
}

/// Each case: what is replaced, by what, and the sentences that follow: `line offset:column: text`.
fn assert_cases(cases: &[(&str, &str, &[&str])]) {
    let mut wrong = String::new();
    for (old, new, expected) in cases {
        let (text, first_line) = changed(old, new);
        let expected: Vec<String> = expected
            .iter()
            .map(|sentence| {
                let (offset, rest) = sentence.split_once(':').expect("offset");
                format!(
                    "{}:{rest}",
                    first_line.saturating_add_signed(offset.parse().expect("a number"))
                )
            })
            .collect();
        let found = mistakes(&text);
        if found != expected {
            let _ = write!(wrong, "{new}\n  expected {expected:#?}\n  found    {found:#?}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_base_has_no_mistake() {
    assert_eq!(mistakes(BASE), Vec::<String>::new());
}

#[test]
fn mistakes_in_tls_and_limits() {
    assert_cases(&[
        (
            "max_body_buffer = \"1MiB\"",
            "max_body_bytes = \"2000000GiB\"",
            &[
                "0:18: error: `max_body_bytes` must be 0 bytes to 1125899906842624 bytes, not 2147483648000000 bytes",
            ],
        ),
        (
            "threads = 2",
            "manager = \"http://127.0.0.1:9\"\nmanager_tls = { ca_file = \"ca.pem\" }",
            &["1:1: error: `manager_tls` is about a `manager` whose address is https"],
        ),
        (
            "listen = \"127.0.0.1:8081\"",
            "listen = \"127.0.0.1:8081\"\ntls = {}",
            &["1:7: error: [tls] needs `certificate`, at least one: [[admin.tls.certificate]]"],
        ),
    ]);
}

#[test]
fn mistakes_in_the_proxys_and_managers_settings() {
    assert_cases(&[
        (
            "threads = 2",
            "thread = 2",
            &["0:1: error: unknown key `thread` in [proxy]; did you mean `threads`?"],
        ),
        ("threads = 2", "threads = 0", &["0:11: error: `threads` must be 1 to 1024, not 0"]),
        ("threads = 2", "threads = -2", &["0:11: error: `threads` must not be negative"]),
        (
            "threads = 2",
            "threads = \"2\"",
            &["0:11: error: `threads` must be a whole number, not \"2\""],
        ),
        (
            "threads = 2",
            "threads = 2.5",
            &["0:11: error: `threads` must be a whole number, not the number 2.5"],
        ),
        (
            "listen = \"127.0.0.1:8080\"",
            "listen = \"localhost:8080\"",
            &[
                "0:10: error: `listen` must be an IP address and a port, such as \"127.0.0.1:8080\" or \"[::]:8080\", not \"localhost:8080\"",
            ],
        ),
        (
            "listen = \"127.0.0.1:8081\"",
            "listen = \"0.0.0.0:8080\"",
            &[
                "0:10: error: `listen` of [admin] (0.0.0.0:8080) and of [proxy] (127.0.0.1:8080) take the same port; give them different ones",
                "0:10: error: `listen` of [admin] (0.0.0.0:8080) is open to other machines, and whoever reaches it could change the fleet: set `token_file`, or `client_ca` in [admin.tls], or listen on 127.0.0.1",
            ],
        ),
        (
            "listen = \"127.0.0.1:8081\"",
            "listen = \"127.0.0.1:8081\"\npublic_metrics = true",
            &[
                "1:1: warning: `public_metrics` does nothing without `token_file`, or `client_ca` in [admin.tls]",
            ],
        ),
        (
            "connect_timeout = \"2s\"",
            "connect_timeout = 2",
            &[
                "0:19: error: `connect_timeout` must be a duration with a unit: write \"2s\" if 2 seconds are meant",
            ],
        ),
        (
            "connect_timeout = \"2s\"",
            "connect_timeout = \"soon\"",
            &[
                "0:19: error: `connect_timeout` must be a duration such as \"500ms\", \"30s\" or \"1h 30m\", not \"soon\"",
            ],
        ),
        (
            "connect_timeout = \"2s\"",
            "connect_timeout = \"0s\"",
            &["0:19: error: `connect_timeout` must be 1ms to 1year, not 0s"],
        ),
        (
            "max_body_buffer = \"1MiB\"",
            "max_body_buffer = \"2GiB\"",
            &[
                "0:19: error: `max_body_buffer` must be 0 bytes to 1073741824 bytes, not 2147483648 bytes",
            ],
        ),
        (
            "threads = 2",
            "manager = \"http://127.0.0.1:8081\"",
            &[
                "0:11: error: `manager` is this proxy's own [admin] address (127.0.0.1:8081); name the manager's, and give this proxy another `listen` in [admin]",
            ],
        ),
        (
            "on_exit = \"keep\"",
            "on_exit = \"kep\"",
            &[
                "0:11: error: `on_exit` must be one of \"keep\", \"stop\", not \"kep\"; did you mean \"keep\"?",
            ],
        ),
        (
            "on_exit = \"keep\"",
            "on_exit = true",
            &["0:11: error: `on_exit` must be one of \"keep\", \"stop\""],
        ),
        ("path = \"forebay.db\"", "path = \"\"", &["0:8: error: `path` must not be empty"]),
        (
            "[store]",
            "[stoer]",
            &["0:2: error: unknown key `stoer` in the file; did you mean `store`?"],
        ),
    ]);
}

#[test]
fn mistakes_in_providers() {
    assert_cases(&[
        (
            "kind = \"process\"",
            "kind = \"proces\"",
            &[
                "0:8: error: `kind` must be one of \"process\", \"static\", not \"proces\"; did you mean \"process\"?",
            ],
        ),
        (
            "[provider.local]\nkind = \"process\"",
            "[provider.local]",
            &["0:1: error: [provider.local] needs `kind`, which is \"process\" or \"static\""],
        ),
        (
            "command = [\"{forebay}\", \"worker\", \"--listen\", \"{address}\"]",
            "command = [\"{forebay}\", \"{adress}\", \"{colour}\", \"{port}\", '{\"json\": 1}']",
            &[
                "0:25: error: `command` has the unknown placeholder {adress}; did you mean {address}?",
                "0:37: error: `command` has the unknown placeholder {colour}; known are {forebay} {address} {port} {instance} {instance_type} {endpoint} {variant} {model} {copies} {max_concurrency}",
            ],
        ),
        (
            "command = [\"{forebay}\", \"worker\", \"--listen\", \"{address}\"]",
            "command = []",
            &["0:11: error: `command` must begin with a program, for example \"{forebay}\""],
        ),
        (
            "command = [\"{forebay}\", \"worker\", \"--listen\", \"{address}\"]",
            "command = [\"{forebay}\", 1, true]",
            &[
                "0:25: error: each item of `command` must be a text in quotes, not the number 1",
                "0:28: error: each item of `command` must be a text in quotes, not true",
            ],
        ),
        (
            "command = [\"{forebay}\", \"worker\", \"--listen\", \"{address}\"]",
            "command = \"{forebay} worker {port}\"",
            &[
                "0:11: error: `command` must be an array, in brackets, not \"{forebay} worker {port}\"",
            ],
        ),
        (
            "command = [\"{forebay}\", \"worker\", \"--listen\", \"{address}\"]",
            "command = [\"serve\"]",
            &[
                "0:11: warning: `command` has neither {address} nor {port}; its worker must take FOREBAY_ADDRESS from its environment to know where to listen",
            ],
        ),
        (
            "env = { A = \"b\" }",
            "env = { A = 1, \"B=C\" = \"d\" }",
            &[
                "0:13: error: `env.A` must be a text in quotes, not the number 1",
                "0:16: error: a name in `env` must not be empty and must not contain `=` or NUL",
            ],
        ),
        (
            "kind = \"static\"",
            "kind = \"static\"\ncommand = [\"x\"]",
            &[
                "1:1: error: `command` has no meaning for a provider of kind \"static\", which launches nothing",
            ],
        ),
        (
            "[provider.existing]",
            "[provider.spare]\nkind = \"static\"\n[provider.existing]",
            &["0:11: warning: provider \"spare\" is unused: no instance type names it"],
        ),
        (
            "[provider.existing]",
            "[provider.\"a b\"]\nkind = \"static\"\n[provider.existing]",
            &[
                "0:11: error: provider name \"a b\" must be 1 to 63 letters, digits, dots, hyphens and underscores",
                "0:11: warning: provider \"a b\" is unused: no instance type names it",
            ],
        ),
    ]);
}

#[test]
fn mistakes_about_workers_behind_tls() {
    let addresses = "addresses = [\"http://127.0.0.1:9001\", \"http://127.0.0.1:9002\"]";
    assert_cases(&[
        (
            addresses,
            "protocol = \"h2c\"\naddresses = [\"https://a:2\"]",
            &["1:14: error: `protocol` \"h2c\" needs http, but the address is https://a:2"],
        ),
        (
            addresses,
            "protocol = \"h2\"\naddresses = [\"https://a:2\"]\n[instance_type.onprem.tls]\nclient_cert = \"a.pem\"",
            &["2:1: error: [tls] needs `client_key`, the file with the key of `client_cert`"],
        ),
        (
            addresses,
            "addresses = [\"https://a\"]\n[instance_type.onprem.tls]\nclient_key = \"a.key\"\nserver_name = \"a b\"",
            &[
                "1:1: error: [tls] needs `client_cert`, the file with the certificate of `client_key`",
                "3:15: error: `server_name` must be a host's name or an IP address, without a port, not \"a b\"",
            ],
        ),
        (
            addresses,
            "addresses = [\"https://a\"]\n[instance_type.onprem.tls]\nca_file = \"ca.pem\"\nverify = false",
            &[
                "2:1: warning: `ca_file` vouches for nobody while `verify` is false",
                "3:1: warning: `verify` = false: whoever answers at their addresses is believed to be these workers",
            ],
        ),
        (
            addresses,
            "addresses = [\"http://a\"]\n[instance_type.onprem.tls]\nca_file = \"ca.pem\"",
            &[
                "1:23: error: `tls` is about workers that speak TLS, which are those of a static provider whose `addresses` are https",
            ],
        ),
        (
            "capacity = 4",
            "capacity = 4\nprotocol = \"h2\"",
            &[
                "1:12: error: `protocol` \"h2\" needs TLS, which workers of a process provider are not reached over; write \"h2c\"",
            ],
        ),
    ]);
}

#[test]
fn mistakes_in_instance_types() {
    assert_cases(&[
        (
            "provider = \"local\"",
            "provider = \"locale\"",
            &[
                "-9:11: warning: provider \"local\" is unused: no instance type names it",
                "0:12: error: there is no provider \"locale\"; define it as [provider.locale]; did you mean `local`?",
            ],
        ),
        ("capacity = 4", "capacity = -1", &["0:12: error: `capacity` must not be negative"]),
        (
            "max_concurrency = 20",
            "max_concurrency = 0",
            &["0:19: error: `max_concurrency` must be 1 to 1000000, not 0"],
        ),
        ("max_concurrency = 20", "copies = 0", &["0:10: error: `copies` must be 1 to 1024, not 0"]),
        (
            "max_concurrency = 20",
            "price_per_hour = -1",
            &["0:18: error: `price_per_hour` must be 0 to 1000000000, not -1"],
        ),
        (
            "max_concurrency = 20",
            "watts = nan",
            &["0:9: error: `watts` must be a finite number, not nan"],
        ),
        (
            "max_concurrency = 20",
            "engine = \"vlm\"",
            &[
                "0:10: error: `engine` must be one of \"vllm\", \"sglang\", \"tgi\", \"triton\", \"llama.cpp\", \"openai\", not \"vlm\"; did you mean \"vllm\"?",
            ],
        ),
        (
            "max_concurrency = 20",
            "on_client_abort = \"finsh\"",
            &[
                "0:19: error: `on_client_abort` must be one of \"cancel\", \"finish\", not \"finsh\"; did you mean \"finish\"?",
            ],
        ),
        (
            "max_concurrency = 20",
            "protocol = \"h2\"",
            &[
                "0:12: error: `protocol` \"h2\" needs TLS, which workers of a process provider are not reached over; write \"h2c\"",
            ],
        ),
        (
            "max_concurrency = 20",
            "addresses = [\"http://127.0.0.1:9001\"]",
            &[
                "0:1: error: `addresses` are for types of static providers; a process provider picks its own",
            ],
        ),
        (
            "addresses = [\"http://127.0.0.1:9001\", \"http://127.0.0.1:9002\"]",
            "capacity = 2",
            &[
                "-2:1: error: [instance_type.onprem] needs `addresses`, the servers that there are, such as [\"http://127.0.0.1:9001\"]",
                "0:1: error: `capacity` is for types of process providers; a static one has as many as it has `addresses`",
            ],
        ),
        (
            "addresses = [\"http://127.0.0.1:9001\", \"http://127.0.0.1:9002\"]",
            "addresses = []",
            &["0:13: error: `addresses` must name at least one server"],
        ),
        (
            "addresses = [\"http://127.0.0.1:9001\", \"http://127.0.0.1:9002\"]",
            "addresses = [\"http://a:80\", \"http://a\", \"https://a/x\"]",
            &[
                "0:41: error: each item of `addresses` must look like \"http://host:port\", without a path, not \"https://a/x\"",
            ],
        ),
        (
            "addresses = [\"http://127.0.0.1:9001\", \"http://127.0.0.1:9002\"]",
            "addresses = [\"http://a:80\", \"http://a\"]",
            &["0:29: error: the server http://a:80 is already in line 31; name it once"],
        ),
        (
            "addresses = [\"http://127.0.0.1:9001\", \"http://127.0.0.1:9002\"]",
            "protocol = \"h2\"\naddresses = [\"http://a:1\"]",
            &["1:14: error: `protocol` \"h2\" needs https, but the address is http://a:1"],
        ),
        (
            "[instance_type.\"ml.p5\"]",
            "[instance_type.ml.p5]",
            &[
                "-8:11: warning: provider \"local\" is unused: no instance type names it",
                "0:1: error: a name with dots needs quotes: write [instance_type.\"ml.p5\"]",
            ],
        ),
        (
            "[instance_type.\"onprem\"]",
            "[instance_type.spare]\nprovider = \"local\"\n[instance_type.\"onprem\"]",
            &["0:16: warning: instance type \"spare\" is unused: no pool names it"],
        ),
    ]);
}

#[test]
fn mistakes_in_where_instances_tell_their_load() {
    let p5 = "max_concurrency = 20";
    let onprem = "[instance_type.\"onprem\"]";
    assert_cases(&[
        (
            p5,
            "scrape_interval = 15",
            &[
                "0:19: error: `scrape_interval` must be a duration with a unit: write \"15s\" if 15 seconds are meant",
            ],
        ),
        (
            p5,
            "scrape_interval = \"50ms\"",
            &[
                "0:19: warning: `scrape_interval` is below 1s: engines tell their metrics with the same threads that serve requests",
            ],
        ),
        (
            p5,
            "scrape_interval = \"0s\"\nmetrics_port = 9",
            &["1:1: warning: `metrics_port` has no effect with `scrape_interval = \"0s\"`"],
        ),
        (
            p5,
            "metrics_path = \"metrics\"",
            &["0:16: error: `metrics_path` must be the path of a GET, such as \"/metrics\""],
        ),
        (p5, "metrics_port = 0", &["0:16: error: `metrics_port` must be 1 to 65535, not 0"]),
        (
            p5,
            "metrics_port = 65536",
            &["0:16: error: `metrics_port` must be 1 to 65535, not 65536"],
        ),
        (
            p5,
            "load_metrics_format = \"bin\"",
            &["0:23: error: `load_metrics_format` must be one of \"text\", \"json\", not \"bin\""],
        ),
        (
            p5,
            "gpu_metrics = \"nvidia_smi\"",
            &[
                "0:15: error: `gpu_metrics` must be \"nvidia-smi\" or the URL of an exporter, such as \"http://{host}:9400/metrics\", over plain http, not \"nvidia_smi\"",
            ],
        ),
        (
            p5,
            "gpu_metrics = \"https://{host}:9400/metrics\"",
            &[
                "0:15: error: `gpu_metrics` must be \"nvidia-smi\" or the URL of an exporter, such as \"http://{host}:9400/metrics\", over plain http, not \"https://{host}:9400/metrics\"",
            ],
        ),
        (
            p5,
            "gpu_metrics = \"http://{node}:9400/metrics\"",
            &[
                "0:15: error: `gpu_metrics` may have {host} in braces, and nothing else",
                "0:15: error: `gpu_metrics` must be \"nvidia-smi\" or the URL of an exporter, such as \"http://{host}:9400/metrics\", over plain http, not \"http://{node}:9400/metrics\"",
            ],
        ),
        (
            onprem,
            "[instance_type.\"onprem\"]\ngpu_metrics = \"nvidia-smi\"",
            &[
                "1:15: error: `gpu_metrics` \"nvidia-smi\" asks the manager's own machine, where servers of a static provider need not run; write the URL of an exporter there",
            ],
        ),
        (
            p5,
            "gpu_labels.pod = \"{instance}\"",
            &["0:12: error: `gpu_labels` pick among what `gpu_metrics` tells; name that too"],
        ),
        (
            p5,
            "gpu_metrics = \"nvidia-smi\"\ngpu_labels.gpu = \"{index}\"",
            &[
                "1:18: error: `gpu_labels` may have {instance} and {host} in braces, and nothing else",
            ],
        ),
        (
            p5,
            "gpu_metrics = \"nvidia-smi\"\ngpu_labels.gpu = 0",
            &["1:18: error: `gpu_labels.gpu` must be a text in quotes, not the number 0"],
        ),
    ]);
}

#[test]
fn mistakes_in_endpoints_and_variants() {
    assert_cases(&[
        (
            "name = \"chat\"",
            "nam = \"chat\"",
            &[
                "-1:1: error: [[endpoint]] needs `name`, which is what clients call",
                "0:1: error: unknown key `nam` in [[endpoint]]; did you mean `name`?",
            ],
        ),
        (
            "name = \"chat\"",
            "name = \"my chat\"",
            &[
                "0:8: error: `name` must be 1 to 63 letters and digits, with hyphens inside, not \"my chat\"",
            ],
        ),
        (
            "[[endpoint]]\n",
            "[[endpoint]]\nname = \"chat\"\n[[endpoint]]\n",
            &[
                "0:1: error: [[endpoint]] needs at least one [[endpoint.variant]] below it",
                "3:8: error: endpoint \"chat\" is already in line 34; their names must be unique",
            ],
        ),
        (
            "  model = \"llm\"\n",
            "",
            &[
                "-2:3: error: [[endpoint.variant]] needs `model`, the name by which its workers know what they serve",
            ],
        ),
        (
            "weight = 1.0",
            "weight = 0",
            &[
                "-5:1: error: every variant of this endpoint has `weight` 0, so no request could go anywhere; give one of them a weight above 0",
            ],
        ),
        (
            "weight = 1.0",
            "weight = -1.5",
            &["0:12: error: `weight` must be 0 to 1000000000, not -1.5"],
        ),
        (
            "initial_instance_count = 2",
            "initial_instance_count = 7",
            &[
                "-4:3: warning: this variant starts with 7 instances, but its pools have only 6 together",
                "0:28: error: `initial_instance_count` (7) must be within `min_instance_count` (1) and `max_instance_count` (6)",
            ],
        ),
        (
            "min_instance_count = 1",
            "min_instance_count = 7",
            &["1:24: error: `max_instance_count` (6) must not be below `min_instance_count` (7)"],
        ),
        (
            "max_instance_count = 6",
            "max_instance_count = 0",
            &["0:24: error: `max_instance_count` must be 1 to 100000, not 0"],
        ),
    ]);
}

#[test]
fn mistakes_in_how_a_variants_requests_and_instances_are_treated() {
    assert_cases(&[
        (
            "routing = \"RANDOM\"",
            "routing = \"LEAST_OUTSTANDING_REQUEST\"",
            &[
                "0:13: error: `routing` must be one of \"LEAST_OUTSTANDING_REQUESTS\", \"RANDOM\", \"LEAST_UTILIZATION\", \"PREDICTED_LATENCY\", not \"LEAST_OUTSTANDING_REQUEST\"; did you mean \"LEAST_OUTSTANDING_REQUESTS\"?",
            ],
        ),
        (
            "health_path = \"/ping\"",
            "health_path = \"ping\"",
            &[
                "0:17: error: `health_path` must be the path of a GET, such as \"/ping\" or \"/health\"",
            ],
        ),
        (
            "health_path = \"/ping\"",
            "health_path = \"/pi ng#\"",
            &[
                "0:17: error: `health_path` must be the path of a GET, such as \"/ping\" or \"/health\"",
            ],
        ),
        (
            "health_path = \"/ping\"",
            "unhealthy_threshold = 0\n  health_interval = \"0s\"\n  rebalance_max_share = 1.5",
            &[
                "0:25: error: `unhealthy_threshold` must be 1 to 1000, not 0",
                "1:21: error: `health_interval` must be 1ms to 1year, not 0s",
                "2:25: error: `rebalance_max_share` must be 0 to 1, not 1.5",
            ],
        ),
        (
            "health_path = \"/ping\"",
            "replay = \"always\"\n  ejection_threshold = -1\n  caller_header = \"two words\"",
            &[
                "0:12: error: `replay` must be one of \"by_path\", \"before_first_byte\", \"never_sent\", not \"always\"",
                "1:24: error: `ejection_threshold` must not be negative",
                "2:19: error: `caller_header` must be the name of a header, such as \"x-api-key\"",
            ],
        ),
        (
            "health_path = \"/ping\"",
            "scale_to_zero_after = \"5m\"",
            &[
                "0:3: warning: `scale_to_zero_after` has no effect while `min_instance_count` is 1; set that to 0",
            ],
        ),
    ]);
}

#[test]
fn mistakes_in_pools() {
    assert_cases(&[
        (
            "instance_type = \"ml.p5\"",
            "instance_type = \"ml.p6\"",
            &[
                "-21:16: warning: instance type \"ml.p5\" is unused: no pool names it",
                "0:21: error: there is no instance type \"ml.p6\"; define it as [instance_type.\"ml.p6\"]; did you mean `ml.p5`?",
            ],
        ),
        (
            "instance_type = \"onprem\"",
            "instance_type = \"ml.p5\"",
            &[
                "-19:16: warning: instance type \"onprem\" is unused: no pool names it",
                "0:21: error: a pool of instance type \"ml.p5\" is already in line 45; a variant has at most one of each type",
            ],
        ),
        ("priority = 1", "priority = 0", &["0:16: error: `priority` must be 1 to 1000, not 0"]),
        (
            "priority = 1",
            "model = \"two words\"",
            &[
                "0:13: error: `model` must be 1 to 256 printable characters without blanks or quotes, not \"two words\"",
            ],
        ),
        (
            "    priority = 2\n",
            "  [[endpoint.variant]]\n  name = \"primary\"\n  model = \"llm\"\n  pool = []\n",
            &[
                "0:3: error: [[endpoint.variant]] needs at least one [[endpoint.variant.pool]] below it",
                "1:10: error: variant \"primary\" is already in line 36; names must be unique within an endpoint",
            ],
        ),
    ]);
}

#[test]
fn lines_that_are_no_toml_do_not_hide_the_rest() {
    let text = BASE
        .replace("threads = 2", "threads 2")
        .replace("[store]", "[store")
        .replace("max_concurrency = 20", "max_concurrency = ten")
        .replace("priority = 2", "priority = 0")
        .replace("capacity = 4", "capacity = 4\ncapacity = 5");
    assert_eq!(
        mistakes(&text),
        [
            "3:9: error: not TOML: key with no value, expected `=`",
            "13:7: error: not TOML: unclosed table, expected `]`",
            "27:1: error: not TOML: duplicate key at `capacity`",
            "28:19: error: not TOML: invalid boolean, expected `true` at `ten`; a text needs quotes",
            "50:16: error: `priority` must be 1 to 1000, not 0",
        ]
    );
}

#[test]
fn nesting_without_end_is_a_mistake_and_no_crash() {
    let deep = 100_000;
    for text in [
        format!("a = {}", "[".repeat(deep)),
        format!("a = {}", "{a=".repeat(deep)),
        format!("{} = 1", vec!["a"; deep].join(".")),
        format!("[instance_type.{}]\nx = 1", vec!["a"; deep].join(".")),
    ] {
        assert!(!mistakes(&text).is_empty());
    }
}

#[test]
fn a_name_over_two_lines_is_named_on_one() {
    let found = mistakes("[instance_type.\"on\\nprem\"]\nprovider = \"pl\\u0007ain\"\n");
    assert!(found.iter().any(|line| line.contains(r"on\nprem")), "{found:?}");
    assert!(!found.iter().any(|line| line.contains(char::is_control)), "{found:?}");
}

fn assert_places(text: &str) {
    let lines: Vec<&str> = text.split('\n').collect();
    let found = match config::load_str(text, "f") {
        Ok((_, warnings)) => {
            assert!(!warnings.iter().any(Mistake::is_error));
            warnings
        }
        Err(mistakes) => {
            assert!(mistakes.iter().any(Mistake::is_error));
            mistakes
        }
    };
    for mistake in found {
        let place = mistake.position.expect("a place");
        let line = lines.get(place.line - 1).expect("a line of the text");
        assert!((1..=line.chars().count() + 1).contains(&place.column), "{mistake}");
        assert!(!mistake.message.contains('\n') && !mistake.message.ends_with('.'), "{mistake}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_with_places_in_it(text in "(?s).{0,300}") {
        assert_places(&text);
    }

    #[test]
    fn any_toml_like_text_is_read_or_refused_with_places_in_it(
        words in prop::collection::vec(prop::sample::select(WORDS), 0..80),
    ) {
        assert_places(&words.concat());
    }

    #[test]
    fn any_damage_to_a_good_file_is_read_or_refused_with_places_in_it(
        cuts in prop::collection::vec((0..BASE.len(), 0..30_usize, prop::sample::select(WORDS)), 1..6),
    ) {
        let mut text = BASE.to_owned();
        for (at, length, word) in cuts {
            let boundary = |at: usize| (0..=at.min(text.len())).rfind(|at| text.is_char_boundary(*at));
            let start = boundary(at).unwrap_or(0);
            let end = boundary(start + length).unwrap_or(start);
            text.replace_range(start..end, word);
        }
        assert_places(&text);
    }
}

/// Pieces that files are made of.
const WORDS: &[&str] = &[
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    " = ",
    ",",
    ".",
    "\"",
    "'''",
    "\"\"\"",
    "\n",
    "\r\n",
    "# ",
    "\\",
    "\0",
    "é",
    "\u{feff}",
    "0",
    "-1",
    "1e999",
    "nan",
    "true",
    "\"30s\"",
    "\"\"",
    "1979-05-27",
    "[[endpoint]]\n",
    "[[endpoint.variant]]\n",
    "[[endpoint.variant.pool]]\n",
    "[provider.x]\n",
    "[instance_type.\"a.b\"]\n",
    "[instance_type.a.b]\n",
    "[proxy]\n",
    "name",
    "kind",
    "\"process\"",
    "\"static\"",
    "command",
    "env",
    "addresses",
    "capacity",
    "priority",
    "pool",
    "variant",
    "weight",
    "listen",
    "x",
];
