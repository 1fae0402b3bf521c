//! Settings of the exchange of blocks.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Limits of the exchange of blocks with peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BitswapConfig {
    /// The largest message that is read, in bytes. Other programs write up to 4 MiB.
    pub message_bytes_max: usize,
    /// When a message to a peer has so many bytes of blocks, the others wait for the next one. A larger block goes by itself.
    pub message_bytes: usize,
    /// The largest block that is sent or taken, in bytes. At most 2 MiB are common.
    pub block_bytes_max: usize,
    /// How many wants of one peer are remembered, those that cannot be met yet included; further ones are refused.
    pub wants_per_peer: usize,
    /// How long a want of a peer is remembered that cannot be met yet, in milliseconds.
    pub want_memory_ms: u64,
    /// How many blocks one peer is asked for at once; further wants wait here. Some programs drop what is more than 1,024.
    pub asked_per_peer: usize,
    /// How many wants may wait for one peer, those that it was asked for included; further ones count as absent at once.
    pub waiting_per_peer: usize,
    /// How long a peer may take for an answer, in milliseconds, counted from its last one: then what it was asked for counts as absent.
    pub answer_ms: u64,
    /// How long it may take for one block altogether, in milliseconds.
    pub answer_ms_max: u64,
    /// How long one message to a peer may take, and one from it, in milliseconds. A peer that takes or sends nothing is given up then.
    pub message_ms: u64,
    /// How long a stream to a peer stays open without messages, in milliseconds. Other programs close theirs after 5 s.
    pub idle_ms: u64,
    /// How many bytes of blocks one peer gets in a second; in bursts four times as many. 0: no limit.
    pub bytes_per_second_per_peer: u64,
    /// How many peers may exchange blocks with this node at the same time.
    pub peers: usize,
    /// How many streams of one peer are read at once; further ones are reset.
    pub streams_per_peer: usize,
    /// How many streams are read at once; further ones wait in the mesh's own short queue.
    pub streams: usize,
    /// How many bytes of messages that are being read may be held in memory, a quarter of them for one peer; further messages wait.
    /// Those of up to 16 KiB come beside that.
    pub receive_bytes_max: usize,
    /// How many questions to the block store run at once.
    pub lookups: usize,
    /// How many events wait to be taken. When so many do, reading from peers stops.
    pub events: usize,
}

impl Default for BitswapConfig {
    fn default() -> Self {
        Self {
            message_bytes_max: 4 << 20,
            message_bytes: 512 << 10,
            block_bytes_max: 2 << 20,
            wants_per_peer: 4_096,
            want_memory_ms: 30_000,
            asked_per_peer: 512,
            waiting_per_peer: 16_384,
            answer_ms: 10_000,
            answer_ms_max: 60_000,
            message_ms: 30_000,
            idle_ms: 1_000,
            bytes_per_second_per_peer: 64 << 20,
            peers: 1_024,
            streams_per_peer: 16,
            streams: 256,
            receive_bytes_max: 64 << 20,
            lookups: 4,
            events: 256,
        }
    }
}

impl BitswapConfig {
    /// Brings what nobody could mean into range: nothing is zero that would stop everything, and a message has room for the largest block.
    pub(super) fn clamped(mut self) -> Self {
        let least = |value: &mut usize, least: usize| *value = (*value).max(least);
        least(&mut self.message_bytes_max, 64 << 10);
        self.message_bytes_max = self.message_bytes_max.min(64 << 20);
        // One message may have so many bytes, and one more block.
        self.block_bytes_max = self.block_bytes_max.clamp(1 << 10, self.message_bytes_max / 2);
        self.message_bytes = self.message_bytes.clamp(1 << 10, self.message_bytes_max / 4);
        self.receive_bytes_max = self.receive_bytes_max.clamp(self.message_bytes_max, 1 << 30);
        for value in [
            &mut self.wants_per_peer,
            &mut self.asked_per_peer,
            &mut self.waiting_per_peer,
            &mut self.peers,
            &mut self.streams_per_peer,
            &mut self.streams,
            &mut self.lookups,
            &mut self.events,
        ] {
            least(value, 1);
        }
        self
    }

    pub(super) fn receive_bytes_per_peer(&self) -> usize {
        (self.receive_bytes_max / 4).max(self.message_bytes_max)
    }

    pub(super) fn want_memory(&self) -> Duration {
        Duration::from_millis(self.want_memory_ms)
    }

    pub(super) fn answer(&self) -> Duration {
        Duration::from_millis(self.answer_ms.max(1))
    }

    pub(super) fn answer_max(&self) -> Duration {
        Duration::from_millis(self.answer_ms_max.max(self.answer_ms).max(1))
    }

    pub(super) fn message(&self) -> Duration {
        Duration::from_millis(self.message_ms.max(1))
    }

    pub(super) fn idle(&self) -> Duration {
        Duration::from_millis(self.idle_ms)
    }
}
