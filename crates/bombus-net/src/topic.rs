//! Topics: what is told to all peers that want it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bombus_core::identity::NodeId;
use tokio::sync::Notify;

/// How many messages wait for a subscriber.
pub(crate) const QUEUE_MAX: usize = 256;
/// How many bytes of messages wait for a subscriber.
pub(crate) const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Decides about each message of a topic before it is handed out and passed on.
///
/// It runs in the node's task: it must not block, and should take microseconds.
pub trait Judge: Send + Sync {
    /// Decides about one message. The signature has been checked: `signer` did publish it.
    fn judge(&self, signer: &NodeId, data: &[u8]) -> Verdict;
}

impl<F: Fn(&NodeId, &[u8]) -> Verdict + Send + Sync> Judge for F {
    fn judge(&self, signer: &NodeId, data: &[u8]) -> Verdict {
        self(signer, data)
    }
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is handed out and passed on to other peers.
    Accept,
    /// It is dropped, and nobody is blamed.
    Ignore,
    /// It is dropped, and the peer that passed it on loses score. Only for what every node judges alike.
    Reject,
}

/// A message of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Who published it; its signature was checked.
    pub signer: NodeId,
    /// The content.
    pub data: Vec<u8>,
    /// The topic.
    pub topic: String,
    /// How many messages before this one were dropped because the subscriber was slow.
    pub lost: u64,
}

/// One subscription; it ends with this value.
///
/// At most 256 messages and 16 MiB wait. When a subscriber is slower than its topic, the oldest are dropped, and the next message that it
/// gets tells how many ([`Published::lost`]).
pub struct Subscription {
    pub(crate) queue: Arc<TopicQueue>,
    pub(crate) on_drop: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Subscription {
    /// Waits for the next message; `None` once the mesh has stopped. Safe to cancel.
    pub async fn next(&mut self) -> Option<Published> {
        self.queue.next().await
    }

    /// Returns how many messages were dropped since the start because this subscriber was slow.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.queue.dropped_total.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("dropped", &self.dropped()).finish_non_exhaustive()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(on_drop) = self.on_drop.take() {
            on_drop();
        }
    }
}

/// A queue that loses its oldest messages when it is full.
#[derive(Default)]
pub(crate) struct TopicQueue {
    waiting: Mutex<Waiting>,
    arrived: Notify,
    closed: AtomicBool,
    dropped_total: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Published>,
    bytes: usize,
    lost: u64,
}

impl TopicQueue {
    /// Adds a message; returns how many older ones had to go for it.
    pub(crate) fn push(&self, message: Published) -> u64 {
        let mut lost = 0;
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.bytes += message.data.len();
            waiting.messages.push_back(message);
            while waiting.messages.len() > QUEUE_MAX || (waiting.bytes > QUEUE_BYTES_MAX && waiting.messages.len() > 1)
            {
                if let Some(oldest) = waiting.messages.pop_front() {
                    waiting.bytes -= oldest.data.len();
                    lost += 1;
                }
            }
            waiting.lost += lost;
        }
        self.dropped_total.fetch_add(lost, Ordering::Relaxed);
        self.arrived.notify_one();
        lost
    }

    /// Ends the queue: what waits can still be had.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.arrived.notify_one();
    }

    async fn next(&self) -> Option<Published> {
        loop {
            if let Some(message) = self.pop() {
                return Some(message);
            }
            if self.closed.load(Ordering::Acquire) {
                // Something may have come between the look and the end.
                return self.pop();
            }
            self.arrived.notified().await;
        }
    }

    fn pop(&self) -> Option<Published> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut message = waiting.messages.pop_front()?;
        waiting.bytes -= message.data.len();
        message.lost = std::mem::take(&mut waiting.lost);
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u64, size: usize) -> Published {
        let mut data = number.to_be_bytes().to_vec();
        data.resize(size.max(8), 0);
        let signer = bombus_core::identity::NodeKey::from_secret(&[1; 32]).node_id();
        Published { signer, data, topic: "t".to_owned(), lost: 0 }
    }

    fn number(message: &Published) -> u64 {
        u64::from_be_bytes(message.data[..8].try_into().unwrap())
    }

    #[tokio::test]
    async fn a_slow_subscriber_loses_the_oldest_and_is_told() {
        let queue = TopicQueue::default();
        let lost: u64 = (0..300).map(|i| queue.push(message(i, 8))).sum();
        assert_eq!(lost, 44);
        let first = queue.next().await.unwrap();
        assert_eq!((number(&first), first.lost), (44, 44), "the oldest went, and their number is told");
        let second = queue.next().await.unwrap();
        assert_eq!((number(&second), second.lost), (45, 0), "it is told once");
        assert_eq!(queue.dropped_total.load(Ordering::Relaxed), 44);
    }

    #[tokio::test]
    async fn large_messages_are_bounded_by_their_bytes() {
        let queue = TopicQueue::default();
        let lost: u64 = (0..20).map(|i| queue.push(message(i, 1024 * 1024))).sum();
        assert_eq!(lost, 4, "16 of 1 MiB each stay");
        assert_eq!(number(&queue.next().await.unwrap()), 4);
    }

    #[tokio::test]
    async fn what_waits_at_the_end_is_still_handed_out() {
        let queue = TopicQueue::default();
        queue.push(message(1, 8));
        queue.close();
        assert!(queue.next().await.is_some());
        assert!(queue.next().await.is_none());
    }
}
