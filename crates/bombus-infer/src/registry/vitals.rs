use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::breaker::{Breaker, BreakerState, Outcome, Ticket};
use bombus_core::model::ModelName;

use super::RouteConfig;
use crate::BackendError;
use crate::backend::without_words;

/// How long a backend that refuses this node is tried after all others.
const REJECTED_REST: Duration = Duration::from_secs(30);
/// Longest time for which a backend that asked for less is tried after all others.
const OVERLOADED_REST_MAX: Duration = Duration::from_secs(60);
/// Most models of one backend whose speeds are kept.
const MODELS_MAX: usize = 256;

/// What requests showed of a backend.
#[derive(Default)]
pub(super) struct Vitals {
    pub(super) breaker: Breaker,
    /// Of all models together.
    pub(super) overall: Pace,
    by_model: HashMap<ModelName, Pace>,
    /// Until when it is tried after all others.
    pub(super) held_back_until_ms: u64,
    /// What went wrong last, as long as nothing has gone well since: without the server's own words, which may quote the request of
    /// somebody else than whoever is told of it. What this node advises stays.
    pub(super) error: Option<Arc<str>>,
}

/// How fast answers begin and go on.
#[derive(Clone, Copy, Default)]
pub(super) struct Pace {
    first_token_ms: Option<Average>,
    tokens_per_second: Option<Average>,
}

/// A mean in which the latest values count most.
#[derive(Clone, Copy)]
struct Average {
    value: f64,
    at_ms: u64,
}

impl Average {
    fn take(average: &mut Option<Self>, config: &RouteConfig, now_ms: u64, latest: f64) {
        if !latest.is_finite() {
            return;
        }
        let value = average.map_or(latest, |earlier| {
            let weight = config.latest_weight(now_ms.saturating_sub(earlier.at_ms));
            earlier.value + weight * (latest - earlier.value)
        });
        *average = Some(Self { value, at_ms: now_ms });
    }

    fn recent(average: Option<Self>, config: &RouteConfig, now_ms: u64) -> Option<f64> {
        let average = average.filter(|average| now_ms.saturating_sub(average.at_ms) <= config.forget_ms());
        average.map(|average| average.value)
    }
}

impl Pace {
    pub(super) fn first_token_ms(&self, config: &RouteConfig, now_ms: u64) -> Option<f64> {
        Average::recent(self.first_token_ms, config, now_ms)
    }

    pub(super) fn tokens_per_second(&self, config: &RouteConfig, now_ms: u64) -> Option<f64> {
        Average::recent(self.tokens_per_second, config, now_ms)
    }

    fn measured_at(&self) -> u64 {
        let at = |average: Option<Average>| average.map_or(0, |average| average.at_ms);
        at(self.first_token_ms).max(at(self.tokens_per_second))
    }
}

impl Vitals {
    /// Returns how fast it is with a model.
    pub(super) fn pace_of(&self, model: &ModelName) -> Pace {
        self.by_model.get(model).copied().unwrap_or_default()
    }

    /// Takes note of the time to an answer's first token.
    pub(super) fn began(&mut self, config: &RouteConfig, now_ms: u64, model: &ModelName, first_token_ms: f64) {
        Average::take(&mut self.overall.first_token_ms, config, now_ms, first_token_ms);
        Average::take(&mut self.of(model).first_token_ms, config, now_ms, first_token_ms);
    }

    /// Takes note of the speed of an answer.
    pub(super) fn wrote(&mut self, config: &RouteConfig, now_ms: u64, model: &ModelName, tokens_per_second: f64) {
        Average::take(&mut self.overall.tokens_per_second, config, now_ms, tokens_per_second);
        Average::take(&mut self.of(model).tokens_per_second, config, now_ms, tokens_per_second);
    }

    fn of(&mut self, model: &ModelName) -> &mut Pace {
        if !self.by_model.contains_key(model) && self.by_model.len() >= MODELS_MAX {
            let oldest = self.by_model.iter().min_by_key(|(_, pace)| pace.measured_at()).map(|(name, _)| name.clone());
            oldest.map(|name| self.by_model.remove(&name));
        }
        self.by_model.entry(model.clone()).or_default()
    }

    /// Takes note of a failure.
    pub(super) fn failed(&mut self, now_ms: u64, error: &BackendError) -> Outcome {
        let rest = match error {
            BackendError::Overloaded { retry_after } => (*retry_after).min(OVERLOADED_REST_MAX),
            BackendError::Rejected { .. } => REJECTED_REST,
            _ => Duration::ZERO,
        };
        let until_ms = now_ms.saturating_add(u64::try_from(rest.as_millis()).unwrap_or(u64::MAX));
        self.held_back_until_ms = self.held_back_until_ms.max(until_ms);
        let outcome = outcome_of(error);
        if outcome != Outcome::Answered || matches!(error, BackendError::Rejected { .. }) {
            self.error = Some(without_words(&error.to_string()).into());
        }
        outcome
    }

    /// Tells the breaker how a request ended, and the log what comes of it.
    pub(super) fn end(&mut self, name: &str, now_ms: u64, ticket: Ticket, outcome: Outcome) {
        let before = self.breaker.state();
        self.breaker.on(now_ms, ticket, outcome);
        let after = self.breaker.state();
        match after {
            BreakerState::Open { until_ms } if after != before => {
                let (error, retry_ms) = (self.error.as_deref(), until_ms.saturating_sub(now_ms));
                tracing::warn!(backend.name = name, error, retry_ms, "the backend gets no requests for a while");
            }
            BreakerState::Closed if after != before => tracing::info!(backend.name = name, "the backend works again"),
            _ => {}
        }
    }
}

/// Says what an error means for the breaker: what is wrong with a request or a model is no failure of the backend.
fn outcome_of(error: &BackendError) -> Outcome {
    match error {
        BackendError::Unavailable { .. } | BackendError::Interrupted { .. } => Outcome::Failed,
        BackendError::TimedOut { .. } => Outcome::TimedOut,
        BackendError::ModelNotFound { .. }
        | BackendError::ContextExceeded { .. }
        | BackendError::InvalidRequest { .. }
        | BackendError::Unsupported { .. }
        | BackendError::DeadEnd { .. }
        | BackendError::Overloaded { .. }
        | BackendError::OutOfMemory { .. }
        | BackendError::ModelUnusable { .. }
        | BackendError::Rejected { .. } => Outcome::Answered,
    }
}
