//! The databases follow each other in generations: new tasks go to the newest, and old ones go with theirs.

use std::collections::BTreeMap;
use std::time::Duration;

use bombus_core::topics::TaskGenerations;
use futures::future::join_all;

use super::*;
use crate::store::{Pruned, Retention, WhyKept, names};

/// Keeps nothing that has ended.
const NOTHING: Retention = Retention { retain: Duration::ZERO, keep: usize::MAX };
const WEEK: Retention = Retention { retain: Duration::from_secs(7 * 86_400), keep: 50_000 };

impl Holder {
    /// Brings a task to its end, with an answer.
    async fn does(&self, prompt: &str, response: &str) -> TaskId {
        let id = self.submit(prompt).await;
        let grant = self.grant(&id, 1, self.worker()).await.unwrap();
        let result = self.answer(&id, &grant, 1, response).await;
        self.store.settle(&id, Settlement::completed(Some(grant), Some(result))).await.unwrap();
        id
    }

    async fn prune(&self) -> Pruned {
        timeout(LIMIT, self.store.prune(NOTHING)).await.expect("it takes no longer than its limits").unwrap()
    }

    /// Hears what others say that they have, as it would over the mesh.
    async fn hears(&self, others: &[&Holder]) {
        let told = others.iter().map(|other| (other.keeper.id().clone(), other.store.generations()));
        self.store.heard(told.collect()).await.unwrap();
    }

    fn has(&self) -> Vec<u64> {
        self.store.open_generations()
    }

    fn knows(&self, id: &TaskId) -> bool {
        self.store.summary(id).is_some()
    }

    async fn knows_soon(&self, id: &TaskId) {
        let known = timeout(LIMIT, until_it_shows(|| async {}, || self.knows(id))).await;
        assert!(known.is_ok(), "{id} of {:?}", self.has());
    }

    fn bytes_on_disk(&self) -> u64 {
        let files = self.keeper.db.directory().read_dir().unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    }
}

/// A text of so many bytes that has its own blocks, which are others for each letter.
fn text(letter: char, bytes: usize) -> String {
    (0..bytes / 8).map(|number| format!("{letter}{number:07}")).collect()
}

#[tokio::test]
async fn what_has_ended_goes_with_its_generation_and_its_room_is_free() {
    let a = Holder::start(1, &[]).await;
    let done = join_all((0..60).map(|number| {
        let a = &a;
        async move { a.does(&text('p', 400_000 + 800 * number), "short").await }
    }));
    let done = done.await;
    let full = a.bytes_on_disk();
    assert!(full > 20 << 20, "{full}");
    let foreseen = a.store.prune_in_mind(NOTHING).await.unwrap();
    assert_eq!((foreseen.begun, foreseen.dropped[0].tasks, a.has()), (Some(2), 60, vec![1]), "nothing was done");
    let pruned = a.prune().await;
    assert_eq!((pruned.begun, pruned.dropped.len(), pruned.dropped[0].tasks), (Some(2), 1, 60));
    assert!(pruned.dropped[0].bytes > 10 << 20, "{pruned:?}");
    assert_eq!(
        pruned.kept.iter().map(|kept| (kept.generation, &kept.why)).collect::<Vec<_>>(),
        [(2, &WhyKept::Newest)]
    );
    let left = a.bytes_on_disk();
    assert!(left < full / 4 && full - left >= pruned.dropped[0].bytes / 2, "{left} of {full}");
    assert!(done.iter().all(|id| !a.knows(id)) && a.store.size().unwrap().tasks == 0);
    assert!(a.store.view(&done[0]).await.unwrap().is_none());
    assert_eq!(a.prune().await, Pruned { kept: pruned.kept, ..Pruned::default() }, "there is nothing left to do");

    let next = a.does("after", "that").await;
    let size = a.store.size().unwrap();
    assert_eq!((size.newest.as_str(), size.generations.len(), size.generations[0].tasks), ("swarm-tasks.2", 1, 1));
    let directory = a.stop().await;
    let a = Holder::again(1, &[], directory).await;
    assert_eq!((a.has(), a.knows(&next), a.knows(&done[0])), (vec![2], true, false), "it stays so");
    a.stop().await;
}

