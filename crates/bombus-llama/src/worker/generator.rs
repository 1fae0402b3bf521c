//! Continuous batching: one round after the other, each computing a piece of every run.

#[cfg(test)]
mod tests;

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use bombus_core::chat::FinishReason;
use llama_cpp_2::DecodeError;
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::{LlamaModel, RopeType};
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::{LlamaStateSeqFlags, SeqState};

use super::pace::{Demand, Pace, plan};
use super::prompt::PromptReader;
use super::run::Run;
use super::sampler;
use super::shelf::{Shelf, common_prefix};
use super::{Engine, RunError};
use crate::protocol::{FromWorker, LoadOptions, RunId, ToWorker};

/// A prefix has to be at least this much longer elsewhere to be copied from there.
const COPY_TOKENS_MIN: usize = 16;

/// How often runs that are behind others are told so.
const WAITING_TOLD_EVERY: Duration = Duration::from_secs(1);

/// For how many further requests the cancel of an unknown one is remembered.
const CANCELLED_KEPT: RunId = 4_096;

/// Computes text for up to `slots` runs at a time.
pub(crate) struct Generator<'m> {
    model: &'m LlamaModel,
    context: LlamaContext<'m>,
    batch: LlamaBatch<'static>,
    batch_tokens: usize,
    prompts: &'m PromptReader<'m>,
    slots: Vec<Slot>,
    /// Caches of sequences that no run uses.
    shelf: Shelf<SeqState>,
    waiting: VecDeque<Run>,
    /// Runs that lost their slot to others because their clients take nothing. They wait again as soon as one does.
    parked: Vec<Run>,
    /// Runs that were cancelled while their prompts were being read.
    cancelled: HashSet<RunId>,
    /// Set after a run lost its slot for want of cache: nothing is admitted before another run has ended.
    cache_is_full: bool,
    /// When the runs that are behind others were last told so.
    waiting_told: Option<Instant>,
    /// Whether keys and values can be moved to other positions.
    can_shift: bool,
    pace: Pace,
    rounds: u64,
    outbox: Vec<FromWorker>,
}

/// A sequence of the KV cache, and the run that uses it.
#[derive(Default)]
struct Slot {
    /// The tokens whose keys and values are in the cache.
    cached: Vec<LlamaToken>,
    run: Option<Run>,
    /// Round of the last use.
    used_at: u64,
    /// How many of the first cells may also belong to other slots.
    shared: usize,
    /// From where on the cache is not what these tokens alone make of it, since it was computed with others before it.
    shifted_from: Option<usize>,
}

impl Slot {
    /// Returns how many of these tokens, from the first on, the cache holds as if they had been computed anew.
    fn holds(&self, tokens: &[LlamaToken]) -> usize {
        common_prefix(&self.cached, tokens).min(self.shifted_from.unwrap_or(usize::MAX))
    }

    fn demand(&self) -> Demand {
        match &self.run {
            Some(run) if !run.is_paused() => match run.tokens.len() - self.cached.len() {
                0 => Demand::Nothing,
                1 => Demand::Token,
                pending => Demand::Prompt(pending),
            },
            _ => Demand::Nothing,
        }
    }
}

impl<'m> Generator<'m> {
    pub(crate) fn new(
        model: &'m LlamaModel,
        prompts: &'m PromptReader<'m>,
        context: LlamaContext<'m>,
        options: &LoadOptions,
    ) -> Self {
        let batch_tokens = context.n_batch() as usize;
        Self {
            model,
            batch: LlamaBatch::new(batch_tokens, 1),
            batch_tokens,
            prompts,
            slots: (0..options.slots).map(|_| Slot::default()).collect(),
            shelf: Shelf::new(usize::try_from(options.shelf_bytes).unwrap_or(usize::MAX)),
            waiting: VecDeque::new(),
            parked: Vec::new(),
            cancelled: HashSet::new(),
            cache_is_full: false,
            waiting_told: None,
            can_shift: can_shift(model),
            pace: Pace::default(),
            rounds: 0,
            outbox: Vec::new(),
            context,
        }
    }

