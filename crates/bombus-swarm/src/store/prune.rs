//! Generations begin and go: what is kept of tasks, and for how long.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bombus_core::identity::NodeId;
use bombus_core::topics::TaskGenerations;
use orbitdb::Database;
use orbitdb::cid::Hash;
use tokio::time::{sleep, timeout};

use super::error::StoreError;
use super::generations::Generation;
use super::handle::TaskStore;
use super::ledger::Ledger;
use super::retention::{Facts, Plan, Retention, WhyKept, follow, plan};
use super::series::{GENERATION_MAX, names};
use super::sweep::{named_in, with_parts};
use crate::db::DbError;

/// What was opened so short a time ago stays, since more of it may be on its way.
const SETTLED: Duration = Duration::from_secs(600);
/// How long who writes to a generation that is to go may take.
const WRITERS_LIMIT: Duration = Duration::from_secs(5);
/// How long peers may take until their new tasks go to a new generation. Only then those go that are not needed any more.
const PEERS_LIMIT: Duration = Duration::from_secs(30);
/// Time between two looks whether they have.
const PEERS_LOOK: Duration = Duration::from_millis(50);

/// A generation that went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppedGeneration {
    /// Which one.
    pub generation: u64,
    /// Tasks in it.
    pub tasks: usize,
    /// Bytes that it took in the storage, with the large texts that only it had.
    pub bytes: u64,
}

/// A generation that stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptGeneration {
    /// Which one.
    pub generation: u64,
    /// Tasks in it.
    pub tasks: usize,
    /// Why it stays.
    pub why: WhyKept,
}

/// What became of generations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The generation that has begun.
    pub begun: Option<u64>,
    /// Those that went, oldest first.
    pub dropped: Vec<DroppedGeneration>,
    /// Those that stay, oldest first.
    pub kept: Vec<KeptGeneration>,
}

impl TaskStore {
    /// Says which generations this node has, for its peers.
    #[must_use]
    pub fn generations(&self) -> TaskGenerations {
        let open: Vec<u64> = self.inner.generations.numbers().into_iter().collect();
        let newest = open.last().copied();
        let told = self.told().clone();
        let new = Some(self.inner.generations.for_new().number);
        let is_had_by_all = |number: u64| told.values().all(|told| told.open.contains(&number));
        let lacked: Vec<u64> =
            open.iter().copied().filter(|number| Some(*number) != newest && !is_had_by_all(*number)).collect();
        if lacked.is_empty() {
            return TaskGenerations { open, unfinished: Vec::new(), new };
        }
        // What a requester that is there has not finished, it says itself.
        let me = self.inner.node.as_str();
        let present: HashSet<&str> = told.keys().map(NodeId::as_str).filter(|peer| *peer != me).collect();
        let nobody_elses = |requester: &str, _| present.contains(requester);
        let facts = self.inner.table.facts(self.now_ms(), |_| false, nobody_elses);
        let is_unfinished = |number: &u64| facts.get(number).is_some_and(|facts| facts.unfinished > 0);
        TaskGenerations { open, unfinished: lacked.into_iter().filter(is_unfinished).collect(), new }
    }

    /// Returns the numbers of the generations that are open, lowest first.
    #[must_use]
    pub fn open_generations(&self) -> Vec<u64> {
        self.inner.generations.numbers().into_iter().collect()
    }

