//! How fast a circuit may be that a peer has this node carry.
//!
//! libp2p's relay copies bytes between two streams and knows no rate. So the streams that peers open are looked at while their protocol is
//! negotiated: one that becomes a hop of a relay gets a bucket of tokens, which everything that is read from it or written to it takes
//! from. Both directions of a circuit go through that one stream, and Yamux holds up whoever sends faster.

use std::io;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::StreamMuxer;
use libp2p::core::muxing::StreamMuxerEvent;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::behaviour::HOP;

/// Bytes a second.
pub(crate) type Rate = NonZeroU32;

/// The first message of each side in a negotiation. Source: <https://github.com/multiformats/multistream-select>.
const HEADER: &[u8] = b"/multistream/1.0.0\n";
/// How long a message that names a protocol may be; longer ones are lists, and are passed over.
const NAME_BYTES_MAX: usize = 256;
/// A bucket holds what comes in so much time: after a pause, that much goes through at once.
const BURST: Duration = Duration::from_millis(250);
/// An empty bucket is waited for until this much of a burst is in it, so that there are few wakeups.
const REFILL_SHARE: u32 = 8;

/// A muxer in which the circuits that the other side opens have a rate.
pub(super) struct Paced<M> {
    muxer: M,
    rate: Option<Rate>,
}

impl<M> Paced<M> {
    /// Without a rate, nothing is limited and nothing looked at.
    pub(super) fn new(muxer: M, rate: Option<Rate>) -> Self {
        Self { muxer, rate }
    }
}

impl<M: StreamMuxer + Unpin> StreamMuxer for Paced<M>
where
    M::Substream: Unpin,
{
    type Substream = PacedStream<M::Substream>;
    type Error = M::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.muxer).poll_inbound(cx))?;
        let pace = self.rate.map_or(Pace::Free, |rate| Pace::Unknown(Negotiation::default(), rate));
        Poll::Ready(Ok(PacedStream { stream, pace }))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.muxer).poll_outbound(cx))?;
        Poll::Ready(Ok(PacedStream { stream, pace: Pace::Free }))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.muxer).poll_close(cx)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.muxer).poll(cx)
    }
}

/// A stream, which is a circuit or not. Whoever reads one that is must also be who writes it: its two halves wake one task.
pub(super) struct PacedStream<S> {
    stream: S,
    pace: Pace,
}

enum Pace {
    /// What the stream is for is not agreed upon yet.
    Unknown(Negotiation, Rate),
    Free,
    Circuit(Bucket),
}

impl Pace {
    /// Looks at what this side says while the protocol is negotiated: it alone decides which one it is.
    fn said(&mut self, bytes: &[u8]) {
        let Self::Unknown(negotiation, rate) = self else { return };
        match negotiation.said(bytes) {
            Some(true) => *self = Self::Circuit(Bucket::new(*rate)),
            Some(false) => *self = Self::Free,
            None => {}
        }
    }

    /// Waits until bytes may go through, and returns how many.
    fn poll_allowed(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        match self {
            Self::Circuit(bucket) => bucket.poll_allowed(cx),
            Self::Unknown(..) | Self::Free => Poll::Ready(usize::MAX),
        }
    }

