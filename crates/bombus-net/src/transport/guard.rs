//! The guard between the swarm key and Noise.
//!
//! The private network's protocol (<https://github.com/libp2p/specs/blob/master/pnet/Private-Networks-PSK-V1.md>) confirms nothing: both
//! sides send a nonce of 24 bytes, and from then on everything is XORed with a key stream. With another key, what comes out is noise,
//! which the negotiation of protocols takes for a message that has not come in full yet: it hangs. But the first 20 bytes of every libp2p
//! connection are known.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::{AsyncRead, AsyncWrite};
use libp2p::pnet::PnetOutput;
use tokio::time::Sleep;

use crate::shared::lock;

/// What every libp2p connection begins with, in both directions: multistream-select's header with its length.
pub(super) const GREETING: &[u8; 20] = b"\x13/multistream/1.0.0\n";
/// The private network's nonce, in bytes.
const NONCE_BYTES: usize = 24;

/// The other side has another swarm key.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the other side has another swarm key")]
pub(super) struct ForeignKey;

/// The other side does not greet as libp2p nodes do.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the other side does not speak libp2p")]
pub(super) struct NoGreeting;

/// A socket that remembers the first bytes that it read.
pub(super) struct Recorded<S> {
    socket: S,
    nonce: Nonce,
}

/// The first bytes that came.
#[derive(Clone, Default)]
pub(super) struct Nonce(Arc<Mutex<Vec<u8>>>);

impl Nonce {
    /// Says whether these are readable text: 24 random bytes are that once in 10^10 times, greetings of other services always.
    pub(super) fn is_text(&self) -> bool {
        let bytes = lock(&self.0);
        bytes.len() >= 4 && bytes.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
    }

    /// Says whether something came that is no text.
    pub(super) fn is_random(&self) -> bool {
        !lock(&self.0).is_empty() && !self.is_text()
    }

    fn record(&self, bytes: &[u8]) {
        let mut recorded = lock(&self.0);
        let missing = NONCE_BYTES - recorded.len();
        recorded.extend_from_slice(&bytes[..bytes.len().min(missing)]);
    }

    fn is_whole(&self) -> bool {
        lock(&self.0).len() == NONCE_BYTES
    }
}

impl<S> Recorded<S> {
    pub(super) fn new(socket: S) -> Self {
        Self { socket, nonce: Nonce::default() }
    }

    pub(super) fn nonce(&self) -> Nonce {
        self.nonce.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Recorded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.socket).poll_read(cx, buffer))?;
        if !self.nonce.is_whole() {
            self.nonce.record(&buffer[..count]);
        }
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Recorded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}

/// A socket with or without a swarm key.
pub(super) enum Socket<S> {
    Open(S),
    Private(Box<PnetOutput<Recorded<S>>>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Socket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Open(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Private(socket) => Pin::new(socket).poll_read(cx, buffer),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Open(socket) => Pin::new(socket).poll_write(cx, data),
            Self::Private(socket) => Pin::new(socket).poll_write(cx, data),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Open(socket) => Pin::new(socket).poll_flush(cx),
            Self::Private(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Open(socket) => Pin::new(socket).poll_close(cx),
            Self::Private(socket) => Pin::new(socket).poll_close(cx),
        }
    }
}

/// A socket whose first bytes have to be the greeting, within a limit.
pub(super) struct Greeted<S> {
    socket: S,
    matched: usize,
    limit: Option<Pin<Box<Sleep>>>,
    is_private: bool,
    /// Why a write failed before the greeting was read.
    failed: Option<io::Error>,
}

impl<S> Greeted<S> {
    pub(super) fn new(socket: S, limit: Duration, is_private: bool) -> Self {
        let limit = Some(Box::pin(tokio::time::sleep(limit)));
        Self { socket, matched: 0, limit, is_private, failed: None }
    }

