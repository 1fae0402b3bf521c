//! What links do to messages, and the chance behind it.

use std::ops::RangeInclusive;

/// How links behave.
#[derive(Debug, Clone)]
pub struct Network {
    /// How long a message is under way, in milliseconds; each its own time, so that messages overtake each other.
    pub delay_ms: RangeInclusive<u64>,
    /// Which part of the messages is lost, from 0 to 1.
    pub loss: f64,
    /// Whether messages of a link arrive in the order in which they were sent, as those of a stream do.
    pub ordered: bool,
    /// After which time without any way through both ends take a link for lost. `None`: they never find out by themselves.
    pub broken_after_ms: Option<u64>,
}

impl Network {
    /// Returns a network at its best: a millisecond or two, no loss.
    #[must_use]
    pub fn lan() -> Self {
        Self { delay_ms: 1..=2, loss: 0.0, ordered: false, broken_after_ms: None }
    }

    /// Returns a network with this loss and delays up to this many milliseconds.
    #[must_use]
    pub fn rough(loss: f64, delay_ms_max: u64) -> Self {
        Self { delay_ms: 1..=delay_ms_max, loss, ordered: false, broken_after_ms: None }
    }
}

/// Numbers that look random and follow from a seed (`SplitMix64`).
#[derive(Debug, Clone)]
pub struct SimulatorRandom(u64);

impl SimulatorRandom {
    /// Begins at a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number of a range.
    pub fn within(&mut self, range: &RangeInclusive<u64>) -> u64 {
        let span = range.end().saturating_sub(*range.start()).saturating_add(1);
        range.start() + self.next_u64() % span
    }

    /// Returns an index below `count`, which must not be 0.
    pub fn index(&mut self, count: usize) -> usize {
        (self.next_u64() % count as u64) as usize
    }

    /// Returns true in this part of all cases, from 0 to 1.
    pub fn chance(&mut self, part: f64) -> bool {
        // 53 bits are what a double holds exactly.
        let unit = (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        unit < part
    }
}
