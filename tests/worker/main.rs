//! Black box: the stand-in model server as a real process, over real sockets.

mod answers;
mod cancelling;
mod failing;
mod harness;
mod lifetime;
