//! The proxy's part of [`crate::fuzzing`].

use super::model_field::{Finder, ModelField};
use super::strict::Scanner;

/// The first byte says in which pieces the others come.
fn pieces(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (size, rest) = bytes.split_first()?;
    Some((usize::from(*size).max(1), rest))
}

/// Says the same whatever pieces the body comes in, and what a whole parser says of it.
pub fn model_field(bytes: &[u8]) {
    let Some((size, body)) = pieces(bytes) else { return };
    let found = Finder::new().look(body);
    let mut finder = Finder::new();
    assert_eq!(body.chunks(size).find_map(|piece| finder.look(piece)), found);
    // With a name that comes twice the first counts, which a parser to a map does not tell.
    let Ok(serde_json::Value::Object(parsed)) = serde_json::from_slice(body) else { return };
    let model = parsed.get("model").and_then(|model| model.as_str());
    match (model, found) {
        (Some(model), Some(ModelField::Named(name))) if name != model => {
            assert!(count(body, b"l\"") + count(body, b"\\u") > 1, "{name} is not {model}");
        }
        (None, Some(ModelField::Named(name))) => {
            assert!(count(body, b"l\"") + count(body, b"\\u") > 1, "{name} is in no member");
        }
        _ => {}
    }
    assert_eq!(Finder::new().look(b"{\"model\":\"m\""), Some(ModelField::Named("m".into())));
}

fn count(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).filter(|window| *window == what).count()
}

/// Stops at the same byte whatever pieces the bytes come in.
pub fn strict(bytes: &[u8]) {
    let Some((size, bytes)) = pieces(bytes) else { return };
    let whole = Scanner::new(1 << 10).look(bytes);
    let mut scanner = Scanner::new(1 << 10);
    let mut pieces = bytes.chunks(size).enumerate();
    assert_eq!(pieces.find_map(|(n, piece)| Some(n * size + scanner.look(piece)?)), whole);
}

/// A worker's answer is the same whatever pieces it comes in.
pub fn answer(bytes: &[u8]) {
    if let Some((size, bytes)) = pieces(bytes) {
        super::upstream::fuzzing::answer(bytes, size);
    }
}
