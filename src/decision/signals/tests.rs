//! Pages in the formats that the engines and exporters document, and pages that nobody should send. Those in
//! `testdata/` are composed, with names and labels as their documentation and sources have them and with values and
//! identities that are made up (`UUID="GPU-0a"`): none is recorded from an engine or a GPU that runs.

use proptest::prelude::*;

use super::*;

fn told(running: f64, waiting: f64, kv_cache: Option<f64>) -> Signals {
    Signals { running: Some(running), waiting: Some(waiting), kv_cache, ..Signals::default() }
}

fn gpu(gpu: f64, gpu_memory: f64) -> Signals {
    Signals { gpu: Some(gpu), gpu_memory: Some(gpu_memory), ..Signals::default() }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn each_engines_page_is_read_by_its_own_names_and_by_all() {
    for (page, engine, signals) in [
        // Two engines of one server (data parallel) add up.
        (include_str!("testdata/vllm.txt"), Engine::Vllm, told(21.0, 3.0, Some(0.375))),
        (include_str!("testdata/vllm_v0.txt"), Engine::Vllm, told(2.0, 1.0, Some(0.125))),
        // Ranks of one group count once, a breakdown by priority not at all.
        (include_str!("testdata/sglang.txt"), Engine::Sglang, told(20.0, 2.0, Some(0.5))),
        (include_str!("testdata/tgi.txt"), Engine::Tgi, told(8.0, 5.0, None)),
        (include_str!("testdata/triton_trtllm.txt"), Engine::Triton, told(4.0, 3.0, Some(0.6))),
        (
            include_str!("testdata/triton.txt"),
            Engine::Triton,
            Signals { waiting: Some(14.0), ..gpu(0.5, 0.5) },
        ),
        (include_str!("testdata/llama_cpp.txt"), Engine::LlamaCpp, told(2.0, 1.0, None)),
    ] {
        assert_eq!(engine_page(page, Some(engine)), signals, "{engine:?}");
        for any in [None, Some(Engine::OpenAi)] {
            assert_eq!(engine_page(page, any), signals, "{engine:?} as {any:?}");
        }
    }
    let vllm = include_str!("testdata/vllm.txt");
    assert!(engine_page(vllm, Some(Engine::Tgi)).is_empty(), "another engine's names");
}

#[test]
fn gpus_are_averaged_and_can_be_picked() {
    let dcgm = include_str!("testdata/dcgm.txt");
    let page = |pairs: &[(&str, &str)]| gpu::exporter_page(dcgm, &labels(pairs));
    assert_eq!(page(&[]), gpu(0.6, 0.5));
    assert_eq!(page(&[("pod", "i-1")]), gpu(0.9, 0.75));
    assert_eq!(page(&[("pod", "i-2"), ("gpu", "1")]), gpu(0.3, 0.25));
    assert!(page(&[("pod", "i-2"), ("gpu", "0")]).is_empty());
    assert!(page(&[("nothing", "")]).is_empty(), "a label that is not there has no value");
    // A field that the device does not have is not its busiest.
    let mig = gpu::exporter_page(include_str!("testdata/dcgm_mig.txt"), &labels(&[]));
    assert_eq!(mig, gpu(0.5, 0.5));
    let shared = "DCGM_FI_DEV_GPU_UTIL{UUID=\"a\",pod=\"x\"} 50\nDCGM_FI_DEV_GPU_UTIL{UUID=\"a\",pod=\"y\"} 50\n\
                  DCGM_FI_DEV_GPU_UTIL{UUID=\"b\",pod=\"x\"} 20\nDCGM_FI_DEV_FB_USED{UUID=\"a\"} 10";
    let shared = gpu::exporter_page(shared, &labels(&[]));
    assert_eq!((shared.gpu, shared.gpu_memory), (Some(0.35), None), "used of an unknown total");
}

#[test]
fn nvidia_smi_is_read_with_units_and_without() {
    let text = include_str!("testdata/nvidia_smi.csv");
    assert_eq!(gpu::nvidia_smi(text, &labels(&[])), gpu(0.5, 0.5));
    assert_eq!(gpu::nvidia_smi(text, &labels(&[("gpu", "1")])), gpu(0.63, 0.75));
    let uuid = "GPU-6b3d1c9e-0f0e-2a61-8d6c-5c1a2b3c4d01";
    assert_eq!(gpu::nvidia_smi(text, &labels(&[("UUID", uuid)])), gpu(0.37, 0.25));
    assert!(gpu::nvidia_smi(text, &labels(&[("gpu", "2")])).is_empty(), "it does not tell");
    let units = "0, GPU-a, 50 %, 1024 MiB, 4096 MiB\r\n";
    assert_eq!(gpu::nvidia_smi(units, &labels(&[])), gpu(0.5, 0.25));
    for wrong in ["", "No devices were found", "0, GPU-a", "0, GPU-a, NaN, -1, 0", ",,,,"] {
        assert!(gpu::nvidia_smi(wrong, &labels(&[])).is_empty(), "{wrong}");
    }
}

#[test]
fn what_cannot_be_is_left_out() {
    let page = "vllm:num_requests_running NaN\nvllm:num_requests_running{engine=\"1\"} 2\n\
                vllm:num_requests_waiting -3\nvllm:kv_cache_usage_perc 1.5\n<html>vllm:num_requests_waiting 1";
    assert_eq!(
        engine_page(page, Some(Engine::Vllm)),
        Signals { running: Some(2.0), kv_cache: Some(1.0), ..Signals::default() }
    );
    assert!(engine_page("", None).is_empty());
    assert!(engine_page("{\"error\": {\"code\": 501}}", None).is_empty());
}

#[test]
fn a_page_is_read_up_to_its_bound() {
    let mut page = String::new();
    for n in 0..MOST_SAMPLES + 1_000 {
        page += &format!("vllm:num_requests_running{{engine=\"{n}\"}} 1\n");
    }
    let running = engine_page(&page, Some(Engine::Vllm)).running;
    assert_eq!(running, Some(MOST_SAMPLES as f64));
}

proptest! {
    #[test]
    fn whatever_is_told_is_a_number_in_its_range(
        names in proptest::collection::vec(0..12_usize, 0..20),
        values in proptest::collection::vec(proptest::num::f64::ANY, 20),
        label in "[a-z]{0,3}",
    ) {
        let known = [
            "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
            "sglang:token_usage", "llamacpp:requests_processing", "nv_gpu_utilization",
            "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes", "DCGM_FI_DEV_GPU_UTIL",
            "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE", "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
        ];
        let lines: Vec<String> = names.iter().zip(&values).enumerate().map(|(n, (name, value))| {
            format!("{}{{gpu=\"{label}{}\"}} {value}", known[*name], n % 3)
        }).collect();
        let page = lines.join("\n");
        for signals in [engine_page(&page, None), gpu::exporter_page(&page, &labels(&[]))] {
            for amount in [signals.running, signals.waiting].into_iter().flatten() {
                prop_assert!(amount >= 0.0, "{signals:?}");
            }
            let shares = [signals.kv_cache, signals.gpu, signals.gpu_memory];
            for share in shares.into_iter().flatten() {
                prop_assert!((0.0..=1.0).contains(&share), "{signals:?}");
            }
        }
    }

    #[test]
    fn any_csv_is_safe(text in "[0-9,.NAan /\\[\\]\n-]{0,80}") {
        let signals = gpu::nvidia_smi(&text, &labels(&[]));
        for share in [signals.gpu, signals.gpu_memory].into_iter().flatten() {
            prop_assert!((0.0..=1.0).contains(&share), "{signals:?}");
        }
    }
}