#[tokio::test]
async fn what_has_not_ended_keeps_its_generation_and_what_it_needs_of_it() {
    let a = Holder::start(1, &[]).await;
    let (done, waits) = (a.does("done", "yes").await, a.submit("waits").await);
    let pruned = a.prune().await;
    assert_eq!((pruned.begun, a.has()), (Some(2), vec![1, 2]));
    assert_eq!(pruned.kept[0].why, WhyKept::Unfinished { tasks: 1, first: vec![waits.clone()] });
    let (newer, parent) = (a.does("newer", "yes").await, id("parent"));
    let part = |id: &str| TaskDocument {
        parent_task_id: Some(parent.clone()),
        depends_on: Some(vec![newer.clone()]),
        ..TaskDocument::new(self::id(id), "", 0)
    };
    let part = a.store.create_task(part("part")).await.unwrap().id;
    assert_eq!(a.store.summary(&part).unwrap().generation, 2);
    // Everything about a task is written where the task stands.
    let grant = a.grant(&waits, 1, a.worker()).await.unwrap();
    let result = a.answer(&waits, &grant, 1, "at last").await;
    a.store.settle(&waits, Settlement::completed(Some(grant), Some(result))).await.unwrap();
    assert_eq!(a.database(TASKS).history(waits.as_str()).unwrap().len(), 3);
    assert_eq!(a.database(&names(2)[0]).history(waits.as_str()).unwrap().len(), 0);
    let pruned = a.prune().await;
    assert_eq!((pruned.dropped[0].generation, a.has()), (1, vec![2, 3]));
    assert!(!a.knows(&done) && !a.knows(&waits));
    // What waits needs the answer of what is done.
    assert!(matches!(&pruned.kept[0].why, WhyKept::Unfinished { tasks: 2, .. }), "{pruned:?}");
    a.store.cancel(&part).await.unwrap();
    assert_eq!(a.prune().await.dropped[0].generation, 2);
    a.stop().await;
}

#[tokio::test]
async fn the_tasks_of_a_batch_stay_until_it_has_ended() {
    let a = Holder::start(1, &[]).await;
    let line = TaskDocument { batch_id: Some("batch".to_owned()), ..a.store.draft().unwrap() };
    let line = a.store.create_task(line).await.unwrap().id;
    a.store.cancel(&line).await.unwrap();
    a.store.hold_batches(Some(["batch".to_owned()].into()));
    let pruned = a.prune().await;
    assert_eq!(pruned.kept[0].why, WhyKept::Unfinished { tasks: 1, first: vec![line.clone()] });
    assert!(a.knows(&line));
    a.store.hold_batches(None);
    assert_eq!(a.prune().await.dropped, [], "it is not known whether it has ended");
    a.store.hold_batches(Some(["another".to_owned()].into()));
    assert_eq!(a.prune().await.dropped[0].generation, 1);
    a.stop().await;
}

#[tokio::test]
async fn a_text_that_a_later_task_has_too_stays() {
    let a = Holder::start(1, &[]).await;
    let (shared, own) = (text('s', 700_000), text('o', 700_000));
    let gone = a.does(&own, &shared).await;
    let [own, answer] = {
        let view = a.view(&gone).await;
        let root = |block: &Option<String>| block.as_ref().unwrap().parse::<orbitdb::cid::Hash>().unwrap();
        [root(&view.task.prompt_block), root(&view.result.as_ref().unwrap().response_block)]
    };
    let later = a.store.prune(WEEK).await.unwrap();
    assert_eq!((later.begun, later.dropped), (None, vec![]), "a week is not over");
    // A generation of its own for what comes.
    let waits = a.submit("waits").await;
    a.prune().await;
    let stays = a.submit(&shared).await;
    a.store.cancel(&waits).await.unwrap();
    assert_eq!(a.prune().await.dropped[0].generation, 1);
    assert!(a.keeper.db.block(&own).await.unwrap().is_none(), "nobody has it any more");
    assert!(a.keeper.db.block(&answer).await.unwrap().is_some());
    let view = a.view(&stays).await;
    assert!(a.store.whole_task(&view.task).await.unwrap().prompt == shared);
    a.stop().await;
}

