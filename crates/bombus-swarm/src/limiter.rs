//! How much one peer may ask of this node in a time.

use std::collections::HashMap;

use bombus_core::identity::NodeId;

/// Most peers that are counted one by one; the rest share one bucket.
const PEERS_MAX: usize = 1_024;

/// A token bucket for each peer (pure; times are handed in).
#[derive(Debug)]
pub(crate) struct Limiter {
    burst: f64,
    per_second: f64,
    buckets: HashMap<NodeId, Bucket>,
    rest: Bucket,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at_ms: u64,
}

impl Limiter {
    /// Allows each peer `burst` at once and `per_second` for as long as it likes.
    pub(crate) fn new(burst: u32, per_second: u32) -> Self {
        let burst = f64::from(burst);
        let rest = Bucket { tokens: burst, at_ms: 0 };
        Self { burst, per_second: f64::from(per_second), buckets: HashMap::new(), rest }
    }

    /// Says whether a peer may have one more.
    pub(crate) fn allow(&mut self, now_ms: u64, peer: &NodeId) -> bool {
        if !self.buckets.contains_key(peer) {
            if self.buckets.len() >= PEERS_MAX {
                let (burst, per_second) = (self.burst, self.per_second);
                // A full bucket says no more than none.
                self.buckets.retain(|_, bucket| bucket.fill(now_ms, burst, per_second) < burst);
            }
            if self.buckets.len() < PEERS_MAX {
                self.buckets.insert(peer.clone(), Bucket { tokens: self.burst, at_ms: now_ms });
            }
        }
        let bucket = self.buckets.get_mut(peer).unwrap_or(&mut self.rest);
        let enough = bucket.fill(now_ms, self.burst, self.per_second) >= 1.0;
        if enough {
            bucket.tokens -= 1.0;
        }
        enough
    }
}

impl Bucket {
    fn fill(&mut self, now_ms: u64, burst: f64, per_second: f64) -> f64 {
        let passed_s = now_ms.saturating_sub(self.at_ms) as f64 / 1_000.0;
        self.tokens = (self.tokens + passed_s * per_second).min(burst);
        self.at_ms = self.at_ms.max(now_ms);
        self.tokens
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    fn peer(number: u16) -> NodeId {
        let mut secret = [0; 32];
        secret[..2].copy_from_slice(&number.to_be_bytes());
        NodeKey::from_secret(&secret).node_id()
    }

    #[test]
    fn one_peer_cannot_take_what_others_may_have() {
        let mut limiter = Limiter::new(3, 2);
        let (loud, quiet) = (peer(1), peer(2));
        let taken = (0..10).filter(|_| limiter.allow(0, &loud)).count();
        assert_eq!(taken, 3);
        assert!(limiter.allow(0, &quiet));
        assert!(limiter.allow(500, &loud), "half a second is one more");
        assert!(!limiter.allow(500, &loud));
        assert_eq!((0..10).filter(|_| limiter.allow(60_000, &loud)).count(), 3, "silence saves up a burst and no more");
    }

    #[test]
    fn many_peers_take_bounded_memory() {
        let mut limiter = Limiter::new(1, 1);
        let allowed = (0..1_100).filter(|number| limiter.allow(0, &peer(*number))).count();
        assert_eq!((limiter.buckets.len(), allowed), (PEERS_MAX, PEERS_MAX + 1), "those beyond share one bucket");
        assert!(limiter.allow(60_000, &peer(2_000)), "those that are silent make room");
        assert_eq!(limiter.buckets.len(), 1);
    }
}
