use serde::{Deserialize, Serialize};

use super::{Candidate, Factor, Need, Offer, Points};
use crate::model::ModelInfo;

/// How many points what is good about a candidate is worth. What is no number or less than 0 counts as 0, and nothing for more than
/// 1,000,000.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Weights {
    /// The model is in memory. More than load, speed and nearness together: loading takes from seconds to minutes.
    pub warm: f64,
    /// Nothing runs there. With as many running or waiting as there are slots it is half of this, and it goes on falling.
    pub idle: f64,
    /// Taken away for each place further down this node's order of preference.
    pub preference_step: f64,
    /// Speed, at most so much: it decides between equals.
    pub speed: f64,
    /// A first token at once, and less the longer it takes.
    pub first_token: f64,
    /// A peer that writes 16 times as fast as this node gets so much; one that is twice as fast gets a quarter of it, and one that
    /// is slower loses as much.
    pub pace: f64,
    /// Taken away from every other node: this one is preferred unless another is better by something.
    pub away: f64,
    /// Taken away from a peer that is far away, half of it at 100 ms there and back.
    pub latency: f64,
    /// The weights are those that began the answer. Less than `warm`: while a model is loaded, whoever asked waits.
    pub same_weights: f64,
    /// Taken away from what is beyond this network: own backends and peers are asked before, also those that first have to load the
    /// model.
    pub cloud: f64,
    /// Taken away where the model's context is smaller than what the request needs.
    pub context_short: f64,
    /// Taken away where the candidate lately asked for less, or refused this node: it is tried after all others.
    pub held_back: f64,
    /// Taken away from a peer that may be gone: it is asked where nobody else is left.
    pub suspect: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            warm: 1_000.0,
            idle: 100.0,
            preference_step: 2.0,
            speed: 1.0,
            first_token: 0.5,
            pace: 80.0,
            away: 5.0,
            latency: 20.0,
            same_weights: 500.0,
            cloud: 2_000.0,
            context_short: 4_000.0,
            held_back: 8_000.0,
            suspect: 32_000.0,
        }
    }
}

/// Most points that anything is worth.
const WEIGHT_MAX: f64 = 1e6;
/// Requests at a time that a candidate without a limit is thought to carry well.
const SLOTS_DEFAULT: u32 = 4;
/// Places of preference that are told apart by points; those behind are ordered among themselves by the place alone.
const PREFERENCE_PLACES: u32 = 40;
/// The speed in tokens per second that is worth half of [`Weights::speed`].
const SPEED_MIDDLE: f64 = 50.0;
/// The time to the first token in milliseconds that is worth half of [`Weights::first_token`].
const FIRST_TOKEN_MIDDLE: f64 = 500.0;
/// The time in milliseconds at which half of [`Weights::latency`] is lost.
const LATENCY_MIDDLE: f64 = 100.0;
/// The binary logarithm of how many times as fast a peer has to be for all of [`Weights::pace`].
const PACE_DOUBLINGS: f64 = 4.0;
/// What a machine without a GPU is thought to write in a second, as long as nobody has measured it.
const SPEED_WITHOUT_GPU: f64 = 10.0;
/// What a GPU is thought to add to that at most.
const SPEED_OF_GPU: f64 = 90.0;
/// The memory of GPUs in MB that is thought to give half of [`SPEED_OF_GPU`].
const GPU_MEMORY_MIDDLE: f64 = 12_288.0;

impl Weights {
    /// Returns the same weights, each between 0 and [`WEIGHT_MAX`].
    pub(super) fn bounded(&self) -> Self {
        // What is no number is not more than 0 either.
        let bound = |weight: f64| if weight > 0.0 { weight.min(WEIGHT_MAX) } else { 0.0 };
        Self {
            warm: bound(self.warm),
            idle: bound(self.idle),
            preference_step: bound(self.preference_step),
            speed: bound(self.speed),
            first_token: bound(self.first_token),
            pace: bound(self.pace),
            away: bound(self.away),
            latency: bound(self.latency),
            same_weights: bound(self.same_weights),
            cloud: bound(self.cloud),
            context_short: bound(self.context_short),
            held_back: bound(self.held_back),
            suspect: bound(self.suspect),
        }
    }
}

/// What this node would do by itself, against which peers are held.
pub(super) struct Home {
    /// Tokens per second, measured or estimated; `None` where it does not have the model.
    speed: Option<f64>,
}

