//! Who goes on with an answer that broke off.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::chat::ChatRequest;
use bombus_core::placement::{Ranked, Rejection};
use tokio::time::{Instant, sleep};

use super::continuation::is_bound_to_weights;
use super::route::{Attempted, Route};
use super::run::Begun;
use super::{Plan, entry_of};
use crate::BackendError;

/// How long a peer is waited for that is not reached just now: about as long as it takes until it is known whether it lives.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Time between the first two looks whether one is reached again; it doubles up to the longest one.
const LOOK_MIN: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_millis(800);

/// What is looked for.
pub(super) struct Search {
    route: Route,
    /// What was asked for, with what has come of the answer as its beginning.
    request: ChatRequest,
    /// The names of those that broke off.
    failed: Vec<Arc<str>>,
    /// Those of them that are peers and were not reached since: when they are again, they may go on with what their connection broke off.
    away: HashSet<Arc<str>>,
}

/// What was found.
pub(super) enum Found {
    /// Who can go on, best first.
    Plan(Plan),
    /// A peer that could go on is not reached just now, and is not known to be gone.
    Later,
    /// Nobody.
    Nobody,
}

/// Which of those that broke off are asked again, after all others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    None,
    /// Those on this node, where engines are started anew.
    Own,
    /// Peers: their connection may be back.
    Peers,
}

impl Search {
    pub(super) fn new(route: Route, request: ChatRequest, failed: Vec<Arc<str>>) -> Self {
        Self { route, request, failed, away: HashSet::new() }
    }

    /// Looks for somebody who goes on at once.
    pub(super) fn look(&mut self) -> Found {
        self.found(Again::Own)
    }

    /// Looks for somebody else than those that broke off.
    pub(super) fn look_for_others(&mut self) -> Found {
        self.found(Again::None)
    }

    /// Asks those that were found, and where none of them goes on, or a peer is to be waited for, whoever is reached within some seconds:
    /// connections break together, as with a cable, and come back one after the other.
    ///
    /// # Errors
    ///
    /// The last one of those that were asked; [`BackendError::Unavailable`] where nobody was reached in time.
    pub(super) async fn ask(mut self, mut found: Found) -> Result<Attempted<Begun>, BackendError> {
        let end = Instant::now() + WAIT_MAX;
        let mut pause = LOOK_MIN;
        let mut last = BackendError::Unavailable { reason: "no other node was reached in time".into() };
        loop {
            match found {
                Found::Plan(plan) => match self.route.clone().go_on(plan, self.request.clone()).await {
                    Err(error) if may_pass(&error) => last = error,
                    ended => return ended,
                },
                Found::Later => {}
                Found::Nobody => return Err(last),
            }
            if Instant::now() >= end {
                return Err(last);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOK_MAX);
            found = self.found(Again::Peers);
        }
    }

    fn found(&mut self, again: Again) -> Found {
        let weights = self.request.resume.as_ref().and_then(|resume| resume.sha256.clone());
        let mut plan = self.route.plan_to_go_on(weights.clone());
        let bound = is_bound_to_weights(&self.request);
        let has_failed = |ranked: &Ranked| self.failed.contains(&ranked.candidate.backend);
        let entries = plan.entries.clone();
        let can = |ranked: &Ranked| {
            let same_weights = weights.is_some() && ranked.model().is_some_and(|info| info.sha256 == weights);
            (!bound || same_weights) && entry_of(&entries, ranked).named.backend.can_resume(&self.request)
        };
        plan.ranking.retain(can);
        let mut is_later = false;
        for ranked in &plan.ranking {
            let Some(peer) = &ranked.candidate.peer else { continue };
            let is_away = !peer.reachable || (has_failed(ranked) && peer.suspect);
            is_later |= is_away && again != Again::None;
            if is_away && has_failed(ranked) {
                self.away.insert(ranked.candidate.backend.clone());
            }
        }
        plan.ranking.retain(|ranked| {
            let is_asked = !has_failed(ranked)
                || match &ranked.candidate.peer {
                    None => again == Again::Own,
                    Some(peer) => {
                        let is_back = !peer.suspect && self.away.contains(&ranked.candidate.backend);
                        again == Again::Peers && is_back
                    }
                };
            is_asked && !matches!(ranked.rejection(), Some(Rejection::Unreachable))
        });
        plan.ranking.sort_by_key(has_failed);
        match plan.ranking.is_empty() {
            false => Found::Plan(plan),
            true if is_later => Found::Later,
            true => Found::Nobody,
        }
    }
}

/// Returns whether an error may be none a moment later: whoever is asked is not reached, or broke off itself.
fn may_pass(error: &BackendError) -> bool {
    matches!(error, BackendError::Unavailable { .. } | BackendError::Interrupted { .. } | BackendError::TimedOut { .. })
}