    /// Allows a run to send more events.
    fn add_credit(&mut self, id: RunId, events: u32) {
        if let Some(index) = self.parked.iter().position(|run| run.id == id) {
            let mut run = self.parked.remove(index);
            run.credit += i64::from(events);
            return self.waiting.push_front(run);
        }
        let mut runs = self.slots.iter_mut().filter_map(|slot| slot.run.as_mut()).chain(&mut self.waiting);
        if let Some(run) = runs.find(|run| run.id == id) {
            run.credit += i64::from(events);
        }
    }

    /// Ends a run of which nobody wants to hear any more. What it has computed stays in the cache.
    fn cancel(&mut self, id: RunId) {
        let before = self.waiting.len() + self.parked.len();
        self.waiting.retain(|run| run.id != id);
        self.parked.retain(|run| run.id != id);
        let mut known = self.waiting.len() + self.parked.len() < before;
        for slot in &mut self.slots {
            if slot.run.as_ref().is_some_and(|run| run.id == id) {
                slot.run = None;
                self.cache_is_full = false;
                known = true;
            }
        }
        if !known {
            self.cancelled.insert(id);
        }
    }

    /// Takes the slots of paused runs away while others wait that could use them. Their caches stay until somebody needs the room.
    fn park(&mut self) {
        let lacks_slot = self.slots.iter().all(|slot| slot.run.is_some());
        if self.waiting.is_empty() || !(lacks_slot || self.cache_is_full) {
            return;
        }
        for slot in &mut self.slots {
            if slot.run.as_ref().is_some_and(Run::is_paused) {
                self.parked.extend(slot.run.take());
                self.cache_is_full = false;
            }
        }
    }

    /// Gives free slots to waiting runs, oldest first, each the one in which most of its prompt is cached. Runs that begin with what
    /// another is about to compute are passed over until it has.
    fn admit(&mut self) {
        let mut next = 0;
        while !self.cache_is_full && next < self.waiting.len() {
            if self.prefix_is_being_computed(&self.waiting[next].tokens) {
                next += 1;
                continue;
            }
            let Some(target) = self.choose_slot(&self.waiting[next].tokens) else { return };
            let Some(mut run) = self.waiting.remove(next) else { return };
            let kept = self.prepare_cache(target, &run.tokens);
            run.start(kept);
            self.slots[target].run = Some(run);
            self.slots[target].used_at = self.rounds;
            self.shelve_idle();
        }
    }

    /// Tells the runs that are behind others that this is why nothing comes of them: those that wait for a slot, or for room, and those
    /// whose answer is computed again since others had needed their room.
    fn tell_waiting(&mut self) {
        if self.waiting_told.is_some_and(|told| told.elapsed() < WAITING_TOLD_EVERY) {
            return;
        }
        let behind = |slot: &Slot| {
            let run = slot.run.as_ref().filter(|run| run.catches_up(slot.cached.len()));
            run.map(|run| run.id)
        };
        let waiting = self.waiting.iter().map(|run| run.id);
        let ids: Vec<RunId> = waiting.chain(self.slots.iter().filter_map(behind)).collect();
        if !ids.is_empty() {
            self.waiting_told = Some(Instant::now());
            self.outbox.push(FromWorker::Waiting { ids });
        }
    }

    /// Puts the caches away that no run uses, where they can be put back.
    fn shelve_idle(&mut self) {
        for slot in 0..self.slots.len() {
            if self.is_idle(slot) {
                self.shelve(slot);
            }
        }
    }

    /// Puts a slot's cache away. It stays where it is if the shelf cannot take it.
    fn shelve(&mut self, slot: usize) {
        if self.copy_to_shelf(slot) {
            self.clear_slot(slot);
        }
    }

    /// Puts a copy of a slot's cache away. Returns whether there is one then.
    fn copy_to_shelf(&mut self, slot: usize) -> bool {
        if self.is_on_shelf(slot) {
            return true;
        }
        let flags = LlamaStateSeqFlags::empty();
        if let Some(exact) = self.slots[slot].shifted_from {
            self.cut_cache(slot, exact);
        }
        // The state of a recurrent model cannot go back to an earlier token, and takes no cells.
        if self.slots[slot].cached.is_empty() || !self.shares_cache() {
            return false;
        }
        if !self.shelf.takes(self.context.state_seq_get_size_ext(sequence(slot), flags)) {
            return false;
        }
        let Ok(state) = self.context.state_seq_get(sequence(slot), flags) else { return false };
        let bytes = state.byte_len();
        self.shelf.put(self.slots[slot].cached.clone(), state, bytes);
        true
    }