    /// Takes what the peers that are there say of their generations: those that are new are opened here, and older ones that were not dropped
    /// here, or in which something is left to do.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when one cannot be opened; it is tried again when this is called the next time.
    pub async fn heard(&self, told: BTreeMap<NodeId, TaskGenerations>) -> Result<(), StoreError> {
        let generations = &self.inner.generations;
        let said: Vec<&TaskGenerations> = told.values().collect();
        let ledger = &mut *generations.ledger.lock().await;
        self.told().clone_from(&told);
        let follow = follow(&generations.numbers(), |number| ledger.has_dropped(number), &said);
        // The newest first: what peers offer is in it.
        for number in follow.open.into_iter().rev() {
            if !ledger.dropping.contains(&number) {
                self.open_generation(ledger, number).await?;
            }
        }
        if let Some(beyond) =
            follow.beyond.filter(|beyond| self.inner.warned_of.swap(*beyond, Ordering::Relaxed) != *beyond)
        {
            tracing::warn!(
                generation = beyond,
                "a peer has a generation of tasks that is not opened here: it is far ahead of what others have, or too many are open"
            );
        }
        generations.choose_for_new(&said);
        Ok(())
    }

    /// Has new tasks go to the newest generation that all these peers have, and returns which one that is.
    pub fn turn(&self, told: &BTreeMap<NodeId, TaskGenerations>) -> u64 {
        let generations = &self.inner.generations;
        generations.choose_for_new(&told.values().collect::<Vec<_>>());
        generations.for_new().number
    }

    /// Begins the next generation where this one is full, and drops those that need not be kept any longer. For those that look after the
    /// store by themselves, now and then.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when something cannot be written; what has begun is finished the next time.
    pub async fn tend(&self, retention: Retention) -> Result<Pruned, StoreError> {
        let generations = &self.inner.generations;
        let ledger = &mut *generations.ledger.lock().await;
        self.finish(ledger).await?;
        let (facts, plan) = self.plan(ledger, retention, SETTLED);
        let begun = if plan.begins { self.begin(ledger).await? } else { None };
        self.carry_out(ledger, &facts, plan, begun).await
    }

    /// Does the same at once, because somebody wants it: also what was opened a short time ago may go, and peers are waited for up
    /// to 30 s until their new tasks go to the next one.
    ///
    /// # Errors
    ///
    /// As [`TaskStore::tend`].
    pub async fn prune(&self, retention: Retention) -> Result<Pruned, StoreError> {
        let generations = &self.inner.generations;
        let begun = {
            let ledger = &mut *generations.ledger.lock().await;
            self.finish(ledger).await?;
            let (_, plan) = self.plan(ledger, retention, Duration::ZERO);
            if plan.begins { self.begin(ledger).await? } else { None }
        };
        let turned = async {
            while self.new_from() < generations.newest().number {
                sleep(PEERS_LOOK).await;
            }
        };
        if timeout(PEERS_LIMIT, turned).await.is_err() {
            tracing::info!("the new tasks of some peer do not go to the newest generation yet: older ones stay");
        }
        let ledger = &mut *generations.ledger.lock().await;
        let (facts, plan) = self.plan(ledger, retention, Duration::ZERO);
        self.carry_out(ledger, &facts, plan, begun).await
    }

    /// Says what [`TaskStore::prune`] would do now. The bytes are without large texts: which of them are needed is not looked up.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the storage cannot be seen.
    pub async fn prune_in_mind(&self, retention: Retention) -> Result<Pruned, StoreError> {
        let generations = &self.inner.generations;
        let ledger = &*generations.ledger.lock().await;
        let (facts, plan) = self.plan(ledger, retention, Duration::ZERO);
        let next = generations.newest().number + 1;
        let mut pruned = Pruned { begun: plan.begins.then_some(next), ..Pruned::default() };
        for number in plan.drop {
            let bytes = match generations.get(number) {
                Some(generation) => stored_bytes(&generation)?,
                None => 0,
            };
            pruned.dropped.push(DroppedGeneration { generation: number, tasks: tasks_of(&facts, number), bytes });
        }
        pruned.kept = kept(&facts, plan.kept);
        Ok(pruned)
    }

    /// Returns the generation before which nothing new comes any more, as far as that is known.
    fn new_from(&self) -> u64 {
        let (generations, told) = (&self.inner.generations, self.told().clone());
        let told: Vec<&TaskGenerations> = told.values().collect();
        generations.choose_for_new(&told);
        generations.new_from(&told)
    }