#[tokio::test]
async fn who_hears_of_a_new_generation_opens_it_and_who_comes_late_sees_all_that_is_kept() {
    let a = Holder::start(1, &[]).await;
    let b = Holder::start(2, &[&a.keeper]).await;
    let (old, waits) = (a.does("old", "yes").await, a.submit("waits").await);
    a.hears(&[&b]).await;
    b.knows_soon(&waits).await;
    let (pruned, ()) = tokio::join!(a.prune(), async {
        until_it_shows(|| async {}, || a.has() == [1, 2]).await;
        // As long as b has not got it, new tasks still go where all see them.
        let meanwhile = a.submit("meanwhile").await;
        assert_eq!(a.store.summary(&meanwhile).unwrap().generation, 1);
        // Until b says that its new tasks go there, too, what it writes may stand in the first.
        let turned = async || {
            b.hears(&[&a]).await;
            a.hears(&[&b]).await;
        };
        until_it_shows(turned, || b.store.generations().new == Some(2)).await;
        a.hears(&[&b]).await;
    });
    assert_eq!((pruned.begun, b.has()), (Some(2), vec![1, 2]));
    let new = a.submit("new").await;
    assert_eq!(a.store.summary(&new).unwrap().generation, 2);
    b.knows_soon(&new).await;
    let c = Holder::start(3, &[&b.keeper]).await;
    c.hears(&[&b]).await;
    assert_eq!(c.has(), [1, 2]);
    for id in [&old, &waits, &new] {
        c.knows_soon(id).await;
    }
    let grant = a.grant(&new, 1, c.worker()).await.unwrap();
    c.sees(&new, TaskStatus::Claimed).await;
    c.answer(&new, &grant, 1, "of c").await;
    b.sees(&new, TaskStatus::Completed).await;
    for holder in [a, b, c] {
        holder.stop().await;
    }
}

#[tokio::test]
async fn a_generation_stays_until_no_peer_puts_new_tasks_into_it() {
    let a = Holder::start(1, &[]).await;
    let b = Holder::start(2, &[&a.keeper]).await;
    let old = a.does("old", "yes").await;
    b.knows_soon(&old).await;
    a.hears(&[&b]).await;
    let (pruned, late) = tokio::join!(a.prune(), async {
        until_it_shows(|| async {}, || a.has() == [1, 2]).await;
        b.hears(&[&a]).await;
        a.hears(&[&b]).await;
        until_it_shows(|| async {}, || a.store.generations().new == Some(2)).await;
        // It has not looked since, and ends before anybody could hear that there is something to do.
        let late = b.does("late", "yes").await;
        assert_eq!(b.store.summary(&late).unwrap().generation, 1);
        // Its entries may arrive one by one, and as long as it is not over there, the generation stays for that.
        until_it_shows(|| async {}, || a.store.summary(&late).is_some_and(|task| task.over)).await;
        b.hears(&[&a]).await;
        a.hears(&[&b]).await;
        late
    });
    assert_eq!((pruned.dropped.len(), pruned.dropped[0].tasks, a.has()), (1, 2, vec![2]));
    assert!(b.knows(&late), "who has not dropped it has it");
    for holder in [a, b] {
        holder.stop().await;
    }
}

