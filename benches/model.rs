//! Finding a body's `model`: first and last in 1 KiB, and behind a picture of 1 MiB in base64.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use forebay::proxy::bench::names_a_model;

fn body(bytes: usize, model_last: bool) -> String {
    let text = "QmFzZTY0".repeat(bytes / 8);
    let messages = format!(r#""messages":[{{"role":"user","content":"{text}"}}]"#);
    let model = r#""model":"my-llm""#;
    if model_last { format!("{{{messages},{model}}}") } else { format!("{{{model},{messages}}}") }
}

fn model(c: &mut Criterion) {
    let mut group = c.benchmark_group("model");
    for (name, bytes, last) in [
        ("first_of_1KiB", 1 << 10, false),
        ("first_of_1MiB", 1 << 20, false),
        ("last_of_1KiB", 1 << 10, true),
        ("last_of_1MiB", 1 << 20, true),
    ] {
        let body = body(bytes, last);
        assert!(names_a_model(body.as_bytes()));
        if last {
            group.throughput(Throughput::Bytes(body.len() as u64));
        }
        group.bench_function(name, |b| b.iter(|| names_a_model(black_box(body.as_bytes()))));
    }
    group.finish();
}

criterion_group!(benches, model);
criterion_main!(benches);
