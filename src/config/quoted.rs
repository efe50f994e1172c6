//! Where something stands in a text of a TOML file: what an escape stands for is shorter than the escape.

/// Where the byte `within` of the text is that `written` begins with, in quotes of whichever kind.
pub(super) fn place(written: &str, within: usize) -> usize {
    let several = ["'''", "\"\"\""].iter().find_map(|quotes| written.strip_prefix(quotes));
    let opened = several.unwrap_or_else(|| written.get(1..).unwrap_or_default());
    // A line's end right behind three quotes is none of the text.
    let first =
        |text: &str| if text.starts_with("\r\n") { 2 } else { usize::from(text.starts_with('\n')) };
    let mut at = written.len() - opened.len() + several.map_or(0, first);
    if written.starts_with('\'') {
        return at + within;
    }
    let mut left = within;
    loop {
        let (taken, meant) = piece(&written[at..]);
        // What stands for nothing (a line's end behind a backslash) belongs to what comes before it.
        if taken == 0 || left < meant {
            return at;
        }
        (at, left) = (at + taken, left - meant);
    }
}

/// The length of the first character as it is written, and of what it stands for; nothing of nothing.
fn piece(text: &str) -> (usize, usize) {
    let mut all = text.chars();
    match (all.next(), all.next()) {
        (Some('\\'), Some(kind)) => {
            let digits = match kind {
                'x' => 2,
                'u' => 4,
                'U' => 8,
                // The line's end and all blanks behind it.
                blank if blank.is_ascii_whitespace() => {
                    let rest = text[1..].trim_start_matches([' ', '\t', '\r', '\n']);
                    return (text.len() - rest.len(), 0);
                }
                _ => return (1 + kind.len_utf8(), 1),
            };
            let code = text.get(2..2 + digits).and_then(|code| u32::from_str_radix(code, 16).ok());
            code.and_then(char::from_u32).map_or((2, 1), |meant| (2 + digits, meant.len_utf8()))
        }
        (Some(one), _) => (one.len_utf8(), one.len_utf8()),
        (None, _) => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_escape_is_longer_than_what_it_stands_for() {
        for (written, within, stands) in [
            ("'p5 + g6x'", 5, 6),
            (r#""p5 + g6x""#, 5, 6),
            (r#""p5 +\n g6x""#, 6, 8),
            (r#""\u0070\u0035 + g6x""#, 5, 16),
            (r#""\U0001f600 x""#, 5, 12),
            (r#""\x70 x""#, 2, 6),
            ("'''\np5'''", 0, 4),
            ("\"\"\"\r\np5 + \\\n   g6x\"\"\"", 5, 15),
            (r#""p5""#, 9, 4),
        ] {
            assert_eq!(place(written, within), stands, "{written}");
        }
    }

    proptest! {
        #[test]
        fn any_text_and_any_place_do(written in "[\"']{0,3}[\\\\uUx0-9aé\n ]{0,20}", within in 0_usize..40) {
            prop_assert!(place(&written, within) <= written.len() + within);
        }
    }
}
