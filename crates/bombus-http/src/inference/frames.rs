//! The body of a streamed answer.

use std::convert::Infallible;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};

/// Most events that leave as one frame.
const EVENTS_MAX: usize = 32;

/// Makes a body of events. Each leaves at once; those that are there at the same time leave together, as one chunk of the HTTP body,
/// since readers pay for every chunk.
pub(crate) fn body_of(events: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    Body::from_stream(events.ready_chunks(EVENTS_MAX).map(|events| Ok::<_, Infallible>(joined(events))))
}

fn joined(mut events: Vec<Bytes>) -> Bytes {
    if events.len() == 1 {
        return events.remove(0);
    }
    let mut frame = BytesMut::with_capacity(events.iter().map(Bytes::len).sum());
    for event in events {
        frame.extend_from_slice(&event);
    }
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use futures::channel::mpsc;
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn what_is_ready_together_leaves_together_and_nothing_waits_for_more() {
        let (sender, events) = mpsc::unbounded();
        let mut body = body_of(events);
        let mut next = async || body.frame().await.unwrap().unwrap().into_data().unwrap();
        sender.unbounded_send(Bytes::from("a")).unwrap();
        assert_eq!(next().await, "a");
        for event in ["b", "c", "d"] {
            sender.unbounded_send(Bytes::from(event)).unwrap();
        }
        assert_eq!(next().await, "bcd");
        for _ in 0..=EVENTS_MAX {
            sender.unbounded_send(Bytes::from("e")).unwrap();
        }
        drop(sender);
        assert_eq!([next().await.len(), next().await.len()], [EVENTS_MAX, 1]);
    }
}
