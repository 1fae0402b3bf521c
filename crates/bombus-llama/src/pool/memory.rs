//! Who gets the memory: models that are asked for and not loaded wait in a line, and others leave for the first of them.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use bombus_infer::BackendError;
use bombus_infer::models::LocalModel;
use tokio::time::Instant;
use tracing::Span;

use super::{Engine, Key, Pool, RETRY_AFTER, Reply, State, join, refuse};
use crate::pool::plan::Need;

/// How long models that have to leave for the first in the line still get new requests. A model that nobody uses leaves at once.
const PATIENCE: Duration = Duration::from_secs(2);

/// Requests for one model that is to be loaded.
pub(super) struct Waiting {
    pub(super) model: Box<LocalModel>,
    pub(super) replies: Vec<Reply>,
    since: Instant,
    /// Since when it is the first in the line.
    first_since: Option<Instant>,
    /// Under whose name the loading is logged.
    span: Span,
    /// Models that leave when their requests are done.
    leaving: HashSet<Key>,
}

impl Waiting {
    pub(super) fn new(model: Box<LocalModel>, replies: Vec<Reply>) -> Self {
        let since = Instant::now();
        Self { model, replies, since, first_since: None, span: Span::current(), leaving: HashSet::new() }
    }
}

impl Pool {
    /// Returns whether a new request for a model has to get into the line: so that others who wait for memory get their turn.
    pub(super) fn has_to_wait(&self, key: &Path) -> bool {
        let Some(first) = self.waiting.front() else { return false };
        match self.engines.get(key).map(|engine| &engine.state) {
            Some(State::Loading { .. } | State::Ready { .. }) => {
                first.leaving.contains(key) && first.first_since.is_some_and(|since| since.elapsed() >= PATIENCE)
            }
            Some(State::BackingOff { until, .. }) => *until <= Instant::now(),
            None => true,
        }
    }

    /// Puts requests into the line.
    pub(super) fn wait(&mut self, request: Waiting) {
        let same = self.waiting.iter_mut().find(|waiting| waiting.model.path == request.model.path);
        if let Some(waiting) = same {
            return join(&mut waiting.replies, request.replies, self.config.requests_max());
        }
        self.waiting.push_back(request);
    }

    /// Serves the line as far as the memory goes.
    pub(super) fn serve_waiting(&mut self) {
        while let Some(mut first) = self.waiting.pop_front() {
            first.replies.retain(|reply| !reply.is_closed());
            if first.replies.is_empty() {
                continue;
            }
            let span = first.span.clone();
            if let Some(mut first) = span.in_scope(|| self.serve(first)) {
                if first.first_since.is_none() {
                    first.first_since = Some(Instant::now());
                    first.leaving = self.leaving_for(&first.model);
                }
                self.waiting.push_front(first);
                return;
            }
        }
    }

    /// Refuses requests that have waited for as long as loading may take.
    pub(super) fn refuse_overdue(&mut self) {
        let limit = Duration::from_secs(self.config.load_timeout_s);
        for waiting in &mut self.waiting {
            if waiting.since.elapsed() >= limit {
                refuse(std::mem::take(&mut waiting.replies), &BackendError::Overloaded { retry_after: RETRY_AFTER });
            }
        }
        self.waiting.retain(|waiting| !waiting.replies.is_empty());
    }

    /// Ends processes that nobody uses, the longest unused first, if that makes enough room in the end. Returns whether there is room
    /// now: a process has its memory until it is gone.
    pub(super) fn make_room(&mut self, wanted: &Path, need_mb: u64) -> bool {
        let budget_mb = self.machine.budget_mb(&self.config);
        let mut taken_mb: u64 = self.others(wanted).map(|(_, engine)| engine.memory_mb()).sum();
        let mut idle: Vec<_> = self.others(wanted).filter(|(_, engine)| engine.is_idle()).collect();
        idle.sort_by_key(|(_, engine)| engine.used_at());
        let idle: Vec<(Key, u64)> = idle.iter().map(|(key, engine)| ((*key).clone(), engine.memory_mb())).collect();
        let idle_mb: u64 = idle.iter().map(|(_, memory_mb)| memory_mb).sum();
        if taken_mb - idle_mb + need_mb > budget_mb {
            return false;
        }
        for (key, memory_mb) in idle {
            if taken_mb + need_mb <= budget_mb {
                break;
            }
            self.unload(&key, "another model needs the memory");
            taken_mb -= memory_mb;
        }
        taken_mb + self.stopping.values().sum::<u64>() + need_mb <= budget_mb
    }

    /// Chooses the models that have to leave for another, the longest unused first.
    fn leaving_for(&self, model: &LocalModel) -> HashSet<Key> {
        let budget_mb = self.machine.budget_mb(&self.config);
        let need_mb = Need::of(model, &self.config).total_mb();
        let mut taken_mb: u64 = self.others(&model.path).map(|(_, engine)| engine.memory_mb()).sum();
        let mut others: Vec<_> = self.others(&model.path).filter(|(_, engine)| engine.memory_mb() > 0).collect();
        // Those that still load have not been used at all, and come last.
        others.sort_by_key(|(_, engine)| (engine.used_at().is_none(), engine.used_at()));
        let mut leaving = HashSet::new();
        for (key, engine) in others {
            if taken_mb + need_mb <= budget_mb {
                break;
            }
            taken_mb -= engine.memory_mb();
            leaving.insert(key.clone());
        }
        leaving
    }

    fn others<'p>(&'p self, wanted: &'p Path) -> impl Iterator<Item = (&'p Key, &'p Engine)> {
        self.engines.iter().filter(move |(key, _)| *key != wanted)
    }
}
