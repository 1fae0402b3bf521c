//! Placement: which of the places that could answer a request is the best one, and why.
//!
//! [`rank`] is a pure function of facts. It first sorts out who cannot answer, each with its reason; the others get points by
//! [`Weights`], chosen so that what counts is, in this order: a model in memory, little load, the order of preference, speed.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use crate::breaker::BreakerState;
use crate::identity::NodeId;
use crate::model::{ModelCapability, ModelInfo};

/// What a request needs of the model that answers it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Need {
    /// What the model has to be able to do.
    pub capabilities: Vec<ModelCapability>,
    /// Tokens that prompt and answer should find room for. A model with less is taken only where none has more.
    pub context_tokens: Option<u32>,
}

impl Need {
    /// Builds the need of these capabilities and nothing else.
    #[must_use]
    pub fn of(capabilities: impl Into<Vec<ModelCapability>>) -> Self {
        Self { capabilities: capabilities.into(), context_tokens: None }
    }
}

/// A place that may be able to answer a request, with what is known about it now.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The node on which the backend is; `None`: this one.
    pub node: Option<NodeId>,
    /// The backend's name on its node.
    pub backend: Arc<str>,
    /// Place in the order of preference, 0 first.
    pub preference: u32,
    /// What it has under the name that was asked for.
    pub offer: Offer,
    /// Requests that it is answering.
    pub running: u32,
    /// How many it may answer at a time, where that is limited.
    pub slots: Option<u32>,
    /// How fast it writes, where that was measured.
    pub tokens_per_second: Option<f64>,
    /// How long its first token takes in milliseconds, where that was measured.
    pub first_token_ms: Option<f64>,
    /// What its breaker lets through.
    pub breaker: BreakerState,
    /// The time by the clock of `breaker`, in milliseconds.
    pub now_ms: u64,
    /// Whether it lately said that it has too much to do, or that it does not answer this node.
    pub held_back: bool,
}

/// What a candidate has under the name that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Offer {
    /// The model.
    Has {
        /// What is known about it, under the name that was asked for.
        info: Arc<ModelInfo>,
        /// The name that it has there, where the one asked for is an alias.
        alias_of: Option<Arc<str>>,
    },
    /// The model, but the configuration does not offer it.
    Hidden,
    /// No such model.
    Missing,
    /// What it has is not known, for this reason.
    Unknown(Arc<str>),
}

/// How many points what is good about a candidate is worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// The model is in memory. More than all that follows together: loading takes from seconds to minutes.
    pub warm: f64,
    /// Nothing runs there. With as many running as there are slots it is half of this, and it goes on falling.
    pub idle: f64,
    /// Taken away for each place further down the order of preference.
    pub preference_step: f64,
    /// Speed, at most so much: it decides between equals.
    pub speed: f64,
    /// A first token at once, and less the longer it takes.
    pub first_token: f64,
    /// Taken away where the model's context is smaller than what the request needs.
    pub context_short: f64,
    /// Taken away where the candidate lately asked for less, or refused this node: it is tried after all others.
    pub held_back: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            warm: 1_000.0,
            idle: 100.0,
            preference_step: 2.0,
            speed: 1.0,
            first_token: 0.5,
            context_short: 4_000.0,
            held_back: 8_000.0,
        }
    }
}

/// Requests at a time that a candidate without a limit is thought to carry well.
const SLOTS_DEFAULT: u32 = 4;
/// Places of preference that are told apart by points; those behind are ordered among themselves by the place alone.
const PREFERENCE_PLACES: u32 = 40;
/// The speed in tokens per second that is worth half of [`Weights::speed`].
const SPEED_MIDDLE: f64 = 50.0;
/// The time to the first token in milliseconds that is worth half of [`Weights::first_token`].
const FIRST_TOKEN_MIDDLE: f64 = 500.0;

/// A candidate with the judgement on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    /// The candidate.
    pub candidate: Candidate,
    /// Whether it can answer, and how well.
    pub verdict: Verdict,
}

/// The judgement on a candidate.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It can answer.
    Accepted {
        /// The sum of all points; more is better.
        score: f64,
        /// Where they come from.
        points: Vec<Points>,
    },
    /// It cannot.
    Rejected(Rejection),
}

/// Points that a candidate has for one thing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Points {
    /// What they are for.
    pub factor: Factor,
    /// How many; less than 0 where they are taken away.
    pub points: f64,
}

/// What a candidate has points for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Factor {
    /// Whether the model is in memory.
    Warm(bool),
    /// How much is running there.
    Load {
        /// Requests that it is answering.
        running: u32,
        /// How many it may answer at a time, where that is limited.
        slots: Option<u32>,
    },
    /// The place in the order of preference, 0 first.
    Preference(u32),
    /// Tokens per second.
    Speed(f64),
    /// Time to the first token in milliseconds.
    FirstToken(f64),
    /// The model's context is smaller than what the request needs.
    ContextShort {
        /// Tokens that it holds.
        context_tokens: u32,
        /// Tokens that are needed.
        needed_tokens: u32,
    },
    /// It lately said that it has too much to do, or that it does not answer this node.
    HeldBack,
}

