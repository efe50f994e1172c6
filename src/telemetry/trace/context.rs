//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>): the header `traceparent`, read and written.

use http::HeaderValue;

/// A trace's id; never all zeros.
pub type TraceId = [u8; 16];
/// A span's id; never all zeros.
pub type SpanId = [u8; 8];

/// The header's name.
pub(super) const TRACEPARENT: &str = "traceparent";
/// The header with vendors' own additions, passed on as it is.
pub(super) const TRACESTATE: &str = "tracestate";

const LENGTH: usize = 55;
const SAMPLED: u8 = 1;

/// What `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TraceContext {
    pub(super) trace_id: TraceId,
    /// The sender's span.
    pub(super) span_id: SpanId,
    pub(super) sampled: bool,
}

impl TraceContext {
    /// Reads version 00, and of later versions what 00 has. `None`: it is invalid, and a new trace is to
    /// be started.
    pub(super) fn parse(header: &HeaderValue) -> Option<Self> {
        let bytes = header.as_bytes();
        let known = bytes.get(..LENGTH)?;
        let version = hex::<1>(&known[..2])?[0];
        let ends = match version {
            0 => bytes.len() == LENGTH,
            0xff => false,
            _ => bytes.get(LENGTH).is_none_or(|next| *next == b'-'),
        };
        if !ends || [known[2], known[35], known[52]] != [b'-'; 3] {
            return None;
        }
        let context = Self {
            trace_id: hex(&known[3..35])?,
            span_id: hex(&known[36..52])?,
            sampled: hex::<1>(&known[53..])?[0] & SAMPLED != 0,
        };
        (context.trace_id != [0; 16] && context.span_id != [0; 8]).then_some(context)
    }

    /// The header that says so, in version 00.
    pub(super) fn header(&self) -> HeaderValue {
        let mut text = [b'-'; LENGTH];
        text[..2].copy_from_slice(b"00");
        write_hex(&self.trace_id, &mut text[3..35]);
        write_hex(&self.span_id, &mut text[36..52]);
        text[53..].copy_from_slice(if self.sampled { b"01" } else { b"00" });
        // Digits and hyphens always make a valid value.
        HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}

/// Lower-case digits only, as the standard has it.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn write_hex(bytes: &[u8], text: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// A trace's id as logs show it.
#[must_use]
pub fn shown(id: &TraceId) -> String {
    let mut text = [0; 32];
    write_hex(id, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<TraceContext> {
        TraceContext::parse(&HeaderValue::from_str(text).expect("a header"))
    }

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_written_is_what_was_read() {
        let context = parse(VALID).expect("valid");
        assert!(context.sampled);
        assert_eq!(context.span_id, [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
        assert_eq!(shown(&context.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.header(), VALID);
        let unsampled = VALID.replace("-01", "-00");
        assert_eq!(parse(&unsampled).map(|c| c.header()), Some(unsampled.parse().expect("value")));
    }

    #[test]
    fn later_versions_are_read_as_far_as_they_are_known() {
        let later = VALID.replacen("00", "cc", 1);
        assert_eq!(parse(&later), parse(VALID));
        assert_eq!(parse(&format!("{later}-what-the-future-brings")), parse(VALID));
        assert_eq!(parse(&format!("{later}.no")), None);
        // Only the lowest flag is known.
        assert_eq!(parse(&VALID.replace("-01", "-fe")).map(|c| c.sampled), Some(false));
        assert_eq!(parse(&VALID.replace("-01", "-ff")).map(|c| c.sampled), Some(true));
    }

    #[test]
    fn what_the_standard_forbids_is_not_read() {
        for wrong in [
            "",
            "00",
            &VALID[..54],
            &format!("{VALID}-more"),
            &format!("{VALID} "),
            &VALID.replacen("00", "ff", 1),
            &VALID.to_uppercase(),
            &VALID.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &VALID.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &VALID.replace('f', "g"),
            &VALID.replace('-', "_"),
        ] {
            let value = HeaderValue::from_bytes(wrong.as_bytes()).expect("a header");
            assert_eq!(TraceContext::parse(&value), None, "{wrong}");
        }
    }
}
