use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bombus_core::chat::{Answerer, ChatEvent};
use bombus_infer::BackendError;
use futures::Stream;

use super::conversation::Conversation;
use super::wire::{Heard, NAME_BYTES_MAX, TEXT_BYTES_MAX, cut};

/// The events of an answer from a peer. Dropping it ends the run there.
pub(super) struct Answer(Option<Conversation>);

impl Answer {
    /// Takes a request that the peer has taken.
    pub(super) fn of(conversation: Conversation) -> Self {
        Self(Some(conversation))
    }
}

impl Stream for Answer {
    type Item = Result<ChatEvent, BackendError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(conversation) = &mut self.0 else { return Poll::Ready(None) };
        let item = match ready!(conversation.poll_heard(cx)) {
            Ok(Heard::Event(event)) => Ok(named(event, conversation)),
            Ok(Heard::Error(failure)) => Err(failure.error()),
            Ok(_) => Err(conversation.broke("it said something that is no part of an answer")),
            Err(error) => Err(error),
        };
        if matches!(item, Ok(ChatEvent::Done { .. }) | Err(_)) {
            self.0 = None;
        }
        Poll::Ready(Some(item))
    }
}

/// Puts the peer's own id where an event says who answers: nobody speaks for others.
fn named(event: ChatEvent, conversation: &Conversation) -> ChatEvent {
    let of_peer = |by: Answerer| Answerer {
        node: Some(conversation.peer().node.clone()),
        backend: cut(by.backend, NAME_BYTES_MAX),
        model: cut(by.model, NAME_BYTES_MAX),
    };
    match event {
        ChatEvent::AnsweredBy(by) => ChatEvent::AnsweredBy(of_peer(by)),
        ChatEvent::Continued { by, reason } => {
            ChatEvent::Continued { by: of_peer(by), reason: cut(reason, TEXT_BYTES_MAX) }
        }
        other => other,
    }
}
