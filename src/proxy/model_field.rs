//! The `model` member of a JSON request body, found as the body comes in: each byte is looked at once, none
//! is kept but the member's own. Clients put a megabyte of images before it.
//!
//! Of two such members most parsers take the last, some the first, some neither. Nothing is to be routed by one of
//! them and answered by the other, so the rest of a body is looked through as well, while it is passed on.
//!
//! What is passed over is not checked to be JSON beyond its strings and brackets: the worker judges that.

use std::mem;

use smallvec::SmallVec;

/// Longer names are nobody's.
const LONGEST: usize = 256;
/// Strings are mostly shorter.
const SHORT: usize = 16;
/// As much of a name as is kept while it is read: each of its bytes may be written as six.
const KEPT: usize = 6 * LONGEST;

/// What a body says of its model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ModelField {
    /// The body's top-level `model`, a string.
    Named(String),
    /// The body is no JSON object, or its `model` is no usable string.
    Absent,
    /// It has the member twice.
    Twice,
}

/// Looks for the top-level `model`; nested ones do not count.
#[derive(Debug)]
pub(super) struct Finder {
    state: State,
    found: Option<ModelField>,
    /// Open brackets of the value that is passed over.
    depth: usize,
    /// Whether the byte before was a backslash that says something of this one.
    escaped: bool,
    /// The member's name, or the model's, as it is written.
    text: SmallVec<[u8; 32]>,
    /// The value that comes is the model's.
    is_model: bool,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The object's beginning.
    Object,
    /// A member's name, or the object's end.
    Name,
    /// More of a member's name.
    InName,
    Colon,
    /// A value's beginning.
    Value,
    /// More of the model's name.
    InModel,
    /// More of a string in a value that is passed over.
    InString,
    /// More of an array or an object that is passed over.
    InBrackets,
    /// More of a number or a word.
    InWord,
    /// A comma, or the object's end.
    Comma,
    /// Nothing that counts.
    Over,
}

impl Finder {
    pub(super) fn new() -> Self {
        Self {
            state: State::Object,
            found: None,
            depth: 0,
            escaped: false,
            text: SmallVec::new(),
            is_model: false,
        }
    }

    /// Looks at the next piece of a body. `None`: what comes may tell. Once it is told, what comes may only show
    /// that it is told twice.
    pub(super) fn look(&mut self, piece: &[u8]) -> Option<&ModelField> {
        let mut at = 0;
        while let Some(byte) = piece.get(at) {
            match self.state {
                State::Over => break,
                State::InName | State::InModel | State::InString => {
                    at += self.rest_of_string(&piece[at..]);
                }
                State::InBrackets => {
                    self.in_brackets(*byte);
                    at += 1;
                }
                _ if byte.is_ascii_whitespace() && self.state != State::InWord => at += 1,
                _ => {
                    self.between(*byte);
                    at += 1;
                }
            }
        }
        self.found.as_ref()
    }

    /// What is told so far.
    pub(super) fn found(&self) -> Option<&ModelField> {
        self.found.as_ref()
    }

    /// Whether nothing that comes can tell any more.
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// How much of `bytes` belongs to the string that we are in, which ends there unless there is no more.
    fn rest_of_string(&mut self, bytes: &[u8]) -> usize {
        let mut at = usize::from(mem::take(&mut self.escaped));
        loop {
            let Some(found) = bytes.get(at..).and_then(mark_in_string) else {
                self.keep(bytes);
                return bytes.len();
            };
            at += found;
            if bytes[at] == b'"' {
                self.end_of_string(&bytes[..at]);
                return at + 1;
            }
            if at + 1 == bytes.len() {
                // What the backslash says something of is still to come, and does not end the string.
                self.escaped = true;
                self.keep(bytes);
                return bytes.len();
            }
            at += 2;
        }
    }

    /// Keeps what a string says so far, where that matters.
    fn keep(&mut self, bytes: &[u8]) {
        if self.state != State::InString {
            let room = (KEPT + 1).saturating_sub(self.text.len()).min(bytes.len());
            self.text.extend_from_slice(&bytes[..room]);
        }
    }

