//! The proxy's part of [`crate::fuzzing`].

use super::model_field::{Finder, ModelField};

/// The first byte says in which pieces the others come.
fn pieces(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (size, rest) = bytes.split_first()?;
    Some((usize::from(*size).max(1), rest))
}

/// Says the same whatever pieces the body comes in, and what a whole parser says of it.
pub fn model_field(bytes: &[u8]) {
    let Some((size, body)) = pieces(bytes) else { return };
    let found = Finder::new().look(body).cloned();
    let mut finder = Finder::new();
    let in_pieces = body.chunks(size).fold(None, |_, piece| finder.look(piece).cloned());
    assert_eq!(in_pieces, found);
    // Of a name that comes twice a parser to a map does not tell.
    let Ok(serde_json::Value::Object(parsed)) = serde_json::from_slice(body) else { return };
    let model = parsed.get("model").and_then(|model| model.as_str());
    match (model, found) {
        (model, Some(ModelField::Named(name))) => assert_eq!(Some(name.as_str()), model),
        (_, Some(ModelField::Twice)) => {
            assert!(count(body, b"l\"") + count(body, b"\\u") > 1, "it is there once");
        }
        _ => {}
    }
    assert_eq!(Finder::new().look(b"{\"model\":\"m\""), Some(&ModelField::Named("m".into())));
}

fn count(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).filter(|window| *window == what).count()
}

/// A client's request is the same whatever pieces it comes in.
pub fn request(bytes: &[u8]) {
    if let Some((size, bytes)) = pieces(bytes) {
        super::http1::fuzz(bytes, size, true);
    }
}

/// So is a worker's answer.
pub fn answer(bytes: &[u8]) {
    if let Some((size, bytes)) = pieces(bytes) {
        super::http1::fuzz(bytes, size, false);
    }
}
