//! The Prometheus text format, as far as gauges go
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>): one sample a line, `name{labels} value`
//! with a timestamp that is not looked at. What follows in `OpenMetrics` (exemplars, `# EOF`) is passed over.
//!
//! A line that is no sample is left out; it does not spoil the others. Nothing is copied but label values
//! with escapes, and only lines whose name is wanted are read beyond it.

use std::borrow::Cow;

/// Labels of one sample.
const MOST_LABELS: usize = 64;

/// One sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample<'a> {
    /// The metric.
    pub name: &'a str,
    /// What is between the braces; all of it is in the format.
    labels: &'a str,
    /// The value, which may be infinite or no number.
    pub value: f64,
}

impl<'a> Sample<'a> {
    /// Its labels, in the page's order.
    pub fn labels(&self) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> + use<'a> {
        let mut rest = self.labels;
        std::iter::from_fn(move || {
            let (name, value, after) = label(rest)?;
            rest = after;
            Some((name, value))
        })
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<Cow<'a, str>> {
        self.labels().find(|(other, _)| *other == name).map(|(_, value)| value)
    }
}

/// The samples of `page` whose name `is_wanted`.
pub fn samples(page: &str, is_wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = Sample<'_>> {
    page.lines().filter_map(move |line| sample(line, &is_wanted))
}

fn sample(line: &str, is_wanted: impl Fn(&str) -> bool) -> Option<Sample<'_>> {
    let (name, rest) = identifier(blank(line), |byte| byte == b':')?;
    if !is_wanted(name) {
        return None;
    }
    let rest = blank(rest);
    let (labels, rest) = match rest.strip_prefix('{') {
        None => ("", rest),
        Some(inside) => {
            let after = end_of_labels(inside)?;
            (&inside[..inside.len() - after.len() - 1], after)
        }
    };
    let mut words = rest.split_ascii_whitespace();
    let value = words.next()?.parse().ok()?;
    let timestamp = words.next().is_none_or(|word| word == "#" || word.parse::<f64>().is_ok());
    timestamp.then_some(Sample { name, labels, value })
}

/// What comes after the brace that ends the labels.
fn end_of_labels(labels: &str) -> Option<&str> {
    let mut rest = labels;
    for _ in 0..=MOST_LABELS {
        if let Some(after) = blank(rest).strip_prefix('}') {
            return Some(after);
        }
        rest = label(rest)?.2;
    }
    None
}

/// One `name="value"` with the comma behind it, and what comes then.
fn label(text: &str) -> Option<(&str, Cow<'_, str>, &str)> {
    let (name, rest) = identifier(blank(text), |_| false)?;
    let inside = blank(blank(rest).strip_prefix('=')?).strip_prefix('"')?;
    let mut is_escaped = false;
    let end = inside.bytes().position(|byte| {
        let is_end = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    })?;
    let rest = blank(&inside[end + 1..]);
    let rest = match rest.strip_prefix(',') {
        Some(rest) => rest,
        None if rest.is_empty() || rest.starts_with('}') => rest,
        None => return None,
    };
    Some((name, unescaped(&inside[..end]), rest))
}

fn unescaped(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut plain = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('n') => plain.push('\n'),
                Some(escaped @ ('\\' | '"')) => plain.push(escaped),
                // An escape that there is not stays as it is.
                Some(other) => plain.extend(['\\', other]),
                None => plain.push('\\'),
            },
            other => plain.push(other),
        }
    }
    Cow::Owned(plain)
}

/// The name at the beginning, and what comes after it.
fn identifier(text: &str, also: impl Fn(u8) -> bool) -> Option<(&str, &str)> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || also(byte);
    let end = text.bytes().position(|byte| !is_part(byte)).unwrap_or(text.len());
    let is_name = text.bytes().next().is_some_and(|first| !first.is_ascii_digit());
    (end > 0 && is_name).then(|| text.split_at(end))
}