    /// A string is over, with these bytes behind what is kept of it. Most are all in one piece.
    fn end_of_string(&mut self, last: &[u8]) {
        self.state = match self.state {
            State::InString if self.depth > 0 => State::InBrackets,
            State::InString => State::Comma,
            state => {
                let text = if self.text.is_empty() {
                    last
                } else {
                    self.keep(last);
                    &self.text
                };
                let state = if state == State::InName {
                    self.is_model = says(text, "model");
                    if self.is_model && self.found.is_some() {
                        self.found = Some(ModelField::Twice);
                        State::Over
                    } else {
                        State::Colon
                    }
                } else {
                    let name = Some(text).filter(|text| text.len() <= KEPT).and_then(decoded);
                    let name = name.filter(|name| (1..=LONGEST).contains(&name.len()));
                    self.found = Some(name.map_or(ModelField::Absent, ModelField::Named));
                    State::Comma
                };
                self.text.clear();
                state
            }
        };
    }

    fn in_brackets(&mut self, byte: u8) {
        match byte {
            b'"' => self.state = State::InString,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    self.state = State::Comma;
                }
            }
            _ => {}
        }
    }

    /// A byte between strings and brackets.
    fn between(&mut self, byte: u8) {
        if self.state == State::Value && self.is_model && byte != b'"' {
            // A model that is no string is none.
            self.found = Some(ModelField::Absent);
        }
        let word = matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'+' | b'.');
        self.state = match (self.state, byte) {
            (State::Object, b'{') | (State::InWord | State::Comma, b',') => State::Name,
            (State::Name, b'"') => State::InName,
            (State::Colon, b':') => State::Value,
            (State::Value, b'"') if self.is_model => State::InModel,
            (State::Value, b'"') => State::InString,
            (State::Value, b'{' | b'[') => {
                self.depth = 1;
                State::InBrackets
            }
            (State::Value | State::InWord, _) if word => State::InWord,
            (State::InWord, _) if byte.is_ascii_whitespace() => State::Comma,
            // The object's end, or none at all.
            _ => {
                self.found.get_or_insert(ModelField::Absent);
                State::Over
            }
        };
    }
}

/// Where a string may end, or say something of its next byte. Most strings are short, and end sooner than a search
/// made for long ones has begun.
fn mark_in_string(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < SHORT
        && let Some(word) = bytes[at..].first_chunk()
    {
        let marks = marks_in(u64::from_le_bytes(*word));
        if marks != 0 {
            return Some(at + marks.trailing_zeros() as usize / 8);
        }
        at += size_of::<u64>();
    }
    Some(at + memchr::memchr2(b'"', b'\\', &bytes[at..])?)
}

/// The highest bit of each byte that is a quote or a backslash, up to the first that is one: those behind it may be
/// wrong (Warren, Hacker's Delight, 6-1).
fn marks_in(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & (ONES << 7);
    zeros(word ^ (ONES * 0x22)) | zeros(word ^ (ONES * 0x5c))
}

/// Whether a JSON string that is written so between its quotes says this.
fn says(text: &[u8], this: &str) -> bool {
    text == this.as_bytes()
        || (text.len() <= KEPT
            && text.contains(&b'\\')
            && decoded(text).is_some_and(|text| text == this))
}

