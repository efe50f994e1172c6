//! House rules as tests: reads the sources and enforces the layer edges and habits that no lint knows.

use std::fs;
use std::path::{Path, PathBuf};

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
        let mut entries: Vec<_> =
            fs::read_dir(dir).expect("src").map(|e| e.expect("entry").path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("source");
                found.push((path, text));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    found.into_iter().map(|(p, t)| (p.strip_prefix(&root).expect("in src").to_owned(), t)).collect()
}

/// The part of a file that ships: everything before its test module.
fn shipped(text: &str) -> &str {
    text.find("#[cfg(test)]").map_or(text, |at| &text[..at])
}

#[test]
fn every_module_opens_with_its_docs() {
    let bare: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| path != Path::new("main.rs") && !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(bare.is_empty(), "without //! at the top: {bare:?}");
}

/// (layer, what it may not name)
const EDGES: &[(&str, &[&str])] = &[
    (
        "types/",
        &[
            "crate::decision",
            "crate::proxy",
            "crate::control",
            "crate::provider",
            "crate::store",
            "crate::api",
            "crate::app",
            "crate::config",
            "crate::runtime",
            "crate::sim",
            "crate::tls",
        ],
    ),
    (
        "decision/",
        &[
            "crate::proxy",
            "crate::control",
            "crate::provider",
            "crate::store",
            "crate::api",
            "crate::app",
            "crate::config",
            "crate::runtime",
            "crate::sim",
            "crate::telemetry",
            "crate::tls",
        ],
    ),
    (
        "sim/",
        &[
            "crate::proxy",
            "crate::control",
            "crate::provider",
            "crate::store",
            "crate::api",
            "crate::app",
            "crate::runtime",
        ],
    ),
    (
        "tls/",
        &[
            "crate::decision",
            "crate::proxy",
            "crate::control",
            "crate::provider",
            "crate::store",
            "crate::api",
            "crate::app",
            "crate::config",
            "crate::sim",
        ],
    ),
    ("proxy/", &["crate::control", "crate::api", "crate::app", "crate::provider", "crate::store"]),
    ("control/", &["crate::proxy", "crate::api", "crate::app"]),
    ("provider/", &["crate::control", "crate::proxy", "crate::api", "crate::app", "crate::store"]),
    ("store/", &["crate::control", "crate::proxy", "crate::api", "crate::app", "crate::provider"]),
];

#[test]
fn dependencies_point_one_way() {
    let pure = [
        "async fn",
        ".await",
        "tokio",
        "std::net::Tcp",
        "Instant::now",
        "SystemTime",
        "fastrand",
        "rand::",
    ];
    let mut broken = Vec::new();
    for (path, text) in sources() {
        let name = path.to_string_lossy().into_owned();
        let code: String = shipped(&text)
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect::<Vec<_>>()
            .join("\n");
        for (layer, banned) in EDGES {
            if name.starts_with(layer) {
                broken.extend(
                    banned
                        .iter()
                        .filter(|word| code.contains(**word))
                        .map(|word| format!("{name}: {word}")),
                );
            }
        }
        if ["types/", "decision/", "sim/"].iter().any(|layer| name.starts_with(layer)) {
            broken.extend(
                pure.iter()
                    .filter(|word| code.contains(**word))
                    .map(|word| format!("{name}: {word}")),
            );
        }
    }
    assert!(broken.is_empty(), "edges that point the wrong way:\n{}", broken.join("\n"));
}

#[test]
fn files_stay_readable() {
    let long: Vec<_> = sources()
        .iter()
        .map(|(path, text)| (path.clone(), shipped(text).lines().count()))
        .filter(|(_, lines)| *lines > 450)
        .collect();
    assert!(long.is_empty(), "more than 450 lines before their tests; look for the seam: {long:?}");
}
