//! Over restarts, and with many tasks.

use futures::future::join_all;
use orbitdb::manifest::DatabaseType;
use orbitdb::{Access, OpenOptions};

use super::*;

/// Brings tasks as far as they come, each to another state.
async fn tasks_in_all_states(a: &Holder) -> Vec<TaskId> {
    let mut ids = Vec::new();
    for number in 0..6 {
        ids.push(a.submit(&format!("task {number}")).await);
    }
    let grant = a.grant(&ids[1], 1, a.worker()).await.unwrap();
    a.store.running(&ids[1], Epoch(1), &grant).await.unwrap();
    a.grant(&ids[2], 1, a.worker()).await.unwrap();
    for number in [3, 4] {
        let grant = a.grant(&ids[number], 1, a.worker()).await.unwrap();
        let result = a.answer(&ids[number], &grant, 1, "done").await;
        if number == 3 {
            a.store.settle(&ids[number], Settlement::completed(Some(grant), Some(result))).await.unwrap();
        }
    }
    a.store.cancel(&ids[5]).await.unwrap();
    ids
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let a = Holder::start(1, &[]).await;
    let ids = tasks_in_all_states(&a).await;
    let everything = ListFilter { limit: 100, ..ListFilter::default() };
    let (mut views, listed) = (Vec::new(), a.store.list(&everything));
    for id in &ids {
        views.push(a.view(id).await);
    }
    let unfinished = a.store.unfinished().len();
    let directory = a.stop().await;

    let a = Holder::again(1, &[], directory).await;
    for (id, view) in ids.iter().zip(&views) {
        assert_eq!(a.view(id).await, *view);
    }
    assert_eq!(a.store.list(&everything), listed);
    assert_eq!((a.store.unfinished().len(), unfinished), (4, 4));
    let again = a.answer(&ids[2], &views[2].grant.as_ref().unwrap().hash, 1, "late").await;
    assert_eq!(a.view(&ids[2]).await.result_hash, Some(again), "what was granted before is still granted");
    a.stop().await;
}

#[tokio::test]
async fn databases_that_were_opened_without_the_rules_get_them() {
    let keeper = Keeper::start(1, &[]).await;
    let plain = OpenOptions::of(DatabaseType::Documents).access(Access::Everyone);
    let tasks = keeper.db.create(TASKS, plain).await.unwrap();
    put_raw(&tasks, &js_task("early", "PENDING")).await;
    let address = tasks.address();
    let a = Holder::on(keeper, 1).await;
    assert_eq!(a.store.addresses()[0], address, "the name alone gives the address");
    assert_eq!(a.status(&id("early")), Some(TaskStatus::Pending));
    drop(tasks);
    a.stop().await;
}

#[tokio::test]
async fn what_comes_about_a_finished_task_is_looked_at_although_its_entries_are_not_in_memory() {
    let a = Holder::start(1, &[]).await;
    let task = a.submit("say hello").await;
    let grant = a.grant(&task, 1, a.worker()).await.unwrap();
    let result = a.answer(&task, &grant, 1, "hello").await;
    a.store.settle(&task, Settlement::completed(Some(grant), Some(result.clone()))).await.unwrap();
    assert_eq!(a.store.refused().values().sum::<u64>(), 0);
    let late = ResultDocument { grant: Some("nobody's".to_owned()), ..ResultDocument::new(task.clone(), "", 0) };
    a.store.complete(late, None).await.unwrap();
    until_it_shows(|| async {}, || a.store.refused().get("no_grant") == Some(&1)).await;
    let view = a.view(&task).await;
    assert_eq!((view.status, view.result_hash, view.refused.len()), (TaskStatus::Completed, Some(result), 1));
    a.stop().await;
}

#[tokio::test]
async fn many_tasks_at_once_are_all_there_and_are_listed_page_by_page() {
    let a = Holder::start(1, &[]).await;
    let ids = join_all((0..2_000).map(|number| a.submit(if number % 2 == 0 { "even" } else { "odd" }))).await;
    let cancelled = ids.iter().step_by(10).map(|id| a.store.cancel(id));
    assert!(join_all(cancelled).await.into_iter().all(|cancelled| cancelled.is_ok()));
    let size = a.store.size().unwrap();
    assert_eq!((size.tasks, size.pending), (2_000, 1_800));
    let mut filter = ListFilter { status: Some(TaskStatus::Pending), limit: 100, ..ListFilter::default() };
    let mut pages = 0;
    loop {
        let page = a.store.list(&filter);
        pages += 1;
        assert_eq!(page.tasks.len(), 100);
        let Some(next) = page.next else { break };
        filter.cursor = Some(next);
    }
    assert_eq!(pages, 18);
    a.stop().await;
}