/// What a JSON string says that is written so between its quotes.
fn decoded(text: &[u8]) -> Option<String> {
    // Nearly all do without what has to be decoded.
    if !text.iter().any(|byte| *byte == b'\\' || byte.is_ascii_control()) {
        return std::str::from_utf8(text).ok().map(str::to_owned);
    }
    let quoted = [b"\"", text, b"\""].concat();
    serde_json::from_slice(&quoted).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(name: &str) -> ModelField {
        ModelField::Named(name.to_owned())
    }

    /// What the beginning of a body says, if it does, whatever pieces it comes in.
    fn look(beginning: &[u8]) -> Option<ModelField> {
        let found = Finder::new().look(beginning).cloned();
        for size in 1..beginning.len() {
            let mut finder = Finder::new();
            let in_pieces =
                beginning.chunks(size).fold(None, |_, piece| finder.look(piece).cloned());
            assert_eq!(in_pieces, found, "{} in pieces of {size}", beginning.escape_ascii());
        }
        found
    }

    /// What a whole body says.
    fn find(body: &[u8]) -> ModelField {
        look(body).unwrap_or(ModelField::Absent)
    }

    /// What a whole parser says of it.
    fn parsed(body: &[u8]) -> Option<ModelField> {
        #[derive(serde::Deserialize)]
        struct Asked {
            model: Option<serde_json::Value>,
        }
        let asked: Asked = serde_json::from_slice(body).ok()?;
        let name = asked.model.as_ref().and_then(|model| model.as_str());
        let name = name.filter(|name| (1..=LONGEST).contains(&name.len()));
        Some(name.map_or(ModelField::Absent, named))
    }

    #[test]
    fn finds_the_top_level_model() {
        for (body, field) in [
            (r#"{"model":"m"}"#, named("m")),
            (r#" { "a" : [1,{"model":"no"}], "model" : "yes" , "b": 1"#, named("yes")),
            (r#"{"model":"m\u0041\n","other":{"model":"nested"}}"#, named("mA\n")),
            (r#"{"model":"m","model":"second"}"#, ModelField::Twice),
            (r#"{"model":"m","a":[1],"mo\u0064el":"m"}"#, ModelField::Twice),
            (r#"{"model":5 ,"model":"m"}"#, ModelField::Twice),
            (r#"{"model":{"model":"m"},"b":1}"#, ModelField::Absent),
            (r#"{"model":"m"}{"model":"m"}"#, named("m")),
            (r#"{"mo\u0064el":"m"}"#, named("m")),
            (r#"{"a":"\\","b":"\"","c":-1.5e+3 ,"d":null,"model":"m"}"#, named("m")),
            (r#"{"a":"{[","b":[[{"c":"]}"}]],"model":"m"}"#, named("m")),
            (r#"{"a":{"model":"nested"}}"#, ModelField::Absent),
            (r#"{"amodel":"m","models":"m"}"#, ModelField::Absent),
            (r#"{"model":"\x"}"#, ModelField::Absent),
            (r#"{"model":5}"#, ModelField::Absent),
            (r#"{"model":""}"#, ModelField::Absent),
            (r#"["model","m"]"#, ModelField::Absent),
            ("not json", ModelField::Absent),
            ("", ModelField::Absent),
        ] {
            assert_eq!(find(body.as_bytes()), field, "{body}");
        }
    }

    #[test]
    fn asks_for_more_only_where_more_may_tell() {
        for beginning in ["", "{", r#"{"mod"#, r#"{"a":[1,2"#, r#"{"model":"half"#, r#"{"a":"x\"#] {
            assert_eq!(look(beginning.as_bytes()), None, "{beginning}");
        }
        assert_eq!(look(b"[1"), Some(ModelField::Absent));
        assert_eq!(look(b"{]"), Some(ModelField::Absent));
        assert_eq!(look(b"{} "), Some(ModelField::Absent));
    }

    #[test]
    fn names_without_end_take_no_memory() {
        let mut finder = Finder::new();
        for piece in [&b"{\""[..], &[b'a'; 10_000], b"\":1,\"model\":\"", &[b'a'; 10_000]] {
            assert_eq!(finder.look(piece), None);
            assert!(finder.text.len() <= KEPT + 1);
        }
        assert_eq!(finder.look(b"\""), Some(&ModelField::Absent));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            look(&bytes);
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
            prop_assert_eq!(find(body.as_bytes()), named(&name));
            let beginning = &body.as_bytes()[..cut.min(body.len())];
            let field = look(beginning);
            prop_assert!(field.is_none() || field == Some(named(&name)), "{:?}", field);
        }

        #[test]
        fn a_whole_parser_says_the_same(body in r#"\{("(a|model|mo\\\\u0064el)":("x\\\\""|"m"|[1-9]|\[\{"model":"n"\}\]|true)[ ,}]{0,2}){0,4}\}?"#) {
            if let Some(field) = parsed(body.as_bytes()) {
                prop_assert_eq!(find(body.as_bytes()), field);
            }
        }
    }
}
