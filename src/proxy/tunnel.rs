//! A connection whose two sides have agreed on another protocol: bytes both ways until either side closes. The
//! slot is held for as long.

use bytes::Bytes;
use tokio::io::AsyncWriteExt;

use super::deadline::Deadline;
use super::downstream::ClientIo;
use super::exchange::Exchange;
use super::upstream::Connection;

/// The worker's side of it, which waits for the client to be told.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) connection: Connection,
    pub(super) exchange: Exchange,
    pub(super) deadline: Deadline,
}

impl Tunnel {
    /// Passes bytes on until it is over. `from_client`: what the client has said already.
    pub(super) async fn run(mut self, mut client: ClientIo, from_client: Bytes) {
        if let Some((mut worker, from_worker)) = self.connection.into_switched()
            // Either side's abrupt end is the end; there is nobody left to tell.
            && client.write_all(&from_worker).await.is_ok()
            && worker.write_all(&from_client).await.is_ok()
        {
            tokio::select! {
                copied = tokio::io::copy_bidirectional(&mut client, &mut worker) => {
                    if let Ok((up, down)) = copied {
                        self.exchange.record().tunnelled(up, down);
                    }
                }
                () = self.deadline.over() => {}
            }
        }
        self.exchange.completed();
    }
}
