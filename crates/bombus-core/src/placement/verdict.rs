use std::fmt;
use std::sync::Arc;

use super::{Candidate, Offer};
use crate::model::{ModelCapability, ModelInfo};

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
    /// So many requests wait there.
    Queue(u32),
    /// The place in the order of preference of this node's backends, 0 first.
    Preference(u32),
    /// Tokens per second.
    Speed(f64),
    /// Time to the first token in milliseconds.
    FirstToken(f64),
    /// How fast a peer writes against this node.
    Pace {
        /// Its tokens per second.
        tokens_per_second: f64,
        /// Those of this node, measured or estimated; `None` where this node does not have the model.
        here: Option<f64>,
    },
    /// The memory of a peer's GPUs in MB, from which its speed is estimated as long as it was not measured.
    GpuMemory(u64),
    /// It is another node.
    Away,
    /// Time to a peer and back in milliseconds.
    Latency(f64),
    /// It has the weights that began the answer.
    SameWeights,
    /// The model's context is smaller than what the request needs.
    ContextShort {
        /// Tokens that it holds.
        context_tokens: u32,
        /// Tokens that are needed.
        needed_tokens: u32,
    },
    /// It lately said that it has too much to do, or that it does not answer this node.
    HeldBack,
    /// It may be gone.
    Suspect,
    /// It is beyond this network.
    Cloud,
}

/// Says why a candidate cannot answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Rejection {
    /// The request is not for its node.
    #[error("the request is not for this node")]
    OutOfScope,
    /// This node's configuration keeps requests here.
    #[error("'[route] remote = false' keeps requests from other nodes")]
    Barred,
    /// What it has is not known.
    #[error("{0}")]
    Unknown(Arc<str>),
    /// It does not have the model.
    #[error("it does not have this model")]
    Missing,
    /// The configuration does not offer the model.
    #[error("its setting 'models' leaves this model out")]
    Hidden,
    /// The request is not for what the model is called there.
    #[error("the request is not for this model")]
    NotAllowed,
    /// The model cannot do what the request needs.
    #[error("the model {}", lack(*.0))]
    Lacks(ModelCapability),
    /// It cannot go on with an answer that another run began.
    #[error("its backend cannot go on with an answer that another one began")]
    CannotContinue,
    /// It is gone, or there is no connection to it.
    #[error("there is no connection to this node")]
    Unreachable,
    /// It is about to stop.
    #[error("this node takes no more requests, since it is about to stop")]
    Draining,
    /// Its owner keeps it for himself.
    #[error("this node's owner has paused it for others")]
    Paused,
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

    pub(super) fn points_of(&self, same: fn(&Factor) -> bool) -> f64 {
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
            Factor::Queue(1) => f.write_str("1 request waits")?,
            Factor::Queue(waiting) => write!(f, "{waiting} requests wait")?,
            Factor::Preference(place) => write!(f, "place {} of preference", u64::from(place) + 1)?,
            Factor::Speed(tokens_per_second) => write!(f, "{tokens_per_second:.1} tokens/s")?,
            Factor::FirstToken(ms) => write!(f, "first token after {ms:.0} ms")?,
            Factor::Pace { tokens_per_second, here: Some(here) } => {
                write!(f, "{:.1} times as fast as here", tokens_per_second / here.max(f64::MIN_POSITIVE))?;
            }
            Factor::Pace { tokens_per_second, here: None } => write!(f, "writes {tokens_per_second:.1} tokens/s")?,
            Factor::GpuMemory(0) => f.write_str("not measured, no GPU")?,
            Factor::GpuMemory(mb) => write!(f, "not measured, {:.1} GB of GPU memory", mb as f64 / 1024.0)?,
            Factor::Away => f.write_str("another node")?,
            Factor::Latency(ms) => write!(f, "{ms:.1} ms away")?,
            Factor::SameWeights => f.write_str("the same weights")?,
            Factor::ContextShort { context_tokens, needed_tokens } => {
                write!(f, "its context holds {context_tokens} of {needed_tokens} tokens")?;
            }
            Factor::HeldBack => f.write_str("it lately refused or asked for less")?,
            Factor::Suspect => f.write_str("it may be gone")?,
            Factor::Cloud => f.write_str("in the cloud")?,
        }
        write!(f, " ({:+.1})", self.points)
    }
}
