//! The `model` member of a JSON request body, found without reading more of the body than needed.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

/// Longer names are nobody's.
const LONGEST: usize = 256;

/// What the beginning of a body says of its model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ModelField {
    /// The body's top-level `model`, a string.
    Named(String),
    /// Not in what is here; more of the body may tell.
    NotYet,
    /// The body is no JSON object, or its `model` is no usable string.
    Absent,
}

/// Looks for the top-level `model` in the beginning of a body. With `complete`, what is here is all there
/// is. The first `model` counts; nested ones do not.
pub(super) fn find(beginning: &[u8], complete: bool) -> ModelField {
    let found = RefCell::new(None);
    let mut json = serde_json::Deserializer::from_slice(beginning);
    let outcome = json.deserialize_map(Object { model: &found });
    match found.into_inner() {
        Some(name) if (1..=LONGEST).contains(&name.len()) => ModelField::Named(name),
        Some(_) => ModelField::Absent,
        None => match outcome {
            Err(error) if error.is_eof() && !complete => ModelField::NotYet,
            _ => ModelField::Absent,
        },
    }
}

struct Object<'a> {
    model: &'a RefCell<Option<String>>,
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(name) = members.next_key::<Cow<'de, str>>()? {
            if name == "model" {
                // A value of another type is an error here, and so no model.
                let value = members.next_value::<Cow<'de, str>>()?;
                *self.model.borrow_mut() = Some(value.into_owned());
                // What follows does not matter; leaving it unread is an error to the parser only.
                return Ok(());
            }
            members.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(name: &str) -> ModelField {
        ModelField::Named(name.to_owned())
    }

    #[test]
    fn finds_the_top_level_model() {
        for (body, field) in [
            (r#"{"model":"m"}"#, named("m")),
            (r#" { "a" : [1,{"model":"no"}], "model" : "yes" , "b": 1"#, named("yes")),
            (r#"{"model":"m\u0041\n","model":"second"}"#, named("mA\n")),
            (r#"{"a":{"model":"nested"}}"#, ModelField::Absent),
            (r#"{"model":5}"#, ModelField::Absent),
            (r#"{"model":""}"#, ModelField::Absent),
            (r#"["model","m"]"#, ModelField::Absent),
            ("not json", ModelField::Absent),
            ("", ModelField::Absent),
        ] {
            assert_eq!(find(body.as_bytes(), true), field, "{body}");
        }
    }

    #[test]
    fn asks_for_more_only_where_more_may_tell() {
        for beginning in ["", "{", r#"{"mod"#, r#"{"a":[1,2"#, r#"{"model":"half"#, r#"{"a":"x\"#] {
            assert_eq!(find(beginning.as_bytes(), false), ModelField::NotYet, "{beginning}");
        }
        assert_eq!(find(b"[1", false), ModelField::Absent);
        assert_eq!(find(b"{]", false), ModelField::Absent);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            find(&bytes, true);
            find(&bytes, false);
        }

        #[test]
        fn is_found_at_whatever_point_the_body_is_cut(
            name in "[a-zA-Z0-9/\"\\\\é-]{1,20}",
            before in proptest::collection::vec("[a-z{}\\[\\]\"]{0,8}", 0..4),
            cut in 0_usize..200,
        ) {
            let mut members: Vec<String> = before
                .iter()
                .enumerate()
                .map(|(i, text)| format!("\"k{i}\":{}", serde_json::json!({ "model": text })))
                .collect();
            members.push(format!("\"model\":{}", serde_json::json!(name)));
            members.push("\"z\":0".to_owned());
            let body = format!("{{{}}}", members.join(","));
            prop_assert_eq!(find(body.as_bytes(), true), named(&name));
            let beginning = &body.as_bytes()[..cut.min(body.len())];
            let field = find(beginning, false);
            prop_assert!(field == named(&name) || field == ModelField::NotYet, "{:?}", field);
        }
    }
}