fn blank(text: &str) -> &str {
    text.trim_start_matches([' ', '\t'])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A name, labels and a value.
    type Read = (String, Vec<(String, String)>, f64);

    fn read(page: &str) -> Vec<Read> {
        let all = samples(page, |_| true);
        all.map(|sample| {
            let labels = sample.labels().map(|(name, value)| (name.to_owned(), value.into_owned()));
            (sample.name.to_owned(), labels.collect(), sample.value)
        })
        .collect()
    }

    fn one(line: &str) -> Option<Read> {
        let mut all = read(line);
        assert!(all.len() <= 1, "{all:?}");
        all.pop()
    }

    #[test]
    fn what_a_line_may_be() {
        let plain = |name: &str, value: f64| Some((name.to_owned(), vec![], value));
        let with = |pairs: &[(&str, &str)], value: f64| {
            let pairs = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into()));
            Some(("a".to_owned(), pairs.collect::<Vec<(String, String)>>(), value))
        };
        for (line, sample) in [
            ("a 1", plain("a", 1.0)),
            ("  vllm:b_2\t2.5e1 1395066363000", plain("vllm:b_2", 25.0)),
            ("a 1 # {trace_id=\"x\"} 0.5", plain("a", 1.0)),
            ("a{} 1", with(&[], 1.0)),
            ("a { b = \"c\" , } -1", with(&[("b", "c")], -1.0)),
            ("a{b=\"c\",d=\"\"} +Inf", with(&[("b", "c"), ("d", "")], f64::INFINITY)),
            (
                r#"a{b="x, y} \"z\" \\ \n",c="1"} 2"#,
                with(&[("b", "x, y} \"z\" \\ \n"), ("c", "1")], 2.0),
            ),
            (r#"a{b="\q"} 2"#, with(&[("b", "\\q")], 2.0)),
            ("a{b=\"ä\u{1f600}\"} 2\r", with(&[("b", "ä\u{1f600}")], 2.0)),
            ("# HELP a 1", None),
            ("", None),
            ("a", None),
            ("a{", None),
            ("a{b} 1", None),
            ("a{b=c} 1", None),
            ("a{b=\"c} 1", None),
            ("a{b=\"c\\\"} 1", None),
            ("a{b=\"c\" d=\"e\"} 1", None),
            ("a{b=\"c\"}", None),
            ("a one", None),
            ("a 1 soon", None),
            ("1a 1", None),
            ("{\"a.b\"} 1", None),
            ("ä 1", None),
        ] {
            assert_eq!(one(line), sample, "{line}");
        }
        assert!(one("a NaN").is_some_and(|(_, _, value)| value.is_nan()));
        let many = format!("a{{{}}} 1", "b=\"c\",".repeat(MOST_LABELS + 2));
        assert_eq!(one(&many), None, "labels are bounded");
    }

    #[test]
    fn a_broken_line_spoils_no_other() {
        let page = "a 1\na{b=\"c 2\n\0\u{7f}\n# EOF\nb 3";
        let names: Vec<_> = read(page).into_iter().map(|(name, _, value)| (name, value)).collect();
        assert_eq!(names, [("a".to_owned(), 1.0), ("b".to_owned(), 3.0)]);
        assert_eq!(samples(page, |name| name == "b").count(), 1);
    }

    proptest! {
        #[test]
        fn any_text_is_safe(page in "(?s).{0,200}") {
            for sample in samples(&page, |_| true) {
                prop_assert!(page.contains(sample.name));
                let _ = sample.labels().count();
            }
        }

        #[test]
        fn text_of_the_formats_own_characters_is_safe(page in "[ab:1{}=\",\\\\n# \t\n]{0,60}") {
            for sample in samples(&page, |_| true) {
                let _ = sample.labels().count();
            }
        }

        #[test]
        fn what_is_written_by_the_rules_is_read(
            name in "[a-zA-Z_:][a-zA-Z0-9_:]{0,12}",
            labels in proptest::collection::vec(("[a-zA-Z_][a-zA-Z0-9_]{0,8}", "(?s).{0,12}"), 0..6),
            value in proptest::num::f64::NORMAL | proptest::num::f64::ZERO,
            at in proptest::option::of(0_u64..2_000_000_000_000),
        ) {
            let escape = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            // A carriage return ends no line in the format, but is one in no real label either.
            prop_assume!(labels.iter().all(|(_, value)| !value.contains('\r')));
            let pairs: Vec<_> =
                labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
            let at = at.map(|at| format!(" {at}")).unwrap_or_default();
            let line = format!("{name}{{{}}} {value}{at}", pairs.join(","));
            prop_assert_eq!(one(&line), Some((name, labels, value)));
        }
    }
}