    fn passed(&mut self, count: usize) {
        if let Self::Circuit(bucket) = self {
            bucket.take(count);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PacedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let allowed = ready!(this.pace.poll_allowed(cx)).min(buffer.len());
        let count = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer[..allowed]))?;
        this.pace.passed(count);
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PacedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let allowed = ready!(this.pace.poll_allowed(cx)).min(data.len());
        let count = ready!(Pin::new(&mut this.stream).poll_write(cx, &data[..allowed]))?;
        this.pace.passed(count);
        this.pace.said(&data[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

/// What this side, which was asked, has said in a negotiation: each message stands behind its length, a varint.
#[derive(Debug, Default)]
struct Negotiation {
    message: Vec<u8>,
    /// How much of a message is still to be passed over.
    skip: usize,
}

impl Negotiation {
    /// Takes more of it. Once a protocol is agreed upon, says whether that is the hop of a relay.
    fn said(&mut self, bytes: &[u8]) -> Option<bool> {
        for byte in bytes {
            if self.skip > 0 {
                self.skip -= 1;
                continue;
            }
            self.message.push(*byte);
            let (length, behind) = match self.message[..] {
                [one] if one & 0x80 == 0 => (usize::from(one), 1),
                [one, two, ..] if one & 0x80 != 0 && two & 0x80 == 0 => {
                    (usize::from(one & 0x7f) | usize::from(two) << 7, 2)
                }
                [one, ..] if one & 0x80 == 0 => (usize::from(one), 1),
                [_] => continue,
                // Longer lengths are none of a negotiation.
                _ => return Some(false),
            };
            if length > NAME_BYTES_MAX {
                self.skip = length;
                self.message.clear();
            } else if self.message.len() == behind + length {
                let message = self.message.split_off(behind);
                self.message.clear();
                // A refusal (`na`) and a list of protocols decide nothing; whoever asked goes on.
                let names_one =
                    message.starts_with(b"/") && message.iter().position(|byte| *byte == b'\n') == Some(length - 1);
                if names_one && message != HEADER {
                    return Some(message.strip_suffix(b"\n") == Some(HOP.as_bytes()));
                }
            }
        }
        None
    }
}

/// Tokens, one for each byte.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    tokens: u64,
    burst: u64,
    filled: Instant,
    refill: Option<Pin<Box<Sleep>>>,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        let burst = (u128::from(rate.get()) * BURST.as_millis() / 1_000).max(1) as u64;
        Self { rate, tokens: burst, burst, filled: Instant::now(), refill: None }
    }

    fn time_for(&self, tokens: u64) -> Duration {
        Duration::from_nanos(tokens.saturating_mul(1_000_000_000) / u64::from(self.rate.get()))
    }

    fn fill(&mut self) {
        let now = Instant::now();
        let due = now.duration_since(self.filled).as_nanos() * u128::from(self.rate.get()) / 1_000_000_000;
        let due = u64::try_from(due).unwrap_or(u64::MAX);
        if self.tokens.saturating_add(due) >= self.burst {
            (self.tokens, self.filled) = (self.burst, now);
        } else if due > 0 {
            self.tokens += due;
            self.filled += self.time_for(due);
        }
    }

    fn poll_allowed(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        loop {
            if let Some(refill) = &mut self.refill {
                ready!(refill.as_mut().poll(cx));
                self.refill = None;
            }
            self.fill();
            if self.tokens > 0 {
                return Poll::Ready(usize::try_from(self.tokens).unwrap_or(usize::MAX));
            }
            let enough = (self.burst / u64::from(REFILL_SHARE)).max(1);
            // A nanosecond more, since the division above leaves something out.
            let at = self.filled + self.time_for(enough) + Duration::from_nanos(1);
            self.refill = Some(Box::pin(sleep_until(at)));
        }
    }

    fn take(&mut self, count: usize) {
        self.tokens = self.tokens.saturating_sub(count as u64);
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt, AsyncWriteExt};
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    /// Messages as this side says them.
    fn said(messages: &[&str]) -> Vec<u8> {
        let framed = messages.iter().flat_map(|message| {
            let length = message.len() + 1;
            let prefix = match length {
                0..128 => vec![length as u8],
                _ => vec![(length & 0x7f) as u8 | 0x80, (length >> 7) as u8],
            };
            [prefix, message.as_bytes().to_vec(), b"\n".to_vec()].concat()
        });
        framed.collect()
    }

    #[test]
    fn a_hop_is_known_by_what_this_side_agrees_to() {
        let many = "/some/protocol\n".repeat(40);
        let cases: [(&[&str], Option<bool>); 6] = [
            (&["/multistream/1.0.0", HOP], Some(true)),
            (&["/multistream/1.0.0", "na", "na", HOP], Some(true)),
            (&["/multistream/1.0.0", &many, HOP], Some(true)),
            (&["/multistream/1.0.0", "/a\n/b", HOP], Some(true)),
            (&["/multistream/1.0.0", "/ipfs/ping/1.0.0", HOP], Some(false)),
            (&["/multistream/1.0.0", "na"], None),
        ];
        for (messages, expected) in cases {
            let bytes = said(messages);
            assert_eq!(Negotiation::default().said(&bytes), expected, "{messages:?}");
            let mut piecemeal = Negotiation::default();
            let found = bytes.iter().find_map(|byte| piecemeal.said(&[*byte]));
            assert_eq!(found, expected, "{messages:?} byte by byte");
        }
        assert_eq!(Negotiation::default().said(&[0xff, 0xff, 0xff, 1]), Some(false));
    }

    /// Sends so many bytes in both directions of a stream that agreed to a protocol, and returns how long that took.
    async fn time_for(protocol: &str, bytes: usize, rate: u32) -> Duration {
        let (near, far) = tokio::io::duplex(1 << 20);
        let rate = Rate::new(rate).unwrap();
        let mut stream = PacedStream { stream: near.compat(), pace: Pace::Unknown(Negotiation::default(), rate) };
        let mut far = far.compat();
        stream.write_all(&said(&["/multistream/1.0.0", protocol])).await.unwrap();
        let begun = Instant::now();
        stream.write_all(&vec![1; bytes]).await.unwrap();
        far.write_all(&vec![2; bytes]).await.unwrap();
        stream.read_exact(&mut vec![0; bytes]).await.unwrap();
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_circuit_takes_no_more_than_its_rate_in_both_directions_together() {
        let took = time_for(HOP, 100_000, 50_000).await;
        // What the bucket held at the beginning went through at once.
        assert!((3_700..=4_100).contains(&took.as_millis()), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn other_streams_are_as_fast_as_they_are() {
        assert_eq!(time_for("/ipfs/ping/1.0.0", 100_000, 50_000).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_slowest_rate_still_moves() {
        let took = time_for(HOP, 2, 1).await;
        assert!(took >= Duration::from_secs(3) && took <= Duration::from_secs(5), "{took:?}");
    }
}
