//! HTTP/1.1 as far as a load test's own ends need it: where a head ends, what frames its body, where that
//! ends. Nothing here checks what it reads: both ends are ours, and a proxy in between is trusted.

/// Bytes of each answer's body, but for a stream's.
pub(crate) const ANSWER: usize = 128;

/// Where a body stands.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Body {
    /// This many bytes are still to come.
    Length(u64),
    /// Inside the line with a chunk's size: what it says so far, and whether its digits are over.
    Size(u64, bool),
    /// Inside a chunk, with this many bytes still to come, its line end among them.
    Chunk(u64),
    /// Inside the trailers: how long the line is so far.
    Trailer(usize),
    /// It has ended.
    Done,
}

impl Body {
    /// The body that follows a head.
    pub(crate) fn of(head: &[u8]) -> Self {
        if let Some(length) = field(head, "content-length").and_then(number) {
            if length == 0 { Self::Done } else { Self::Length(length) }
        } else if field(head, "transfer-encoding").is_some() {
            Self::Size(0, false)
        } else {
            Self::Done
        }
    }

    /// Whether all of it has been taken.
    pub(crate) fn is_done(self) -> bool {
        matches!(self, Self::Done)
    }

    /// Takes what belongs to it from the start of `bytes` and says how much that was. Each piece of content
    /// goes to `content`.
    pub(crate) fn take(&mut self, bytes: &[u8], mut content: impl FnMut(&[u8])) -> usize {
        let mut at = 0;
        while at < bytes.len() && !self.is_done() {
            let rest = &bytes[at..];
            *self = match *self {
                Self::Length(left) => {
                    let taken = shorter(left, rest);
                    content(&rest[..taken]);
                    at += taken;
                    let left = left - taken as u64;
                    if left == 0 { Self::Done } else { Self::Length(left) }
                }
                Self::Chunk(left) => {
                    let taken = shorter(left, rest);
                    // The last two bytes are the line end.
                    content(&rest[..shorter(left.saturating_sub(2), rest)]);
                    at += taken;
                    let left = left - taken as u64;
                    if left == 0 { Self::Size(0, false) } else { Self::Chunk(left) }
                }
                Self::Size(size, over) => {
                    at += 1;
                    match (rest[0], char::from(rest[0]).to_digit(16)) {
                        (b'\n', _) if size == 0 => Self::Trailer(0),
                        (b'\n', _) => Self::Chunk(size + 2),
                        (_, Some(digit)) if !over => {
                            Self::Size(size * 16 + u64::from(digit), false)
                        }
                        _ => Self::Size(size, true),
                    }
                }
                Self::Trailer(line) => {
                    at += 1;
                    match rest[0] {
                        b'\n' if line == 0 => Self::Done,
                        b'\n' => Self::Trailer(0),
                        b'\r' => Self::Trailer(line),
                        _ => Self::Trailer(line + 1),
                    }
                }
                Self::Done => Self::Done,
            };
        }
        at
    }
}

/// Where the head at the start of `bytes` ends, if it has all arrived.
pub(crate) fn head_end(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

/// A field's value, by its name in lower case.
pub(crate) fn field<'h>(head: &'h [u8], name: &str) -> Option<&'h [u8]> {
    head.split(|&b| b == b'\n').find_map(|line| {
        let (found, value) = line.split_at_checked(name.len())?;
        let value = value.strip_prefix(b":")?;
        found.eq_ignore_ascii_case(name.as_bytes()).then(|| value.trim_ascii())
    })
}

/// The decimal number at the start of `text`.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&text[..digits]).ok()?.parse().ok()
}

fn shorter(length: u64, bytes: &[u8]) -> usize {
    usize::try_from(length).map_or(bytes.len(), |length| length.min(bytes.len()))
}

/// Digits of an event's time: microseconds since 1970, until the year 2286.
pub(crate) const STAMP: usize = 16;