    /// Returns whether there is a copy of the slot's whole cache.
    fn is_on_shelf(&self, slot: usize) -> bool {
        let slot = &self.slots[slot];
        slot.shifted_from.is_none() && self.shelf.longest_prefix(&slot.cached) == slot.cached.len()
    }

    /// Copies the longest unused cache that has no copy yet, and takes it out of its slot. The youngest cache also stays in its slot,
    /// where its conversation finds it at once.
    fn shelve_longest_unused(&mut self) -> bool {
        let mut idle: Vec<usize> = (0..self.slots.len()).filter(|slot| self.is_idle(*slot)).collect();
        idle.sort_by_key(|slot| self.slots[*slot].used_at);
        let Some(youngest) = idle.pop() else { return false };
        for slot in idle {
            if self.copy_to_shelf(slot) {
                self.clear_slot(slot);
                return true;
            }
        }
        !self.is_on_shelf(youngest) && self.copy_to_shelf(youngest)
    }

    /// Returns whether a slot has a cache and no run.
    fn is_idle(&self, slot: usize) -> bool {
        self.slots[slot].run.is_none() && !self.slots[slot].cached.is_empty()
    }

    /// Brings the cache back that holds most of `tokens`, into a slot that has less of them.
    fn unshelve(&mut self, target: usize, tokens: &[LlamaToken]) {
        self.shelve(target);
        self.clear_slot(target);
        let Some((cached, state)) = self.shelf.take(tokens) else { return };
        match self.context.state_seq_set(&state, sequence(target)) {
            Ok(()) => self.slots[target].cached = cached,
            Err(error) => {
                tracing::debug!("a cache that was put away has no room now: {error}");
                self.clear_slot(target);
            }
        }
    }

    /// Returns whether another run is about to compute what these tokens begin with, so that it can be taken from there.
    fn prefix_is_being_computed(&self, tokens: &[LlamaToken]) -> bool {
        let is_ahead = |(index, slot): (usize, &Slot)| {
            let computing = slot.run.as_ref().filter(|run| !run.is_paused());
            let shared = computing.map_or(0, |run| common_prefix(&run.tokens, tokens).min(tokens.len() - 1));
            let shared = shared.min(slot.shifted_from.unwrap_or(usize::MAX));
            shared >= slot.cached.len() + COPY_TOKENS_MIN && (slot.cached.is_empty() || self.holds_all(index))
        };
        self.shares_cache() && self.slots.iter().enumerate().any(is_ahead)
    }

    /// Chooses a free slot. A cache that would mostly be thrown away is left alone while another slot is free.
    fn choose_slot(&self, tokens: &[LlamaToken]) -> Option<usize> {
        let free = || self.slots.iter().enumerate().filter(|(_, slot)| slot.run.is_none());
        let (best, slot) = free().max_by_key(|(_, slot)| slot.holds(tokens))?;
        if slot.holds(tokens) * 2 > slot.cached.len() {
            return Some(best);
        }
        free().min_by_key(|(_, slot)| (!slot.cached.is_empty(), slot.used_at)).map(|(index, _)| index)
    }

