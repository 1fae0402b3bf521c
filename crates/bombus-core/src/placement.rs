//! Placement: which of the places that could answer a request is the best one, and why.
//!
//! [`rank`] is a pure function of facts. It first sorts out who cannot answer, each with its reason; the others get points by
//! [`Weights`], chosen so that what counts is, in this order: being alive, a model in memory, little load, speed, nearness and the
//! order of preference. It costs O(n log n) for n candidates.

mod candidate;
mod points;
mod verdict;

use std::cmp::Ordering;

pub use candidate::{Candidate, Offer, Peer};
pub use points::Weights;
pub use verdict::{Factor, Points, Ranked, Rejection, Verdict, lack};

use crate::breaker::BreakerState;
use crate::identity::NodeId;
use crate::model::{ModelCapability, ModelInfo, ModelName};
use points::Home;

/// What a request needs of the model that answers it, and of the place where it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Need {
    /// What the model has to be able to do.
    pub capabilities: Vec<ModelCapability>,
    /// Tokens that prompt and answer should find room for. A model with less is taken only where none has more; one of which the
    /// size of the context is not known counts as large enough.
    pub context_tokens: Option<u32>,
    /// On which nodes it may run.
    pub scope: Scope,
    /// Whether it goes on with an answer that another run began: then only those can answer that can do that.
    pub continuation: bool,
    /// SHA-256 of the weights that began the answer, in lower-case hex: a candidate with the same ones is preferred.
    pub weights: Option<String>,
    /// The models that may answer, by the names that they are offered by or have there, as they are written. `None`: all.
    pub only: Option<Vec<ModelName>>,
}

impl Need {
    /// Builds the need of these capabilities and nothing else.
    #[must_use]
    pub fn of(capabilities: impl Into<Vec<ModelCapability>>) -> Self {
        Self { capabilities: capabilities.into(), ..Self::default() }
    }

    /// Returns the same need, for these nodes.
    #[must_use]
    pub fn within(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    /// Returns the same need, for these models; `None`: for all.
    #[must_use]
    pub fn only(self, only: Option<Vec<ModelName>>) -> Self {
        Self { only, ..self }
    }

    fn allows(&self, info: &ModelInfo, alias_of: Option<&str>) -> bool {
        self.only.as_ref().is_none_or(|only| {
            let there = alias_of.and_then(|name| ModelName::parse(name).ok());
            only.contains(&info.name) || there.is_some_and(|there| only.contains(&there))
        })
    }
}

/// On which nodes a request may run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scope {
    /// On every node.
    #[default]
    Anywhere,
    /// On this node.
    Local,
    /// On every node but this one.
    Remote,
    /// On this peer. The own node is [`Scope::Local`].
    Node(NodeId),
}

/// Judges the candidates by the default [`Weights`] and brings them into order: those that can answer, best first, then the rest.
#[must_use]
pub fn rank(need: &Need, candidates: Vec<Candidate>) -> Vec<Ranked> {
    rank_by(&Weights::default(), need, candidates)
}

/// Judges the candidates as [`rank`] does, by weights of the caller's.
#[must_use]
pub fn rank_by(weights: &Weights, need: &Need, candidates: Vec<Candidate>) -> Vec<Ranked> {
    let weights = weights.bounded();
    let home = Home::of(need, &candidates);
    let judge = |candidate: Candidate| {
        let verdict = match filter(need, &candidate) {
            Err(rejection) => Verdict::Rejected(rejection),
            Ok(info) => {
                let points = points::points(&weights, need, &home, &candidate, info);
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
        ("alive", ahead(|factor| matches!(factor, Factor::Suspect))),
        ("available", ahead(|factor| matches!(factor, Factor::HeldBack))),
        ("local", ahead(|factor| matches!(factor, Factor::Cloud))),
        ("context", ahead(|factor| matches!(factor, Factor::ContextShort { .. }))),
        ("warm", ahead(|factor| matches!(factor, Factor::Warm(_)))),
        ("weights", ahead(|factor| matches!(factor, Factor::SameWeights))),
        ("load", ahead(|factor| matches!(factor, Factor::Load { .. } | Factor::Queue(_)))),
        ("preference", ahead(|factor| matches!(factor, Factor::Preference(_)))),
        ("speed", ahead(is_speed)),
        ("near", ahead(|factor| matches!(factor, Factor::Away | Factor::Latency(_)))),
    ];
    // The earlier one wins where two are ahead by as much, as in the order of the weights.
    let largest = margins.into_iter().rev().max_by(|a, b| a.1.total_cmp(&b.1));
    largest.filter(|(_, margin)| *margin > 0.0).map_or("preference", |(word, _)| word)
}

fn is_speed(factor: &Factor) -> bool {
    matches!(factor, Factor::Speed(_) | Factor::FirstToken(_) | Factor::Pace { .. } | Factor::GpuMemory(_))
}

/// Returns the model that a candidate would answer with, or why it cannot.
fn filter<'a>(need: &Need, candidate: &'a Candidate) -> Result<&'a ModelInfo, Rejection> {
    in_scope(need, candidate)?;
    let info = match &candidate.offer {
        Offer::Has { info, alias_of } if need.allows(info, alias_of.as_deref()) => info,
        Offer::Has { .. } => return Err(Rejection::NotAllowed),
        Offer::Hidden => return Err(Rejection::Hidden),
        Offer::Missing => return Err(Rejection::Missing),
        Offer::Unknown(reason) => return Err(Rejection::Unknown(reason.clone())),
    };
    if let Some(lacking) = need.capabilities.iter().find(|capability| !info.capabilities.contains(capability)) {
        return Err(Rejection::Lacks(*lacking));
    }
    if need.continuation && !info.continues {
        return Err(Rejection::CannotContinue);
    }
    match &candidate.peer {
        Some(peer) if !peer.reachable => return Err(Rejection::Unreachable),
        Some(peer) if peer.draining => return Err(Rejection::Draining),
        Some(peer) if peer.paused => return Err(Rejection::Paused),
        _ => {}
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

fn in_scope(need: &Need, candidate: &Candidate) -> Result<(), Rejection> {
    let inside = match (&need.scope, &candidate.peer) {
        (Scope::Anywhere, _) | (Scope::Local, None) | (Scope::Remote, Some(_)) => true,
        (Scope::Node(node), Some(peer)) => *node == *peer.node,
        (Scope::Local, Some(_)) | (Scope::Remote | Scope::Node(_), None) => false,
    };
    match &candidate.peer {
        _ if !inside => Err(Rejection::OutOfScope),
        Some(peer) if peer.barred => Err(Rejection::Barred),
        _ => Ok(()),
    }
}

/// A total order: accepted before busy before other rejected ones, then by points, the own node before others, preference and names.
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
        .then_with(|| a_is.peer.is_some().cmp(&b_is.peer.is_some()))
        .then_with(|| a_is.preference.cmp(&b_is.preference))
        .then_with(|| a_is.lot.cmp(&b_is.lot))
        .then_with(|| a_is.node().cmp(&b_is.node()))
        .then_with(|| a_is.backend.cmp(&b_is.backend))
}

#[cfg(test)]
mod tests;