    fn refusal(&self) -> io::Error {
        if self.is_private {
            io::Error::new(io::ErrorKind::InvalidData, ForeignKey)
        } else {
            io::Error::new(io::ErrorKind::InvalidData, NoGreeting)
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let Some(limit) = &mut this.limit else {
            return Pin::new(&mut this.socket).poll_read(cx, buffer);
        };
        if limit.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(this.refusal()));
        }
        // A broken connection at this point says the same as other bytes do: the other side could not read the greeting.
        let count = match ready!(Pin::new(&mut this.socket).poll_read(cx, buffer)) {
            Ok(0) | Err(_) if !buffer.is_empty() => return Poll::Ready(Err(this.refusal())),
            other => other?,
        };
        let expected = &GREETING[this.matched..];
        let compared = count.min(expected.len());
        if buffer[..compared] != expected[..compared] {
            return Poll::Ready(Err(this.refusal()));
        }
        this.matched += compared;
        if this.matched == GREETING.len() {
            this.limit = None;
        }
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Greeted<S> {
    /// Says why a write failed. Who could not read our greeting has closed, and so has who greeted and broke off: what it sent tells which.
    fn poll_failure(mut self: Pin<&mut Self>, cx: &mut Context<'_>, failed: Option<io::Error>) -> Poll<io::Error> {
        self.failed = failed.or_else(|| self.failed.take());
        let mut buffer = [0; GREETING.len()];
        while self.limit.is_some() {
            let rest = GREETING.len() - self.matched;
            if let Err(refusal) = ready!(self.as_mut().poll_read(cx, &mut buffer[..rest])) {
                return Poll::Ready(refusal);
            }
        }
        Poll::Ready(self.failed.take().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.failed.is_some() {
            return self.poll_failure(cx, None).map(Err);
        }
        match ready!(Pin::new(&mut self.socket).poll_write(cx, data)) {
            Ok(count) => Poll::Ready(Ok(count)),
            Err(error) => self.poll_failure(cx, Some(error)).map(Err),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.failed.is_some() {
            return self.poll_failure(cx, None).map(Err);
        }
        match ready!(Pin::new(&mut self.socket).poll_flush(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => self.poll_failure(cx, Some(error)).map(Err),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}

impl<S> fmt::Debug for Greeted<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Greeted").field("matched", &self.matched).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures::AsyncReadExt;
    use futures::AsyncWriteExt;
    use futures::io::Cursor;
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    async fn read(bytes: &[u8], is_private: bool) -> io::Result<Vec<u8>> {
        let mut guarded = Greeted::new(Cursor::new(bytes.to_vec()), LIMIT, is_private);
        let mut read = vec![0; bytes.len()];
        guarded.read_exact(&mut read).await?;
        Ok(read)
    }

    #[tokio::test]
    async fn a_greeting_gets_through_with_what_follows() {
        let bytes = [GREETING.as_slice(), b"and more"].concat();
        assert_eq!(read(&bytes, true).await.unwrap(), bytes);
    }

    #[tokio::test]
    async fn other_bytes_are_another_key() {
        let error = read(b"\x13/multistream/1.0.1\n....", true).await.unwrap_err();
        assert!(super::super::find::<ForeignKey>(&error).is_some());
        let error = read(b"HTTP/1.1 400 Bad Request", false).await.unwrap_err();
        assert!(super::super::find::<NoGreeting>(&error).is_some());
    }

    #[tokio::test]
    async fn an_end_before_the_greeting_is_another_key() {
        let mut guarded = Greeted::new(Cursor::new(Vec::new()), LIMIT, true);
        let error = guarded.read_exact(&mut [0; 1]).await.unwrap_err();
        assert!(super::super::find::<ForeignKey>(&error).is_some());
    }

    #[tokio::test]
    async fn a_write_that_fails_before_the_greeting_is_another_key_too() {
        let (socket, other) = tokio::io::duplex(64);
        drop(other);
        let mut greeted = Greeted::new(socket.compat(), LIMIT, true);
        let error = greeted.write_all(GREETING).await.unwrap_err();
        assert!(super::super::find::<ForeignKey>(&error).is_some(), "{error}");
    }

    #[tokio::test]
    async fn who_greeted_and_broke_off_has_the_key_whatever_fails_first() {
        let (socket, mut other) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut other, GREETING).await.unwrap();
        drop(other);
        let mut greeted = Greeted::new(socket.compat(), LIMIT, true);
        let error = greeted.write_all(GREETING).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_at_the_limit() {
        let (silent, _other) = tokio::io::duplex(64);
        let silent = silent.compat();
        let mut guarded = Greeted::new(silent, LIMIT, true);
        let begun = tokio::time::Instant::now();
        guarded.read_exact(&mut [0; 1]).await.unwrap_err();
        assert_eq!(begun.elapsed(), LIMIT);
    }

    #[test]
    fn greetings_of_other_services_are_no_nonce() {
        let nonce = Nonce::default();
        nonce.record(b"SSH-2.0-OpenSSH_9.2p1\r\n");
        assert!(nonce.is_text());
        let nonce = Nonce::default();
        nonce.record(&[0x9c; 30]);
        assert!(nonce.is_whole() && !nonce.is_text());
    }
}