    /// Brings as much of `tokens` as possible into the slot's cache without computing, and returns how much that is.
    fn prepare_cache(&mut self, target: usize, tokens: &[LlamaToken]) -> usize {
        // The last token is computed in any case, since its output is needed.
        let reusable = |slot: &Slot| slot.holds(tokens).min(tokens.len() - 1);
        let in_slots = self.slots.iter().map(reusable).max().unwrap_or(0);
        if self.shelf.longest_prefix(tokens).min(tokens.len() - 1) >= in_slots + COPY_TOKENS_MIN {
            self.unshelve(target, tokens);
        } else if reusable(&self.slots[target]) * 2 < self.slots[target].cached.len() {
            // Most of it belongs to a conversation that may go on, and would be lost.
            self.copy_to_shelf(target);
        }
        let own = reusable(&self.slots[target]);
        let longest = self.slots.iter().map(reusable).enumerate().max_by_key(|(_, shared)| *shared);
        let (source, shared) = longest.unwrap_or((target, own));
        if shared >= own + COPY_TOKENS_MIN && self.shares_cache() && self.holds_all(source) {
            self.clear_slot(target);
            let end = u32::try_from(shared).ok();
            if self.context.copy_kv_cache_seq(sequence(source), sequence(target), Some(0), end).is_ok() {
                self.slots[target].cached = tokens[..shared].to_vec();
                for slot in [source, target] {
                    self.slots[slot].shared = self.slots[slot].shared.max(shared);
                }
            }
        } else if self.slots[target].cached.len() > own {
            self.cut_cache(target, own);
        }
        self.slots[target].cached.len()
    }

    /// Returns whether a part of one sequence can be shared with another.
    fn shares_cache(&self) -> bool {
        !self.model.is_recurrent() && !self.model.is_hybrid()
    }

    /// Returns whether nothing has slid out of the slot's cache, as it does with sliding-window attention.
    fn holds_all(&self, slot: usize) -> bool {
        self.context.kv_cache_seq_pos_min(sequence(slot)) == 0
    }

    /// Forgets what is cached from a position on, or everything where only that is possible.
    fn cut_cache(&mut self, slot: usize, from: usize) {
        // Models with a recurrent state can't forget only the end.
        if from > 0 && self.holds_all(slot) && self.trim(slot, from) {
            let slot = &mut self.slots[slot];
            slot.cached.truncate(from);
            slot.shared = slot.shared.min(from);
            slot.shifted_from = slot.shifted_from.filter(|shifted| *shifted < from);
        } else {
            self.clear_slot(slot);
        }
    }

    /// Forgets what is cached from a position on. Returns whether that was possible.
    fn trim(&mut self, slot: usize, from: usize) -> bool {
        let sequence = sequence(slot).unsigned_abs();
        matches!(self.context.clear_kv_cache_seq(Some(sequence), u32::try_from(from).ok(), None), Ok(true))
    }

    fn clear_slot(&mut self, slot: usize) {
        let cleared = self.context.clear_kv_cache_seq(Some(sequence(slot).unsigned_abs()), None, None);
        debug_assert!(matches!(cleared, Ok(true)), "removing a whole sequence cannot fail");
        let slot = &mut self.slots[slot];
        slot.cached.clear();
        slot.shared = 0;
        slot.shifted_from = None;
    }

    /// Fills the batch by the plan and returns which slots have an output, each with its index in the batch.
    fn fill_batch(&mut self, shares: &[usize]) -> Vec<(usize, i32)> {
        self.batch.clear();
        let mut outputs = Vec::new();
        for (index, (slot, share)) in self.slots.iter().zip(shares).enumerate() {
            let Some(run) = &slot.run else { continue };
            let from = slot.cached.len();
            for (position, token) in run.tokens.iter().enumerate().skip(from).take(*share) {
                let is_last = position + 1 == run.tokens.len();
                if is_last {
                    outputs.push((index, self.batch.n_tokens()));
                }
                let position = i32::try_from(position).expect("a context has fewer than 2^31 tokens");
                self.batch
                    .add(*token, position, &[sequence(index)], is_last)
                    .expect("the plan never exceeds the size of the batch");
            }
        }
        outputs
    }

    /// Chooses the next token of a run from the batch's output at `index`.
    fn advance(&mut self, slot: usize, index: i32) -> Result<(), RunError> {
        let run = self.slots[slot].run.as_mut().expect("only runs have outputs");
        run.note_prompt_computed();
        if run.is_full() {
            self.finish(slot, FinishReason::Length);
            return Ok(());
        }
        let token = run.sampler.sample(&self.context, index)?;
        if self.prompts.end_tokens().contains(&token) {
            self.finish(slot, FinishReason::Stop);
            return Ok(());
        }
        let logprob = run.logprobs.map(|top| {
            let bytes_of = |token| self.prompts.bytes_of(token, true);
            sampler::logprobs(self.context.get_logits_ith(index), token, top, bytes_of)
        });
        let bytes = self.prompts.bytes_of(token, run.shows_control_tokens());
        let mut events = Vec::new();
        let ended = run.take_token(token, &bytes, logprob, &mut events);
        run.credit -= i64::try_from(events.len()).expect("a token makes a handful of events");
        let id = run.id;
        self.outbox.extend(events.into_iter().map(|event| FromWorker::Event { id, event }));
        match ended {
            Some(reason) => self.finish(slot, reason),
            None => self.shift(slot),
        }
        Ok(())
    }

