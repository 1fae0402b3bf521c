//! What holds of everything that can be written.

use proptest::prelude::*;
use proptest::sample::Index;

use super::story::{J, K, R, Story, V, W, failure};
use super::*;

/// Somebody writes something, whether that makes sense or not. The proofs are good.
#[derive(Debug, Clone)]
enum Step {
    Grant { epoch: u64, worker: u8 },
    Honour { epoch: u64, bidder: u8 },
    Release { epoch: u64 },
    GiveBack { who: u8, epoch: u64 },
    Claim { who: u8, epoch: u64 },
    Running { who: u8, epoch: u64 },
    Answer { who: u8, to: Index },
    Fail { who: u8, to: Index },
    Plain { who: u8, status: TaskStatus },
    PlainResult { who: u8, failed: bool },
    Cancel { who: u8 },
    Settle { status: TaskStatus, to: Index },
}

/// How a task is submitted.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Begins {
    /// With a proof.
    Submitted,
    /// With a proof, and granted with the same entry.
    Granted,
    /// By a peer that knows no grants.
    Plain,
}

fn begins() -> impl Strategy<Value = Begins> {
    prop_oneof![Just(Begins::Submitted), Just(Begins::Granted), Just(Begins::Plain)]
}

fn proven() -> impl Strategy<Value = Begins> {
    prop_oneof![Just(Begins::Submitted), Just(Begins::Granted)]
}

fn worker() -> impl Strategy<Value = u8> {
    prop_oneof![Just(R), Just(W), Just(V)]
}

fn foreigner() -> impl Strategy<Value = u8> {
    prop_oneof![Just(J), Just(K)]
}

fn plain_status() -> impl Strategy<Value = TaskStatus> {
    use TaskStatus::{Cancelled, Claimed, Completed, Failed, Pending, Running};
    prop::sample::select(vec![Pending, Claimed, Claimed, Claimed, Running, Completed, Failed, Cancelled])
}

fn decision() -> impl Strategy<Value = TaskStatus> {
    prop::sample::select(vec![TaskStatus::Completed, TaskStatus::Failed, TaskStatus::Cancelled])
}

/// Everything but the requester's decision.
fn undecided() -> impl Strategy<Value = Step> {
    let epoch = 0u64..5;
    prop_oneof![
        1 => (epoch.clone(), worker()).prop_map(|(epoch, worker)| Step::Grant { epoch, worker }),
        1 => (epoch.clone(), foreigner()).prop_map(|(epoch, bidder)| Step::Honour { epoch, bidder }),
        1 => epoch.clone().prop_map(|epoch| Step::Release { epoch }),
        1 => (worker(), epoch.clone()).prop_map(|(who, epoch)| Step::GiveBack { who, epoch }),
        3 => (worker(), epoch.clone()).prop_map(|(who, epoch)| Step::Claim { who, epoch }),
        1 => (worker(), epoch).prop_map(|(who, epoch)| Step::Running { who, epoch }),
        3 => (worker(), any::<Index>()).prop_map(|(who, to)| Step::Answer { who, to }),
        1 => (worker(), any::<Index>()).prop_map(|(who, to)| Step::Fail { who, to }),
        2 => (foreigner(), plain_status()).prop_map(|(who, status)| Step::Plain { who, status }),
        1 => (foreigner(), any::<bool>()).prop_map(|(who, failed)| Step::PlainResult { who, failed }),
        1 => prop_oneof![Just(V), Just(J)].prop_map(|who| Step::Cancel { who }),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => undecided(),
        1 => (decision(), any::<Index>()).prop_map(|(status, to)| Step::Settle { status, to }),
    ]
}

impl Story {
    fn claimed(&self, index: Index) -> String {
        let hashes: Vec<_> = self
            .tasks
            .iter()
            .filter(|entry| entry.value.status == TaskStatus::Claimed)
            .map(|entry| &entry.hash)
            .collect();
        if hashes.is_empty() { "zdpu-of-nothing".to_owned() } else { hashes[index.index(hashes.len())].clone() }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Grant { epoch, worker } => self.grant(R, epoch, worker),
            Step::Honour { epoch, bidder } => self.honour(R, epoch, bidder),
            Step::Release { epoch } => self.release(R, epoch, vec![failure(epoch, W, "released")]),
            Step::GiveBack { who, epoch } => self.release(who, epoch, Vec::new()),
            Step::Claim { who, epoch } => self.claim_self(who, epoch),
            Step::Running { who, epoch } => self.running(who, epoch),
            Step::Answer { who, to } => self.answer(who, &self.claimed(to)),
            Step::Fail { who, to } => self.fails(who, Some(&self.claimed(to)), "failed"),
            Step::Plain { who, status } => self.plain(who, status),
            Step::PlainResult { who, failed: true } => self.fails(who, None, "failed"),
            Step::PlainResult { who, failed: false } => self.answer_with(who, None, |_| {}),
            Step::Cancel { who } => self.settle(who, TaskStatus::Cancelled, None, None),
            Step::Settle { status, to } => {
                let grant = self.claimed(to);
                self.settle(R, status, Some(&grant), None)
            }
        };
    }

    /// A task with all that the steps say.
    fn of(begins: Begins, steps: &[Step]) -> Self {
        let mut story = Self::default();
        match begins {
            Begins::Submitted => story.submit(R),
            Begins::Granted => story.submit_granted(R, W),
            Begins::Plain => story.plain(J, TaskStatus::Pending),
        };
        steps.iter().for_each(|step| story.take(step));
        story
    }

    /// What a node has that got of each writer's entries those up to a time, as the log hands them on: none without those before it.
    fn seen(&self, until: [u64; 5]) -> Self {
        let has = |order: &Order| order.time <= until[usize::from(order.writer[0])];
        let mut seen = self.clone();
        seen.tasks.retain(|entry| has(&entry.order));
        seen.results.retain(|entry| has(&entry.order));
        seen
    }

    fn shuffled(&self, tasks: &[Index], results: &[Index]) -> Self {
        let mut shuffled = self.clone();
        for (swap, index) in tasks.iter().enumerate() {
            let len = shuffled.tasks.len();
            shuffled.tasks.swap(swap % len, index.index(len));
        }
        for (swap, index) in results.iter().enumerate().filter(|_| !self.results.is_empty()) {
            let len = shuffled.results.len();
            shuffled.results.swap(swap % len, index.index(len));
        }
        shuffled
    }
}