    /// Keeps the tasks of these batches, since what is to be done next depends on how they ended; without any set, those of all batches.
    pub fn hold_batches(&self, batches: Option<BTreeSet<String>>) {
        *self.batches() = batches;
    }

    fn batches(&self) -> MutexGuard<'_, Option<BTreeSet<String>>> {
        self.inner.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn told(&self) -> MutexGuard<'_, BTreeMap<NodeId, TaskGenerations>> {
        self.inner.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn facts(&self, ledger: &Ledger) -> Vec<Facts> {
        let told = self.told().clone();
        // A requester that has dropped a generation is done with all that it had in it: it knows its own tasks best.
        let ended_elsewhere = |requester: &str, number: u64| {
            let told = requester.parse::<NodeId>().ok().and_then(|requester| told.get(&requester));
            told.is_some_and(|told| !told.open.contains(&number) && told.open.last().is_some_and(|last| *last > number))
        };
        let batches = self.batches().clone();
        let is_held = |batch: &String| batches.as_ref().is_none_or(|batches| batches.contains(batch));
        let mut facts = self.inner.table.facts(self.now_ms(), is_held, ended_elsewhere);
        for (number, facts) in &mut facts {
            facts.since = ledger.open.get(number).copied().unwrap_or_default();
        }
        facts.into_values().collect()
    }

    fn plan(&self, ledger: &Ledger, retention: Retention, settled: Duration) -> (Vec<Facts>, Plan) {
        let facts = self.facts(ledger);
        let plan = plan(&facts, retention, settled, self.now_ms());
        (facts, plan)
    }

    async fn begin(&self, ledger: &mut Ledger) -> Result<Option<u64>, StoreError> {
        let newest = self.inner.generations.newest().number;
        let free = |number: &u64| !ledger.has_dropped(*number) && !ledger.dropping.contains(number);
        let Some(next) = (newest + 1..=GENERATION_MAX).find(free) else { return Ok(None) };
        self.open_generation(ledger, next).await?;
        tracing::info!(generation = next, "a generation of tasks begins");
        Ok(Some(next))
    }

    async fn open_generation(&self, ledger: &mut Ledger, number: u64) -> Result<(), StoreError> {
        let inner = &self.inner;
        let before = ledger.clone();
        ledger.keep(number, self.now_ms());
        inner.generations.write(ledger.clone()).await?;
        match Generation::open(&inner.db, &inner.table, number, Some(Instant::now())).await {
            Ok(generation) => {
                inner.generations.insert(generation);
                Ok(())
            }
            Err(error) => {
                inner.table.drop_generation(number);
                *ledger = before;
                inner.generations.write(ledger.clone()).await?;
                Err(error.into())
            }
        }
    }

    async fn carry_out(
        &self,
        ledger: &mut Ledger,
        facts: &[Facts],
        mut plan: Plan,
        begun: Option<u64>,
    ) -> Result<Pruned, StoreError> {
        let mut pruned = Pruned { begun, ..Pruned::default() };
        // Peers may not have the next one yet, and then this one is still written to: what they write to it is not to be lost.
        let new_from = self.new_from();
        for number in std::mem::take(&mut plan.drop) {
            if number >= new_from {
                plan.kept.push((number, WhyKept::Busy));
                continue;
            }
            match self.drop_generation(ledger, number).await? {
                Some(bytes) => {
                    let tasks = tasks_of(facts, number);
                    tracing::info!(generation = number, tasks, bytes, "a generation of tasks was dropped");
                    pruned.dropped.push(DroppedGeneration { generation: number, tasks, bytes });
                }
                None => plan.kept.push((number, WhyKept::Busy)),
            }
        }
        if let Some(begun) = begun.filter(|begun| plan.kept.iter().all(|(number, _)| number != begun)) {
            plan.kept.push((begun, WhyKept::Newest));
        }
        plan.kept.sort_unstable_by_key(|(number, _)| *number);
        pruned.kept = kept(facts, plan.kept);
        Ok(pruned)
    }