/// Says why a candidate cannot answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Rejection {
    /// What it has is not known.
    #[error("{0}")]
    Unknown(Arc<str>),
    /// It does not have the model.
    #[error("it does not have this model")]
    Missing,
    /// The configuration does not offer the model.
    #[error("its setting 'models' leaves this model out")]
    Hidden,
    /// The model cannot do what the request needs.
    #[error("the model {}", lack(*.0))]
    Lacks(ModelCapability),
    /// Its breaker is open.
    #[error("it failed several times in a row; it is tried again in {:.1} s", *retry_ms as f64 / 1000.0)]
    Broken {
        /// Time until it is tried again, in milliseconds.
        retry_ms: u64,
    },
    /// All of its slots are taken.
    #[error("it is busy: {running} of {slots} requests run")]
    Busy {
        /// Requests that it is answering.
        running: u32,
        /// How many it may answer at a time.
        slots: u32,
    },
}

/// Says what a model without a capability does not do, for example `does not support tools`.
#[must_use]
pub fn lack(capability: ModelCapability) -> &'static str {
    match capability {
        ModelCapability::Completion => "does not generate text",
        ModelCapability::Tools => "does not support tools",
        ModelCapability::Embedding => "does not make embedding vectors",
        ModelCapability::Vision => "does not see pictures",
        ModelCapability::Thinking => "does not support thinking",
        ModelCapability::Insert => "does not support insert",
    }
}

impl Ranked {
    /// Returns the points of an accepted candidate.
    #[must_use]
    pub fn score(&self) -> Option<f64> {
        match &self.verdict {
            Verdict::Accepted { score, .. } => Some(*score),
            Verdict::Rejected(_) => None,
        }
    }

    /// Returns why a rejected candidate cannot answer.
    #[must_use]
    pub fn rejection(&self) -> Option<&Rejection> {
        match &self.verdict {
            Verdict::Accepted { .. } => None,
            Verdict::Rejected(rejection) => Some(rejection),
        }
    }

    /// Returns the model that it has under the name that was asked for.
    #[must_use]
    pub fn model(&self) -> Option<&ModelInfo> {
        match &self.candidate.offer {
            Offer::Has { info, .. } => Some(info),
            Offer::Hidden | Offer::Missing | Offer::Unknown(_) => None,
        }
    }

    /// Returns what speaks for and against it, in words.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        match &self.verdict {
            Verdict::Accepted { points, .. } => points.iter().map(ToString::to_string).collect(),
            Verdict::Rejected(rejection) => vec![rejection.to_string()],
        }
    }

    fn points_of(&self, same: fn(&Factor) -> bool) -> f64 {
        match &self.verdict {
            Verdict::Accepted { points, .. } => {
                points.iter().filter(|one| same(&one.factor)).map(|one| one.points).sum()
            }
            Verdict::Rejected(_) => 0.0,
        }
    }
}

impl fmt::Display for Points {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.factor {
            Factor::Warm(true) => f.write_str("in memory")?,
            Factor::Warm(false) => f.write_str("not in memory")?,
            Factor::Load { running: 0, .. } => f.write_str("idle")?,
            Factor::Load { running, slots: Some(slots) } => write!(f, "{running} of {slots} requests run")?,
            Factor::Load { running, slots: None } => write!(f, "{running} running")?,
            Factor::Preference(place) => write!(f, "place {} of preference", u64::from(place) + 1)?,
            Factor::Speed(tokens_per_second) => write!(f, "{tokens_per_second:.1} tokens/s")?,
            Factor::FirstToken(ms) => write!(f, "first token after {ms:.0} ms")?,
            Factor::ContextShort { context_tokens, needed_tokens } => {
                write!(f, "its context holds {context_tokens} of {needed_tokens} tokens")?;
            }
            Factor::HeldBack => f.write_str("it lately refused or asked for less")?,
        }
        write!(f, " ({:+.1})", self.points)
    }
}

/// Judges the candidates by the default [`Weights`] and brings them into order: those that can answer, best first, then the rest.
#[must_use]
pub fn rank(need: &Need, candidates: Vec<Candidate>) -> Vec<Ranked> {
    rank_by(&Weights::default(), need, candidates)
}

/// Judges the candidates as [`rank`] does, by weights of the caller's.
#[must_use]
pub fn rank_by(weights: &Weights, need: &Need, candidates: Vec<Candidate>) -> Vec<Ranked> {
    let judge = |candidate: Candidate| {
        let verdict = match filter(need, &candidate) {
            Err(rejection) => Verdict::Rejected(rejection),
            Ok(info) => {
                let points = points(weights, need, &candidate, info);
                Verdict::Accepted { score: points.iter().map(|one| one.points).sum(), points }
            }
        };
        Ranked { candidate, verdict }
    };
    let mut ranked: Vec<Ranked> = candidates.into_iter().map(judge).collect();
    ranked.sort_by(order);
    ranked
}