/// What a view says of where the task stands.
fn essence(view: &TaskView) -> impl PartialEq + std::fmt::Debug {
    let grants: Vec<_> =
        view.grants.iter().map(|grant| (grant.hash.clone(), grant.running, grant.failed.clone())).collect();
    let place = (view.requester.clone(), view.status, view.settled, view.grant.clone(), view.result_hash.clone());
    (place, grants, view.highest_epoch, view.released, view.failures.clone(), view.results.clone(), view.error.clone())
}

/// What somebody writes without the proofs that it takes.
#[derive(Debug, Clone)]
enum Forgery {
    Submit(u8),
    Grant(u8, u64),
    Claim(u8, u64),
    Release(u8, u64),
    End(u8, TaskStatus),
    Running(u8, u64),
    Answer(u8, Index, bool),
}

fn forgery() -> impl Strategy<Value = Forgery> {
    // The peers without grants have no node that could prove anything.
    let who = || prop_oneof![Just(J), Just(K)];
    let end = prop::sample::select(vec![TaskStatus::Completed, TaskStatus::Failed]);
    prop_oneof![
        who().prop_map(Forgery::Submit),
        (who(), 1u64..7).prop_map(|(who, epoch)| Forgery::Grant(who, epoch)),
        (who(), 1u64..7).prop_map(|(who, epoch)| Forgery::Claim(who, epoch)),
        (who(), 1u64..7).prop_map(|(who, epoch)| Forgery::Release(who, epoch)),
        (who(), end).prop_map(|(who, status)| Forgery::End(who, status)),
        (who(), 1u64..7).prop_map(|(who, epoch)| Forgery::Running(who, epoch)),
        (who(), any::<Index>(), any::<bool>()).prop_map(|(who, to, failed)| Forgery::Answer(who, to, failed)),
    ]
}

