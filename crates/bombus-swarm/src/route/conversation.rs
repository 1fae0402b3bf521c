//! One request to a peer, from its sending on.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bombus_infer::BackendError;
use bombus_net::{NetStream, OpenError};
use serde::Serialize;
use tokio::io::AsyncWrite;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::RUN_PROTOCOL;
use super::peer::{Peer, Running};
use super::wire::{
    ASK_BYTES_MAX, Ask, Declined, FRAME_BYTES_MAX, Heard, Messages, REPLY_BYTES_MAX, REQUEST_BYTES_MAX, Reason,
    TEXT_BYTES_MAX, VERSION, cut, push,
};
use crate::service::random;

/// When it may be worth asking a peer again that has too much to do.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// After so many words in a row that say nothing, others get their turn.
const IDLE_WORDS_MAX: u32 = 64;

/// A request at a peer. Dropping it resets its stream, which ends the run there.
pub(super) struct Conversation {
    peer: Arc<Peer>,
    stream: NetStream,
    messages: Messages,
    /// The request, and how much of it has been sent.
    out: Vec<u8>,
    sent: usize,
    is_sent: bool,
    accepted: bool,
    gone: Pin<Box<WaitForCancellationFutureOwned>>,
    silence: Pin<Box<Sleep>>,
    /// How long the peer may say nothing now.
    limit: Duration,
    heard_at: Instant,
    _running: Running,
}

impl Conversation {
    /// Sends a request, and waits until the peer takes it.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unavailable`] where it is not reached, or says nothing; [`BackendError::Overloaded`] and
    /// [`BackendError::Rejected`] where it declines; [`BackendError::Unsupported`] where the request is too large to be sent to another node.
    pub(super) async fn begin(
        peer: &Arc<Peer>,
        kind: &str,
        model: &str,
        request: &impl Serialize,
    ) -> Result<Self, BackendError> {
        let running = Running::at(peer);
        let out = encode(kind, model, request)?;
        let gone = peer.gone();
        let opened = async {
            // It is never closed; what waits here is bounded by the registry.
            let permit = peer.opening.acquire().await.ok();
            let limit = peer.config.open_limit;
            let opened = timeout(limit, peer.net.open_stream(&peer.node, RUN_PROTOCOL)).await;
            (permit, opened.unwrap_or_else(|_| Err(OpenError::Timeout { peer: peer.node.clone(), limit })))
        };
        let Some((permit, opened)) = gone.run_until_cancelled(opened).await else {
            return Err(unavailable(format!("the peer '{}' is gone", peer.called())));
        };
        let stream = opened.map_err(|error| not_reached(peer, &error))?;
        let limit = peer.config.accept_limit;
        let mut conversation = Self {
            stream,
            messages: Messages::up_to(REPLY_BYTES_MAX),
            out,
            sent: 0,
            is_sent: false,
            accepted: false,
            gone: Box::pin(gone.cancelled_owned()),
            silence: Box::pin(sleep(limit)),
            limit,
            heard_at: Instant::now(),
            _running: running,
            peer: Arc::clone(peer),
        };
        let first = conversation.heard().await;
        drop(permit);
        match first? {
            Heard::Accepted(accepted) if (1..=VERSION).contains(&accepted.v) => {
                conversation.accepted = true;
                Ok(conversation)
            }
            Heard::Accepted(accepted) => {
                let reason = format!("it wants version {} of the protocol", accepted.v);
                Err(conversation.broke(&reason))
            }
            Heard::Declined(declined) => Err(conversation.declined(declined, model)),
            Heard::Error(failure) => Err(failure.error()),
            _ => Err(conversation.broke("it answered before it took the request")),
        }
    }

    /// Waits for what the peer says next. Safe to cancel.
    pub(super) async fn heard(&mut self) -> Result<Heard, BackendError> {
        poll_fn(|cx| self.poll_heard(cx)).await
    }

