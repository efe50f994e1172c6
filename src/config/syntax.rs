//! What the TOML parser says of lines that are no TOML, in one sentence each, and how the rest of the file
//! is read all the same.

use std::borrow::Cow;
use std::collections::BTreeSet;

use toml::de::DeTable;

use super::values::shortened;

/// How often a text is mended at most.
const ROUNDS: usize = 8;

/// The text with the lines blanked that would make the parser give up on all that follows, every other
/// byte in its place, and what is wrong with the text as byte offsets and sentences.
///
/// The parser goes on after most mistakes, but stops at a key without a value.
pub(super) fn mend(text: &str) -> (Cow<'_, str>, Vec<(usize, String)>) {
    let mut mended = Cow::Borrowed(text);
    let mut mistakes = Vec::new();
    for _ in 0..ROUNDS {
        let (_, errors) = DeTable::parse_recoverable(&mended);
        let stops: BTreeSet<(usize, usize)> =
            errors.iter().filter_map(|error| stopping_line(error, &mended)).collect();
        mistakes.extend(errors.iter().map(|error| describe(error, text)));
        if stops.is_empty() {
            break;
        }
        for (start, end) in stops {
            mended.to_mut().replace_range(start..end, &" ".repeat(end - start));
        }
    }
    (mended, mistakes)
}

/// The bytes of the line that `error` is in, if the parser stops there: a line that is no header, with
/// the mistake before any `=`.
fn stopping_line(error: &toml::de::Error, text: &str) -> Option<(usize, usize)> {
    let at = error.span()?.start.min(text.len());
    let start = text.get(..at)?.rfind('\n').map_or(0, |newline| newline + 1);
    let end = text[at..].find('\n').map_or(text.len(), |newline| at + newline);
    let line = text[start..end].trim_start();
    let in_key = !text[start..at].contains('=');
    let stops =
        in_key && !line.is_empty() && !line.starts_with('[') && error.message() != "duplicate key";
    stops.then_some((start, end))
}

/// Where it is (a byte offset) and what is wrong there, with the piece that it is about.
fn describe(error: &toml::de::Error, text: &str) -> (usize, String) {
    let span = error.span().unwrap_or(0..0);
    let piece = text.get(span.clone()).unwrap_or_default();
    let about = if piece.trim().is_empty() || piece.contains('\n') || is_secret(text, span.start) {
        String::new()
    } else {
        format!(" at `{}`", shortened(piece))
    };
    let message = error.message();
    let message = message.strip_suffix(", expected nothing").unwrap_or(message);
    // An address or a duration without quotes begins like a number.
    let unquoted = ["float", "integer", "boolean", "leading zero", "date", "time", "number"];
    let hint = if unquoted.iter().any(|word| message.contains(word)) {
        "; a text needs quotes"
    } else {
        ""
    };
    (span.start, format!("not TOML: {message}{about}{hint}"))
}

/// Whether what stands at `at` is the value of a key that sounds like a secret's.
fn is_secret(text: &str, at: usize) -> bool {
    let before = text.get(..at).unwrap_or_default();
    let line = &before[before.rfind('\n').map_or(0, |newline| newline + 1)..];
    let Some((keys, _)) = line.rsplit_once('=') else { return false };
    let keys = keys.to_ascii_lowercase();
    ["key", "sha256", "token", "secret", "password"].iter().any(|word| keys.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_without_a_value_does_not_end_the_file() {
        let text = "a = 1\nb 2\né c\n[t]\nd = 1\nd = 2\n";
        let (mended, mistakes) = mend(text);
        assert_eq!(mended, "a = 1\n   \n    \n[t]\nd = 1\nd = 2\n");
        let places: Vec<_> = mistakes.iter().map(|(at, _)| &text[*at..=*at]).collect();
        assert!(places.contains(&"2") && mistakes.iter().any(|(_, m)| m.contains("duplicate")));
        assert!(matches!(mend("a = 1"), (Cow::Borrowed("a = 1"), mistakes) if mistakes.is_empty()));
    }

    #[test]
    fn says_where_and_what() {
        for (text, at, message) in [
            ("a = 1.0.0", 7, "not TOML: invalid float at `.0`; a text needs quotes"),
            ("a = 1\na = 2", 6, "not TOML: duplicate key at `a`"),
            (
                "a_token = s3same",
                10,
                "not TOML: string values must be quoted, expected literal string",
            ),
            (
                "e = { TOKEN = s3same }",
                14,
                "not TOML: string values must be quoted, expected literal string",
            ),
            ("a 1", 2, "not TOML: key with no value, expected `=`"),
        ] {
            let error = toml::de::DeTable::parse(text).expect_err("no TOML");
            assert_eq!(describe(&error, text), (at, message.to_owned()));
        }
    }
}