    /// Makes room in a run's context where it is full and the run may go on: the oldest half is forgotten, and what follows moves up.
    /// Where the cache cannot move, what follows is computed again.
    fn shift(&mut self, slot: usize) {
        let Some(dropped) = self.slots[slot].run.as_mut().and_then(Run::shift) else { return };
        tracing::debug!(tokens = dropped.len(), "a full context forgets its oldest tokens");
        let is_own = self.slots[slot].shared <= dropped.end && dropped.end <= self.slots[slot].cached.len();
        if is_own && self.can_shift && self.holds_all(slot) && self.move_up(slot, &dropped) {
            let slot = &mut self.slots[slot];
            slot.cached.drain(dropped.clone());
            slot.shared = slot.shared.min(dropped.start);
            slot.shifted_from = Some(slot.shifted_from.map_or(dropped.start, |from| from.min(dropped.start)));
        } else {
            let kept = dropped.start.min(self.slots[slot].cached.len());
            self.cut_cache(slot, kept);
        }
    }

    /// Takes cells out of a slot's sequence and moves those behind them to their places. Returns whether that was possible.
    fn move_up(&mut self, slot: usize, dropped: &Range<usize>) -> bool {
        let (Ok(from), Ok(to)) = (u32::try_from(dropped.start), u32::try_from(dropped.end)) else { return false };
        let Ok(distance) = i32::try_from(dropped.len()) else { return false };
        self.context.kv_cache_seq_rm(sequence(slot), Some(from), Some(to)).is_ok()
            && self.context.kv_cache_seq_add(sequence(slot), Some(to), None, -distance).is_ok()
    }

    fn finish(&mut self, slot: usize, reason: FinishReason) {
        if let Some(run) = self.slots[slot].run.take() {
            let id = run.id;
            self.outbox.extend(run.finish(reason).into_iter().map(|event| FromWorker::Event { id, event }));
            self.cache_is_full = false;
        }
    }

    fn fail(&mut self, slot: usize, error: RunError) {
        if let Some(run) = self.slots[slot].run.take() {
            self.outbox.push(FromWorker::Failed { id: run.id, error });
            self.cache_is_full = false;
        }
    }

    /// Frees cache for a batch that did not fit: first what no run uses, then the youngest run, which is computed again later.
    fn make_room(&mut self) {
        let is_idle = |slot: &Slot| slot.run.is_none() && !slot.cached.is_empty();
        let idle = (0..self.slots.len()).filter(|index| is_idle(&self.slots[*index]));
        if let Some(oldest) = idle.min_by_key(|index| self.slots[*index].used_at) {
            self.shelve(oldest);
            return self.clear_slot(oldest);
        }
        let running: Vec<usize> = (0..self.slots.len()).filter(|index| self.slots[*index].run.is_some()).collect();
        let age = |index: &&usize| self.slots[**index].run.as_ref().map(|run| run.id);
        let Some(&youngest) = running.iter().max_by_key(age) else { return };
        if running.len() > 1 {
            tracing::info!("the KV cache is full: a run waits until another has ended");
            if let Some(run) = self.slots[youngest].run.take() {
                self.waiting.push_front(run);
            }
            self.shelve(youngest);
            self.cache_is_full = true;
        } else if self.slots[youngest].run.as_ref().is_some_and(Run::is_generating) {
            // A single run has the whole cache to itself, so its context is full.
            self.finish(youngest, FinishReason::Length);
        } else {
            self.fail(youngest, RunError::Interrupted("the KV cache has no room for this prompt".into()));
        }
        self.clear_slot(youngest);
    }