impl Forgery {
    /// Writes it, with everything but the writer's identity as another would have it.
    fn write(&self, story: &mut Story) -> String {
        use super::story::{identity, peer, proof};
        let forge = |task: &mut TaskDocument| {
            task.requester_peer_id = peer(R);
            task.requester_identity = Some(identity(R));
            task.requester_proof = Some(proof(R, R));
            task.worker_peer_id = Some(peer(W));
            task.worker_identity = Some(identity(W));
            task.worker_proof = Some(proof(W, W));
        };
        match *self {
            Self::Submit(who) => story.write(who, |task| {
                forge(task);
                task.prompt = "Something else?".to_owned();
            }),
            Self::Grant(who, epoch) => story.claim_with(who, epoch, |task| {
                forge(task);
                task.granted_by = Some(crate::tasks::GrantedBy::Requester);
            }),
            Self::Claim(who, epoch) => story.claim_with(who, epoch, forge),
            Self::Release(who, epoch) => story.write(who, |task| {
                forge(task);
                task.released = Some(Epoch(epoch));
            }),
            Self::End(who, status) => story.write(who, |task| {
                forge(task);
                task.status = status;
                task.settled = Some(true);
            }),
            Self::Running(who, epoch) => story.write(who, |task| {
                forge(task);
                task.status = TaskStatus::Running;
                task.epoch = Some(Epoch(epoch));
            }),
            Self::Answer(who, to, failed) => {
                let grant = story.claimed(to);
                story.answer_with(who, Some(&grant), |result| {
                    result.worker_peer_id = peer(W);
                    result.worker_identity = Some(identity(W));
                    result.worker_proof = Some(proof(W, W));
                    result.error = failed.then(|| "failed".to_owned());
                })
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_order_of_arrival_and_repetitions_change_nothing(
        begins in begins(),
        steps in prop::collection::vec(any_step(), 0..25),
        tasks in prop::collection::vec(any::<Index>(), 40),
        results in prop::collection::vec(any::<Index>(), 20),
    ) {
        let story = Story::of(begins, &steps);
        let twice = story.with(&story);
        prop_assert_eq!(story.view(), story.shuffled(&tasks, &results).view());
        prop_assert_eq!(story.view(), twice.shuffled(&tasks, &results).view());
    }

    /// The node has seen the requester's decision and, of others, anything; then everything else arrives.
    #[test]
    fn what_is_settled_never_changes(
        begins in proven(),
        before in prop::collection::vec(undecided(), 0..20),
        status in decision(),
        to in any::<Index>(),
        after in prop::collection::vec(any_step(), 0..15),
        until in prop::array::uniform5(0u64..40),
    ) {
        let mut story = Story::of(begins, &before);
        let at = story.tasks.len() as u64 + story.results.len() as u64 + 1;
        story.take(&Step::Settle { status, to });
        after.iter().for_each(|step| story.take(step));
        let mut until = until;
        until[usize::from(R)] = until[usize::from(R)].max(at);
        let (early, late) = (story.seen(until).view().unwrap(), story.view().unwrap());
        prop_assert!(early.settled && late.settled);
        prop_assert_eq!((early.status, &early.requester, &early.task), (status, &late.requester, &late.task));
        prop_assert_eq!((late.status, early.completed_at, &early.error), (status, late.completed_at, &late.error));
        // A result that had not arrived may do so, but none takes the place of another.
        if early.result_hash.is_some() {
            prop_assert_eq!(early.result_hash, late.result_hash);
        }
    }

    #[test]
    fn a_grant_never_gives_way_to_an_older_one(
        begins in begins(),
        steps in prop::collection::vec(undecided(), 0..20),
        epoch in 0u64..5,
        who in worker(),
        is_requesters: bool,
    ) {
        let mut story = Story::of(begins, &steps);
        let Some(live) = story.view().unwrap().grant else { return Ok(()) };
        prop_assume!(Epoch(epoch) < live.epoch);
        if is_requesters { story.grant(R, epoch, who) } else { story.claim_self(who, epoch) };
        let now = story.view().unwrap().grant.expect("a grant ends none");
        // One may close a gap, so that an epoch counts that came too early.
        prop_assert!(now.hash == live.hash || now.epoch > live.epoch, "{live:?} gave way to {now:?}");
    }

    #[test]
    fn what_is_superseded_never_comes_back(begins in begins(), steps in prop::collection::vec(undecided(), 0..25)) {
        let mut story = Story::of(begins, &[]);
        let mut highest = Epoch::NONE;
        for step in &steps {
            story.take(step);
            let Some(live) = story.view().unwrap().grant else { continue };
            prop_assert!(live.epoch >= highest, "{live:?} after {highest}");
            highest = live.epoch;
        }
    }

    #[test]
    fn only_the_requester_settles(begins in begins(), steps in prop::collection::vec(any_step(), 0..25)) {
        let story = Story::of(begins, &steps);
        let view = story.view().unwrap();
        let decided = story.tasks.iter().any(|entry| {
            entry.writer == view.requester.identity && entry.value.status.is_final()
        });
        prop_assert_eq!(view.settled, decided);
        prop_assert_eq!(view.requester.proven, begins != Begins::Plain);
    }

    #[test]
    fn what_is_forged_changes_nothing_and_is_told(
        begins in proven(),
        steps in prop::collection::vec(any_step(), 0..20),
        forgeries in prop::collection::vec((forgery(), any::<Index>()), 1..10),
    ) {
        // Without claims of those who forge, which would make them workers that such entries are expected of.
        let honest = |step: &&Step| !matches!(step, Step::Plain { .. } | Step::PlainResult { .. } | Step::Honour { .. });
        let steps: Vec<_> = steps.iter().filter(honest).cloned().collect();
        let mut story = Story::of(begins, &steps);
        let clean = story.view().unwrap();
        let forged: Vec<_> = forgeries.iter().map(|(forgery, _)| forgery.write(&mut story)).collect();
        let view = story.view().unwrap();
        prop_assert_eq!(essence(&view), essence(&clean));
        prop_assert_eq!((view.cancelling, &view.bids), (clean.cancelling, &clean.bids));
        for hash in forged {
            prop_assert!(view.refused.iter().any(|refused| refused.hash == hash), "{hash} was taken");
        }
    }

    #[test]
    fn each_refused_entry_is_told_once_and_no_counted_one_is(
        begins in begins(),
        steps in prop::collection::vec(any_step(), 0..25),
    ) {
        let view = Story::of(begins, &steps).view().unwrap();
        let mut hashes: Vec<_> = view.refused.iter().map(|refused| refused.hash.as_str()).collect();
        let all = hashes.len();
        hashes.sort_unstable();
        hashes.dedup();
        prop_assert_eq!(hashes.len(), all);
        for grant in &view.grants {
            prop_assert!(!hashes.contains(&grant.hash.as_str()));
        }
        prop_assert!(view.result_hash.is_none_or(|hash| !hashes.contains(&hash.as_str())));
    }
}