#[tokio::test]
async fn the_same_task_in_two_generations_is_one_and_looks_the_same_everywhere() {
    let a = Holder::start(1, &[]).await;
    let b = Holder::start(2, &[]).await;
    let _keeps = (a.submit("keeps the first").await, b.submit("keeps the first").await);
    b.prune().await;
    // Submitted with the same key on both sides of the turn, and before they knew each other.
    let document = |holder: &Holder| TaskDocument { id: TaskId::of_key("key"), ..holder.store.draft().unwrap() };
    let id = a.store.create_task(document(&a)).await.unwrap().id;
    b.store.create_task(document(&b)).await.unwrap();
    assert_eq!([&a, &b].map(|holder| holder.store.summary(&id).unwrap().generation), [1, 2]);
    let b_directory = b.stop().await;
    let b = Holder::again(2, &[&a.keeper], b_directory).await;
    a.hears(&[&b]).await;
    let both_know = || [&a, &b].map(|holder| holder.store.summary(&id).unwrap());
    let agree = || both_know().iter().all(|task| task.generation == 1 && task.requester == a.keeper.id().as_str());
    until_it_shows(|| async {}, agree).await;
    let grant = a.grant(&id, 1, a.worker()).await.unwrap();
    let result = a.answer(&id, &grant, 1, "one answer").await;
    a.store.settle(&id, Settlement::completed(Some(grant), Some(result))).await.unwrap();
    b.sees(&id, TaskStatus::Completed).await;
    until_it_shows(|| async {}, || both_know().iter().all(|task| task.has_result && task.settled)).await;
    let (at_a, at_b) = (a.view(&id).await, b.view(&id).await);
    assert_eq!(at_a, at_b);
    assert!(matches!(a.store.create_task(document(&a)).await, Err(StoreError::Exists(_))));
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn a_generation_that_was_dropped_comes_back_only_for_what_has_not_ended() {
    let a = Holder::start(1, &[]).await;
    let b = Holder::start(2, &[&a.keeper]).await;
    let done = a.does("done", "yes").await;
    b.sees(&done, TaskStatus::Completed).await;
    until_it_shows(|| async {}, || b.store.summary(&done).is_some_and(|task| task.settled && task.has_result)).await;
    a.prune().await;
    a.hears(&[&b]).await;
    let a_directory = a.stop().await;
    let a = Holder::again(1, &[&b.keeper], a_directory).await;
    a.hears(&[&b]).await;
    assert_eq!((a.has(), b.has()), (vec![2], vec![1]), "b has nothing in it that is left to do");

    // What b submits where only it is, while a is away.
    let a_directory = a.stop().await;
    let forgotten = b.submit("forgotten").await;
    let a = Holder::again(1, &[&b.keeper], a_directory).await;
    b.hears(&[&a]).await;
    assert_eq!((b.has(), b.store.generations().unfinished), (vec![1, 2], vec![1]));
    a.hears(&[&b]).await;
    a.knows_soon(&forgotten).await;
    let grant = b.grant(&forgotten, 1, a.worker()).await.unwrap();
    a.sees(&forgotten, TaskStatus::Claimed).await;
    let result = a.answer(&forgotten, &grant, 1, "after weeks").await;
    b.sees(&forgotten, TaskStatus::Completed).await;
    b.store.settle(&forgotten, Settlement::completed(Some(grant), Some(result))).await.unwrap();
    let settled = || a.store.summary(&forgotten).is_some_and(|task| task.settled);
    until_it_shows(|| async {}, settled).await;
    a.prune().await;
    assert_eq!((a.has(), a.knows(&forgotten)), (vec![2], false));
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn what_its_requester_has_finished_and_dropped_holds_nobody_up() {
    let a = Holder::start(1, &[]).await;
    let b = Holder::start(2, &[&a.keeper]).await;
    let task = a.submit("ends while b is away").await;
    b.knows_soon(&task).await;
    let b_directory = b.stop().await;
    a.store.cancel(&task).await.unwrap();
    a.prune().await;
    let b = Holder::again(2, &[&a.keeper], b_directory).await;
    b.hears(&[&a]).await;
    a.hears(&[&b]).await;
    assert_eq!((a.has(), b.store.generations().unfinished), (vec![2], vec![]));
    assert_eq!(b.prune().await.dropped[0].generation, 1);
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn peers_that_say_wild_things_make_nobody_open_many() {
    let a = Holder::start(1, &[]).await;
    let b = Holder::start(2, &[]).await;
    let told = |open: Vec<u64>| TaskGenerations { open: open.clone(), unfinished: open, new: None };
    let say =
        |of_b: Vec<u64>| BTreeMap::from([(a.keeper.id().clone(), told(vec![1])), (b.keeper.id().clone(), told(of_b))]);
    a.store.heard(say(vec![1_000_000_000, u64::MAX, 0, 5_000])).await.unwrap();
    assert_eq!(a.has(), [1]);
    a.store.heard(say((1..=64).collect())).await.unwrap();
    assert_eq!(a.has().len(), 10);
    let id = a.submit("still").await;
    assert!(a.knows(&id));
    b.stop().await;
    a.stop().await;
}

/// What is on disk when a process ends at some step of a drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Marked,
    TextsGone,
    EventsGone,
    ResultsGone,
    AllGone,
}

#[tokio::test]
async fn a_drop_that_broke_off_anywhere_is_finished_at_the_next_start() {
    for step in [Step::Marked, Step::TextsGone, Step::EventsGone, Step::ResultsGone, Step::AllGone] {
        let a = Holder::start(1, &[]).await;
        let done = a.does(&text('p', 200_000), "short").await;
        let root = a.view(&done).await.task.prompt_block.clone().unwrap().parse().unwrap();
        let waits = a.submit("waits").await;
        a.prune().await;
        let stays = a.does("stays", "yes").await;
        a.store.cancel(&waits).await.unwrap();
        let directory = a.stop().await;
        let path = directory.path().join("task-generations.json");
        let mut ledger: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        ledger["open"].as_object_mut().unwrap().remove("1").unwrap();
        ledger["dropping"] = json!([1]);
        std::fs::write(&path, ledger.to_string()).unwrap();
        let keeper = Keeper::start_with(1, &[], config(), directory).await;
        if step >= Step::TextsGone {
            keeper.db.remove_blocks(vec![root], Duration::ZERO).await.unwrap();
        }
        let gone = [(Step::EventsGone, EVENTS), (Step::ResultsGone, RESULTS), (Step::AllGone, TASKS)];
        for (_, name) in gone.into_iter().filter(|(at, _)| step >= *at) {
            keeper.db.drop(name).await.unwrap();
        }

        let a = Holder::on(keeper, 1).await;
        assert_eq!((a.has(), a.knows(&done), a.knows(&stays)), (vec![2], false, true), "{step:?}");
        a.store.tend(WEEK).await.unwrap();
        assert!(a.keeper.db.block(&root).await.unwrap().is_none(), "{step:?}");
        assert!(
            a.keeper.db.list().unwrap().iter().all(|known| ![TASKS, RESULTS, EVENTS].contains(&known.name.as_str()))
        );
        let directory = a.stop().await;
        let ledger: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!((&ledger["dropped"], ledger.get("dropping")), (&json!([[1, 1]]), None), "{step:?}");
        let a = Holder::again(1, &[], directory).await;
        assert_eq!((a.has(), a.knows(&stays)), (vec![2], true), "{step:?}");
        a.stop().await;
    }
}

#[tokio::test]
async fn without_its_file_it_finds_what_is_stored() {
    let a = Holder::start(1, &[]).await;
    let first = a.submit("first").await;
    a.prune().await;
    let second = a.submit("second").await;
    let directory = a.stop().await;
    std::fs::remove_file(directory.path().join("task-generations.json")).unwrap();
    let a = Holder::again(1, &[], directory).await;
    assert_eq!((a.has(), a.knows(&first), a.knows(&second)), (vec![1, 2], true, true));
    a.stop().await;
}