    /// Takes what the peer says next; words that say only that it is still there are not handed on.
    pub(super) fn poll_heard(&mut self, cx: &mut Context<'_>) -> Poll<Result<Heard, BackendError>> {
        let mut idle_words = 0;
        loop {
            match self.messages.next::<Heard>() {
                Ok(Some(Heard::Alive | Heard::Unknown)) => {
                    self.limit = self.peer.config.stall_limit;
                    idle_words += 1;
                    if idle_words >= IDLE_WORDS_MAX {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    continue;
                }
                Ok(Some(heard)) => {
                    self.limit = self.peer.config.stall_limit;
                    return Poll::Ready(Ok(heard));
                }
                Ok(None) => {}
                Err(error) => {
                    return Poll::Ready(Err(self.broke(&format!("what it said is not understood: {error}"))));
                }
            }
            self.poll_send(cx);
            match self.messages.poll_fill(Pin::new(&mut self.stream), cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(self.broke("it ended without saying why"))),
                Poll::Ready(Ok(_)) => self.heard_at = Instant::now(),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.broke(&error.to_string()))),
                Poll::Pending => break,
            }
        }
        if self.gone.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(self.broke("it is gone")));
        }
        let due = self.heard_at + self.limit;
        if self.silence.deadline() > due {
            // It was set for the acceptance, which may take longer.
            self.silence.as_mut().reset(due);
        }
        while self.silence.as_mut().poll(cx).is_ready() {
            if due <= Instant::now() {
                return Poll::Ready(Err(self.broke(&format!("it fell silent for {} ms", self.limit.as_millis()))));
            }
            self.silence.as_mut().reset(due);
        }
        Poll::Pending
    }

    /// Sends what is left of the request. A failure shows when the peer's answer is read: it may have declined.
    fn poll_send(&mut self, cx: &mut Context<'_>) {
        while self.sent < self.out.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.out[self.sent..]) {
                Poll::Ready(Ok(count)) if count > 0 => self.sent += count,
                Poll::Ready(_) => {
                    self.sent = self.out.len();
                    self.is_sent = true;
                }
                Poll::Pending => return,
            }
        }
        if !self.is_sent && Pin::new(&mut self.stream).poll_flush(cx).is_ready() {
            self.is_sent = true;
            self.out = Vec::new();
            self.sent = 0;
        }
    }

    /// Names the peer of an answer.
    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Makes an error of what went wrong at the peer or on the way: before it took the request it is of no use, and after that it broke off.
    pub(super) fn broke(&self, what: &str) -> BackendError {
        let reason = format!("the peer '{}' failed: {}", self.peer.called(), cut(what.to_owned(), TEXT_BYTES_MAX));
        if self.accepted { BackendError::Interrupted { reason } } else { BackendError::Unavailable { reason } }
    }

    fn declined(&self, declined: Declined, model: &str) -> BackendError {
        let message = cut(declined.message, TEXT_BYTES_MAX);
        let reason = format!("the peer '{}' declines: {message}", self.peer.called());
        match declined.reason {
            Reason::Full => BackendError::Overloaded { retry_after: RETRY_AFTER },
            Reason::NotShared => BackendError::ModelNotFound { model: model.to_owned() },
            // A backend of this node may take it.
            Reason::TooLarge => BackendError::Unsupported { param: "prompt", message: reason },
            _ => BackendError::Rejected { reason },
        }
    }
}

/// Writes the announcement of a request and the request.
fn encode(kind: &str, model: &str, request: &impl Serialize) -> Result<Vec<u8>, BackendError> {
    let unwritten = |error: std::io::Error| unavailable(format!("the request cannot be sent to a peer: {error}"));
    let mut body = Vec::new();
    push(&mut body, request).map_err(unwritten)?;
    let frames = body.len().div_ceil(FRAME_BYTES_MAX + 4);
    let bytes = body.len() - 4 * frames;
    if bytes > REQUEST_BYTES_MAX {
        let message = format!(
            "the request has {bytes} bytes, and to other nodes at most {REQUEST_BYTES_MAX} are sent; make it smaller"
        );
        return Err(BackendError::Unsupported { param: "prompt", message });
    }
    let id = format!("{:016x}", random());
    let ask = Ask { v: VERSION, id, kind: kind.to_owned(), model: model.to_owned(), bytes: bytes as u64 };
    let mut out = Vec::with_capacity(body.len() + 256);
    push(&mut out, &ask).map_err(unwritten)?;
    if out.len() > ASK_BYTES_MAX {
        return Err(BackendError::ModelNotFound { model: cut(model.to_owned(), 80) });
    }
    out.append(&mut body);
    Ok(out)
}

fn not_reached(peer: &Peer, error: &OpenError) -> BackendError {
    let called = peer.called();
    unavailable(match error {
        OpenError::UnsupportedProtocol { .. } => format!("the peer '{called}' answers no requests of other nodes"),
        other => format!("the peer '{called}' is not reached: {other}"),
    })
}

fn unavailable(reason: String) -> BackendError {
    BackendError::Unavailable { reason }
}
