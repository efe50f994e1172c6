//! What the TOML parser says of lines that are no TOML, in one sentence each.

use super::values::shortened;

/// Where it is (a byte offset) and what is wrong there, with the piece that it is about.
pub(super) fn describe(error: &toml::de::Error, text: &str) -> (usize, String) {
    let span = error.span().unwrap_or(0..0);
    let piece = text.get(span.clone()).unwrap_or_default();
    let about = if piece.trim().is_empty() || piece.contains('\n') {
        String::new()
    } else {
        format!(" at `{}`", shortened(piece))
    };
    let message = error.message();
    let message = message.strip_suffix(", expected nothing").unwrap_or(message);
    // An address or a duration without quotes begins like a number.
    let unquoted = ["float", "integer", "leading zero", "date", "time", "number"];
    let hint = if unquoted.iter().any(|word| message.contains(word)) {
        "; a text needs quotes"
    } else {
        ""
    };
    (span.start, format!("not TOML: {message}{about}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_and_what() {
        for (text, at, message) in [
            ("a = 1.0.0", 7, "not TOML: invalid float at `.0`; a text needs quotes"),
            ("a = 1\na = 2", 6, "not TOML: duplicate key at `a`"),
            ("a 1", 2, "not TOML: key with no value, expected `=`"),
        ] {
            let error = toml::de::DeTable::parse(text).expect_err("no TOML");
            assert_eq!(describe(&error, text), (at, message.to_owned()));
        }
    }
}
