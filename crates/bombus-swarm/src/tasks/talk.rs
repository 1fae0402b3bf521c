//! A stream with messages in both directions.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bombus_net::NetStream;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::route::{Messages, push};

/// How long a peer may take to read on.
const WRITE_LIMIT: Duration = Duration::from_secs(20);

/// A stream to a peer. Dropping it resets it.
pub(super) struct Talk {
    stream: NetStream,
    messages: Messages,
    out: Vec<u8>,
}

impl Talk {
    /// Reads messages of at most so many bytes.
    pub(super) fn new(stream: NetStream, bytes_max: usize) -> Self {
        Self { stream, messages: Messages::up_to(bytes_max), out: Vec::new() }
    }

    /// Reads shorter or longer messages from now on.
    pub(super) fn expect(&mut self, bytes_max: usize) {
        self.messages.set_max(bytes_max);
    }

    /// Waits for a message. Safe to cancel.
    ///
    /// # Errors
    ///
    /// When the stream ends or fails, or what comes is no such message ([`io::ErrorKind::InvalidData`]).
    pub(super) async fn hear<T: for<'de> Deserialize<'de>>(&mut self) -> io::Result<T> {
        loop {
            if let Some(message) = self.messages.next()? {
                return Ok(message);
            }
            if poll_fn(|cx| self.messages.poll_fill(Pin::new(&mut self.stream), cx)).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Says something. Not to be cancelled, unless the stream is dropped with it.
    ///
    /// # Errors
    ///
    /// When the peer goes away, or reads nothing for too long.
    pub(super) async fn say(&mut self, message: &impl Serialize) -> io::Result<()> {
        self.out.clear();
        push(&mut self.out, message)?;
        let written = async {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await
        };
        timeout(WRITE_LIMIT, written).await?
    }

    /// Ends the stream in order.
    pub(super) async fn end(mut self) -> io::Result<()> {
        timeout(WRITE_LIMIT, self.stream.shutdown()).await?
    }
}
