//! Numbers that look random and follow from a seed, for jitter and for picking peers. Nothing secret may rest on them.

/// A generator of 64-bit numbers: `SplitMix64` (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Returns a number below `bound`; 0 where that is 0. Its unevenness, at most `bound` / 2^64, matters nowhere here.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }

    /// Returns a time within a tenth of `interval_ms` around it.
    pub(crate) fn around(&mut self, interval_ms: u64) -> u64 {
        interval_ms - interval_ms / 10 + self.below(interval_ms / 5 + 1)
    }

    /// Takes up to `count` elements out of `from`, any of them as likely.
    pub(crate) fn pick<T>(&mut self, mut from: Vec<T>, count: usize) -> Vec<T> {
        let count = count.min(from.len());
        (0..count)
            .map(|_| {
                let index = self.below(from.len() as u64) as usize;
                from.swap_remove(index)
            })
            .collect()
    }
}

/// Spreads a number over all 64 bits, each of which depends on all of the input.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
