use std::time::Duration;

use bombus_core::placement::Weights;
use serde::{Deserialize, Serialize};

/// How requests are spread and kept going: the section `[route]` of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteConfig {
    /// Whether requests may go to other nodes.
    pub remote: bool,
    /// After its first token, an answer for which nothing came for so long goes on elsewhere; in milliseconds, at least 100.
    pub stall_ms: u64,
    /// The same as a multiple of the answer's mean time between two pieces; what is longer counts. At least 1.
    pub stall_factor: f64,
    /// How often one answer may go on elsewhere; 0: never, at most 16.
    pub continuations_max: u32,
    /// How much the latest measurement of a speed counts against those before it, from 0 to 1.
    pub latest_weight: f64,
    /// After so long an earlier measurement counts half as much as it did, in seconds.
    pub half_life_s: u64,
    /// After so long without a new one, a measurement is forgotten, so that what was slow gets another chance; in seconds.
    pub forget_s: u64,
    /// How many points what is good about a backend or a peer is worth.
    pub weights: Weights,
}

impl Default for RouteConfig {
    fn default() -> Self {
        Self {
            remote: true,
            stall_ms: 3_000,
            stall_factor: 8.0,
            continuations_max: 3,
            latest_weight: 0.2,
            half_life_s: 120,
            forget_s: 600,
            weights: Weights::default(),
        }
    }
}

impl RouteConfig {
    /// Returns after how long without a piece an answer counts as stalled whose pieces came so far apart.
    pub(super) fn stall(&self, mean_gap: Duration) -> Duration {
        let factor = if self.stall_factor.is_finite() { self.stall_factor.clamp(1.0, 1e6) } else { 1.0 };
        let shortest = Duration::from_millis(self.stall_ms.clamp(100, 86_400_000));
        shortest.max(Duration::try_from_secs_f64(mean_gap.as_secs_f64() * factor).unwrap_or(shortest))
    }

    pub(super) fn continuations_max(&self) -> u32 {
        self.continuations_max.min(16)
    }

    /// Returns how much the latest measurement counts where the one before is so old.
    pub(super) fn latest_weight(&self, age_ms: u64) -> f64 {
        let least = if self.latest_weight.is_finite() { self.latest_weight.clamp(0.01, 1.0) } else { 1.0 };
        let half_lives = age_ms as f64 / (self.half_life_s.max(1) as f64 * 1_000.0);
        least.max(1.0 - (-half_lives).exp2())
    }

    pub(super) fn forget_ms(&self) -> u64 {
        self.forget_s.saturating_mul(1_000)
    }
}