    /// Drops a generation, unless something that has not ended came to it just now. Returns how many bytes are free now.
    async fn drop_generation(&self, ledger: &mut Ledger, number: u64) -> Result<Option<u64>, StoreError> {
        let inner = &self.inner;
        let Some(generation) = inner.generations.get(number) else { return Ok(None) };
        let is_still_over =
            || self.facts(ledger).iter().any(|facts| facts.generation == number && facts.unfinished == 0);
        let bytes = stored_bytes(&generation)?;
        let closed = timeout(WRITERS_LIMIT, generation.close_for_writers(is_still_over)).await;
        if !closed.unwrap_or(false) {
            return Ok(None);
        }
        // From here on a crash, or a failure, leaves what is finished the next time.
        ledger.begin_dropping(number);
        inner.generations.remove(number);
        inner.table.drop_generation(number);
        drop(generation);
        inner.generations.write(ledger.clone()).await?;
        Ok(Some(bytes + self.finish_one(ledger, number).await?))
    }

    /// Finishes what was begun before, and removes what could not be removed then.
    async fn finish(&self, ledger: &mut Ledger) -> Result<(), StoreError> {
        if !ledger.dropping.is_empty() {
            // The mark may not have been written when it was made.
            self.inner.generations.write(ledger.clone()).await?;
        }
        for number in ledger.dropping.clone() {
            self.finish_one(ledger, number).await?;
        }
        if ledger.left.is_empty() {
            return Ok(());
        }
        let before = std::mem::take(&mut ledger.left);
        let blocks = before.iter().filter_map(|block| block.parse().ok()).collect();
        let (_, left) = self.remove_texts(blocks).await;
        ledger.leave(left.iter().map(Hash::to_string));
        if ledger.left.len() != before.len() {
            self.inner.generations.write(ledger.clone()).await?;
        }
        Ok(())
    }

    /// Removes what is left of a generation whose end has begun: first the texts that only it had, as its entries say which these are, then the
    /// databases. Returns how many bytes the texts had.
    async fn finish_one(&self, ledger: &mut Ledger, number: u64) -> Result<u64, StoreError> {
        let db = &self.inner.db;
        let [tasks, results, events] = names(number);
        let mut databases: Vec<Database> = Vec::new();
        for name in [&tasks, &results] {
            match db.database(name) {
                Some(database) => databases.push(database),
                None => match db.open(name).await {
                    Ok(database) => databases.push(database),
                    // One that is half gone stands in the list until it is gone.
                    Err(DbError::NotFound(_) | DbError::NotReached { .. }) => {}
                    Err(error) => return Err(error.into()),
                },
            }
        }
        let named = named_in(databases).await?;
        let (removed, left) = self.remove_texts(with_parts(db, named).await?).await;
        for name in [events, results, tasks] {
            match db.drop(&name).await {
                Ok(()) | Err(DbError::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        ledger.dropped(number, left.iter().map(Hash::to_string));
        self.inner.generations.write(ledger.clone()).await?;
        Ok(removed.bytes)
    }
}

fn stored_bytes(generation: &Generation) -> Result<u64, StoreError> {
    let mut bytes = 0;
    for database in generation.databases() {
        bytes += database.info()?.stored_bytes;
    }
    Ok(bytes)
}

fn tasks_of(facts: &[Facts], number: u64) -> usize {
    facts.iter().find(|facts| facts.generation == number).map_or(0, |facts| facts.tasks)
}

fn kept(facts: &[Facts], kept: Vec<(u64, WhyKept)>) -> Vec<KeptGeneration> {
    let of = |(generation, why)| KeptGeneration { generation, tasks: tasks_of(facts, generation), why };
    kept.into_iter().map(of).collect()
}
