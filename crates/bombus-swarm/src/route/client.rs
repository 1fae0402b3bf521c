use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bombus_net::NetStream;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Sleep, sleep};

use super::wire::{ASK_BYTES_MAX, Messages, push};

/// Most bytes that a requester may say out of turn.
const JUNK_BYTES_MAX: usize = 64 * 1024;
/// So much is gathered before it is sent.
const GATHERED_BYTES_MAX: usize = 64 * 1024;

/// The stream to a requester.
pub(super) struct Client {
    stream: NetStream,
    messages: Messages,
    out: Vec<u8>,
    junk: usize,
    progress_limit: Duration,
}

impl Client {
    pub(super) fn new(stream: NetStream, progress_limit: Duration) -> Self {
        Self { stream, messages: Messages::up_to(ASK_BYTES_MAX), out: Vec::new(), junk: 0, progress_limit }
    }

    /// Reads larger messages from now on.
    pub(super) fn expect(&mut self, max: usize) {
        self.messages.set_max(max);
    }

    /// Waits for a message. Safe to cancel.
    ///
    /// # Errors
    ///
    /// When the stream ends or fails, when what comes is no such message, or when nothing comes for too long.
    pub(super) async fn receive<T: for<'de> Deserialize<'de>>(&mut self) -> io::Result<T> {
        loop {
            if let Some(message) = self.messages.next()? {
                return Ok(message);
            }
            let read = poll_fn(|cx| self.messages.poll_fill(Pin::new(&mut self.stream), cx));
            if tokio::time::timeout(self.progress_limit, read).await?? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Gathers a message to be sent.
    pub(super) fn push(&mut self, message: &impl Serialize) -> io::Result<()> {
        push(&mut self.out, message)
    }

    /// Says whether enough is gathered to be sent.
    pub(super) fn is_full(&self) -> bool {
        self.out.len() >= GATHERED_BYTES_MAX
    }

    /// Sends what is gathered, in one piece.
    ///
    /// # Errors
    ///
    /// When the requester goes away, or reads nothing for too long.
    pub(super) async fn send(&mut self) -> io::Result<()> {
        let mut sent = 0;
        // Made where it is needed only: most of the time all is taken at once.
        let mut stuck: Option<Pin<Box<Sleep>>> = None;
        poll_fn(|cx| {
            loop {
                let polled = match self.out.get(sent..) {
                    Some(rest) if !rest.is_empty() => Pin::new(&mut self.stream).poll_write(cx, rest),
                    _ => match Pin::new(&mut self.stream).poll_flush(cx) {
                        Poll::Ready(flushed) => return Poll::Ready(flushed),
                        Poll::Pending => Poll::Pending,
                    },
                };
                match polled {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(count)) => {
                        sent += count;
                        stuck = None;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => break,
                }
            }
            if self.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let limit = self.progress_limit;
            match stuck.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                Poll::Pending => Poll::Pending,
            }
        })
        .await?;
        self.out.clear();
        Ok(())
    }

    /// Sends one message.
    pub(super) async fn say(&mut self, message: &impl Serialize) -> io::Result<()> {
        self.push(message)?;
        self.send().await
    }

    /// Waits until the requester goes away: resets the stream, or ends it. Safe to cancel.
    pub(super) async fn gone(&mut self) {
        poll_fn(|cx| self.poll_gone(cx)).await;
    }

    /// Ends the stream in order.
    pub(super) async fn end(mut self) -> io::Result<()> {
        self.send().await?;
        self.stream.shutdown().await
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.messages.poll_fill(Pin::new(&mut self.stream), cx) {
                Poll::Ready(Ok(count)) if count > 0 && self.junk + count <= JUNK_BYTES_MAX => {
                    self.junk += count;
                    self.messages.discard();
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