impl Home {
    /// Looks for the most preferred backend of this node that has the model. How busy it is does not count here, lest load change
    /// what speed is worth.
    pub(super) fn of(need: &Need, candidates: &[Candidate]) -> Self {
        let able = |candidate: &&Candidate| match &candidate.offer {
            Offer::Has { info, .. } => need.capabilities.iter().all(|one| info.capabilities.contains(one)),
            Offer::Hidden | Offer::Missing | Offer::Unknown(_) => false,
        };
        let own = candidates.iter().filter(|candidate| candidate.peer.is_none()).filter(able);
        let best = own.min_by(|a, b| a.preference.cmp(&b.preference).then_with(|| a.backend.cmp(&b.backend)));
        Self { speed: best.map(|best| measured(best.tokens_per_second).unwrap_or(estimate(best.gpu_memory_mb))) }
    }
}

/// Estimates tokens per second where nothing was measured.
fn estimate(gpu_memory_mb: u64) -> f64 {
    let mb = gpu_memory_mb as f64;
    SPEED_WITHOUT_GPU + SPEED_OF_GPU * (mb / (mb + GPU_MEMORY_MIDDLE))
}

fn measured(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite() && *value >= 0.0)
}

/// Says how many points there are for a speed against another one: from -1 to 1.
fn pace(speed: f64, reference: f64) -> f64 {
    let doublings = (speed.max(1e-3) / reference.max(1e-3)).log2() / PACE_DOUBLINGS;
    doublings.clamp(-1.0, 1.0)
}

pub(super) fn points(
    weights: &Weights,
    need: &Need,
    home: &Home,
    candidate: &Candidate,
    info: &ModelInfo,
) -> Vec<Points> {
    let mut all = Vec::with_capacity(8);
    let mut add = |factor, points| all.push(Points { factor, points });
    add(Factor::Warm(info.warm), if info.warm { weights.warm } else { 0.0 });

    let (running, slots) = (candidate.running, candidate.slots);
    let carries = f64::from(slots.unwrap_or(SLOTS_DEFAULT).max(1));
    let idle = |requests: f64| weights.idle / (1.0 + requests / carries);
    let for_load = idle(f64::from(running));
    add(Factor::Load { running, slots }, for_load);
    if candidate.waiting > 0 {
        let with_queue = idle(f64::from(running) + f64::from(candidate.waiting));
        add(Factor::Queue(candidate.waiting), with_queue - for_load);
    }

    if candidate.peer.is_none() {
        let place = candidate.preference.min(PREFERENCE_PLACES);
        add(Factor::Preference(candidate.preference), 0.0 - weights.preference_step * f64::from(place));
    }
    if let Some(speed) = measured(candidate.tokens_per_second) {
        add(Factor::Speed(speed), weights.speed * (speed / (speed + SPEED_MIDDLE)));
    }
    if let Some(ms) = measured(candidate.first_token_ms) {
        add(Factor::FirstToken(ms), weights.first_token * (FIRST_TOKEN_MIDDLE / (ms + FIRST_TOKEN_MIDDLE)));
    }
    if let Some(peer) = &candidate.peer {
        let reference = home.speed.unwrap_or(SPEED_MIDDLE);
        match measured(candidate.tokens_per_second) {
            Some(speed) => {
                let factor = Factor::Pace { tokens_per_second: speed, here: home.speed };
                add(factor, weights.pace * pace(speed, reference));
            }
            None => {
                let speed = estimate(candidate.gpu_memory_mb);
                add(Factor::GpuMemory(candidate.gpu_memory_mb), weights.pace * pace(speed, reference));
            }
        }
        add(Factor::Away, 0.0 - weights.away);
        if let Some(ms) = measured(peer.latency_ms) {
            add(Factor::Latency(ms), 0.0 - weights.latency * (ms / (ms + LATENCY_MIDDLE)));
        }
        if peer.suspect {
            add(Factor::Suspect, -weights.suspect);
        }
    }

    if candidate.cloud {
        add(Factor::Cloud, -weights.cloud);
    }
    if need.weights.is_some() && need.weights == info.sha256 {
        add(Factor::SameWeights, weights.same_weights);
    }
    if let (Some(context_tokens), Some(needed_tokens)) = (info.context_tokens, need.context_tokens)
        && context_tokens < needed_tokens
    {
        add(Factor::ContextShort { context_tokens, needed_tokens }, -weights.context_short);
    }
    if candidate.held_back {
        add(Factor::HeldBack, -weights.held_back);
    }
    all
}
