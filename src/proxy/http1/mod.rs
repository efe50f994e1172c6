//! HTTP/1.1 as bytes (RFC 9112), for clients and workers alike: [`head`] reads and writes heads, [`body`] takes
//! apart what follows them, [`buffers`] holds what has come and what waits to go, [`burst`] says when it goes. Where two readers could
//! understand a message differently it is malformed, and its connection is not used again.

mod body;
mod buffers;
mod burst;
mod head;

pub(super) use body::Framing;
pub(super) use buffers::{MOST_AT_ONCE, ReadBuffer, WriteBuffer, copied};
pub(super) use burst::Burst;
pub(super) use head::{
    Head, HeadError, RequestHead, read_request, read_response, write_field, write_fields,
    write_request, write_status,
};

#[cfg(any(test, fuzzing))]
pub(super) use head::fuzz;

/// What is wrong with a message.
pub(super) type Malformed = &'static str;
/// How long a head is, about.
pub(super) const USUAL_HEAD: usize = 512;
/// Fields of a head, or of trailers.
pub(super) const MOST_FIELDS: usize = 100;