/// Says in a word what made the first of a ranking the first, for example `warm`; without spaces and semicolons.
#[must_use]
pub fn decisive(ranking: &[Ranked]) -> &'static str {
    let mut accepted = ranking.iter().filter(|ranked| ranked.score().is_some());
    let (Some(best), Some(next)) = (accepted.next(), accepted.next()) else { return "only" };
    let ahead = |same: fn(&Factor) -> bool| best.points_of(same) - next.points_of(same);
    let margins = [
        ("available", ahead(|factor| matches!(factor, Factor::HeldBack))),
        ("context", ahead(|factor| matches!(factor, Factor::ContextShort { .. }))),
        ("warm", ahead(|factor| matches!(factor, Factor::Warm(_)))),
        ("load", ahead(|factor| matches!(factor, Factor::Load { .. }))),
        ("preference", ahead(|factor| matches!(factor, Factor::Preference(_)))),
        ("speed", ahead(|factor| matches!(factor, Factor::Speed(_) | Factor::FirstToken(_)))),
    ];
    // The earlier one wins where two are ahead by as much, as in the order of the weights.
    let largest = margins.into_iter().rev().max_by(|a, b| a.1.total_cmp(&b.1));
    largest.filter(|(_, margin)| *margin > 0.0).map_or("preference", |(word, _)| word)
}

fn filter<'a>(need: &Need, candidate: &'a Candidate) -> Result<&'a ModelInfo, Rejection> {
    let info = match &candidate.offer {
        Offer::Has { info, .. } => info,
        Offer::Hidden => return Err(Rejection::Hidden),
        Offer::Missing => return Err(Rejection::Missing),
        Offer::Unknown(reason) => return Err(Rejection::Unknown(reason.clone())),
    };
    if let Some(lacking) = need.capabilities.iter().find(|capability| !info.capabilities.contains(capability)) {
        return Err(Rejection::Lacks(*lacking));
    }
    match candidate.breaker {
        BreakerState::Open { until_ms } | BreakerState::HalfOpen { until_ms } if until_ms > candidate.now_ms => {
            return Err(Rejection::Broken { retry_ms: until_ms - candidate.now_ms });
        }
        _ => {}
    }
    match candidate.slots {
        Some(slots) if candidate.running >= slots => Err(Rejection::Busy { running: candidate.running, slots }),
        _ => Ok(info),
    }
}

fn points(weights: &Weights, need: &Need, candidate: &Candidate, info: &ModelInfo) -> Vec<Points> {
    let mut all = Vec::with_capacity(6);
    let mut add = |factor, points| all.push(Points { factor, points });
    add(Factor::Warm(info.warm), if info.warm { weights.warm } else { 0.0 });
    let (running, slots) = (candidate.running, candidate.slots);
    let load = f64::from(running) / f64::from(slots.unwrap_or(SLOTS_DEFAULT).max(1));
    add(Factor::Load { running, slots }, weights.idle / (1.0 + load));
    let place = candidate.preference.min(PREFERENCE_PLACES);
    add(Factor::Preference(candidate.preference), 0.0 - weights.preference_step * f64::from(place));
    let measured = |value: Option<f64>| value.filter(|value| value.is_finite() && *value >= 0.0);
    if let Some(speed) = measured(candidate.tokens_per_second) {
        add(Factor::Speed(speed), weights.speed * (speed / (speed + SPEED_MIDDLE)));
    }
    if let Some(ms) = measured(candidate.first_token_ms) {
        add(Factor::FirstToken(ms), weights.first_token * (FIRST_TOKEN_MIDDLE / (ms + FIRST_TOKEN_MIDDLE)));
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

/// A total order: accepted before busy before other rejected ones, then by points, preference and names.
fn order(a: &Ranked, b: &Ranked) -> Ordering {
    let class = |ranked: &Ranked| match ranked.verdict {
        Verdict::Accepted { .. } => 0,
        Verdict::Rejected(Rejection::Busy { .. }) => 1,
        Verdict::Rejected(_) => 2,
    };
    let (score_a, score_b) = (a.score().unwrap_or(0.0), b.score().unwrap_or(0.0));
    let (a_is, b_is) = (&a.candidate, &b.candidate);
    class(a)
        .cmp(&class(b))
        .then_with(|| score_b.total_cmp(&score_a))
        .then_with(|| a_is.preference.cmp(&b_is.preference))
        .then_with(|| a_is.node.cmp(&b_is.node))
        .then_with(|| a_is.backend.cmp(&b_is.backend))
}

#[cfg(test)]
mod tests;