    /// Ends the runs of a batch that could not be computed.
    fn give_up(&mut self, shares: &[usize], error: &DecodeError) {
        tracing::error!("a batch could not be computed: {error}");
        for slot in (0..self.slots.len()).filter(|slot| shares[*slot] > 0) {
            self.fail(slot, RunError::Interrupted(format!("llama.cpp could not compute it: {error}")));
            self.clear_slot(slot);
        }
    }
}

impl Engine for Generator<'_> {
    fn take(&mut self, message: ToWorker) {
        match message {
            ToWorker::Credit { id, events } => self.add_credit(id, events),
            ToWorker::Cancel { id } => self.cancel(id),
            ToWorker::Load(_) | ToWorker::Chat { .. } | ToWorker::Embed { .. } => {
                tracing::error!("a message that a text model cannot serve");
            }
        }
    }

    fn take_prepared(&mut self, id: RunId, prepared: Result<Run, RunError>) {
        let was_cancelled = self.cancelled.remove(&id);
        // Cancels of runs that had just ended by themselves are remembered for nothing, and not for long.
        self.cancelled.retain(|cancelled| cancelled.saturating_add(CANCELLED_KEPT) > id);
        if was_cancelled {
            return;
        }
        match prepared {
            Ok(run) => match run.ended() {
                Some(reason) => {
                    self.outbox.extend(run.finish(reason).into_iter().map(|event| FromWorker::Event { id, event }));
                }
                None => self.waiting.push_back(run),
            },
            Err(error) => self.outbox.push(FromWorker::Failed { id, error }),
        }
    }

    fn has_work(&self) -> bool {
        let admits = |slot: &Slot| slot.run.as_ref().is_none_or(Run::is_paused);
        self.slots.iter().any(|slot| slot.demand() != Demand::Nothing)
            || (!self.waiting.is_empty() && self.slots.iter().any(admits))
    }

    fn round(&mut self) {
        self.rounds += 1;
        self.park();
        self.admit();
        self.tell_waiting();
        let demands: Vec<Demand> = self.slots.iter().map(Slot::demand).collect();
        let shares = plan(&demands, self.batch_tokens, self.pace.prompt_tokens(self.batch_tokens));
        let outputs = self.fill_batch(&shares);
        let computed = self.batch.n_tokens();
        if computed == 0 {
            return;
        }
        let begun = Instant::now();
        match self.context.decode(&mut self.batch) {
            Ok(()) => {}
            Err(DecodeError::NoKvCacheSlot) => return self.make_room(),
            Err(error) => return self.give_up(&shares, &error),
        }
        self.context.synchronize();
        self.pace.record(computed.unsigned_abs() as usize, begun.elapsed());
        for (slot, share) in self.slots.iter_mut().zip(&shares) {
            if let Some(run) = &slot.run {
                let from = slot.cached.len();
                slot.cached.extend_from_slice(&run.tokens[from..from + share]);
                slot.used_at = self.rounds;
            }
        }
        for (slot, index) in outputs {
            if let Err(error) = self.advance(slot, index) {
                self.fail(slot, error);
            }
        }
    }

    fn tidy(&mut self) -> bool {
        self.shelve_longest_unused()
    }

    fn take_messages(&mut self) -> impl Iterator<Item = FromWorker> {
        self.outbox.drain(..)
    }
}

/// Returns whether llama.cpp can move the keys and values of a model to other positions. Where it cannot it would end the process, so only
/// architectures that are known for it are asked to.
fn can_shift(model: &LlamaModel) -> bool {
    const ARCHITECTURES: [&str; 7] = ["gemma", "granite", "llama", "phi3", "qwen2", "qwen3", "smollm3"];
    let architecture = model.meta_val_str("general.architecture").unwrap_or_default();
    ARCHITECTURES.contains(&architecture.as_str())
        && matches!(model.rope_type(), Some(RopeType::Norm | RopeType::NeoX))
        && !model.is_recurrent()
        && !model.is_hybrid()
}

/// Returns the number of a slot's sequence in the KV cache.
fn sequence(slot: usize) -> i32 {
    i32::try_from(slot).expect("there are at most 256 slots")
}
