//! Several nodes: what one writes, the others see, and all see the same.

use futures::future::join_all;

use super::*;

#[tokio::test]
async fn a_change_of_a_task_is_told_at_another_node_and_its_worker_answers_there() {
    let a = Holder::start(1, &[]).await;
    let b = Holder::start(2, &[&a.keeper]).await;
    let mut updates = b.store.updates();
    let task = a.submit("say hello").await;
    let view = change(&mut updates, |view| view.task.id == task).await;
    assert_eq!((view.status, view.requester.peer.as_ref()), (TaskStatus::Pending, Some(a.keeper.id())));
    assert_eq!(b.view(&task).await.task.prompt, "say hello");
    let grant = a.grant(&task, 1, b.worker()).await.unwrap();
    change(&mut updates, |view| view.grant.as_ref().is_some_and(|live| live.hash == grant)).await;
    assert!(matches!(b.store.settle(&task, Settlement::cancelled()).await, Err(StoreError::NotRequester(_))));
    assert!(matches!(b.grant(&task, 2, b.worker()).await, Err(StoreError::NotRequester(_))));
    let result = b.answer(&task, &grant, 1, "hello").await;
    a.sees(&task, TaskStatus::Completed).await;
    let view = a.view(&task).await;
    assert_eq!((view.settled, view.result_hash.as_ref()), (false, Some(&result)));
    a.store.settle(&task, Settlement::completed(Some(grant), Some(result))).await.unwrap();
    change(&mut updates, |view| view.settled).await;
    assert_eq!(b.store.get_result(&task).await.unwrap().unwrap().response, "hello");
    assert!(b.store.refused().is_empty() && a.store.refused().is_empty());
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn a_worker_gives_back_its_own_grant_and_anybody_may_wish_that_a_task_ends() {
    let a = Holder::start(1, &[]).await;
    let b = Holder::start(2, &[&a.keeper]).await;
    let (task, other) = (a.submit("one").await, a.submit("two").await);
    a.grant(&task, 1, b.worker()).await.unwrap();
    b.sees(&task, TaskStatus::Claimed).await;
    b.store.release(&task, Epoch(1), None).await.unwrap();
    a.sees(&task, TaskStatus::Pending).await;
    b.sees(&other, TaskStatus::Pending).await;
    assert!(matches!(b.store.release(&other, Epoch(1), None).await, Err(StoreError::NotRequester(_))));
    b.store.cancel(&other).await.unwrap();
    until_it_shows(|| async {}, || a.store.summary(&other).is_some_and(|task| task.cancelling)).await;
    assert_eq!(a.status(&other), Some(TaskStatus::Pending), "only its requester can end it");
    a.store.cancel(&other).await.unwrap();
    b.sees(&other, TaskStatus::Cancelled).await;
    assert!(!b.store.summary(&other).unwrap().cancelling);
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn nodes_that_write_about_the_same_tasks_at_once_come_to_the_same_views() {
    let a = Holder::start(1, &[]).await;
    let b = Holder::start(2, &[&a.keeper]).await;
    let ids = join_all((0..30).map(|number| a.submit(if number == 0 { "first" } else { "other" }))).await;
    for id in &ids {
        b.sees(id, TaskStatus::Pending).await;
    }
    // The requester grants and others claim, run, answer, cancel and settle, each as if it were alone.
    let at_a = ids.iter().enumerate().map(async |(number, id)| {
        if let Ok(grant) = a.grant(id, 1, a.worker()).await {
            let result = a.answer(id, &grant, 1, "by the requester").await;
            if number % 3 == 0 {
                drop(a.store.settle(id, Settlement::completed(Some(grant), Some(result))).await);
            }
        }
    });
    let at_b = ids.iter().enumerate().map(async |(number, id)| {
        if number % 4 == 0 {
            drop(b.store.cancel(id).await);
        }
        if let Ok(grant) = b.claim_itself(id, 1).await {
            drop(b.store.running(id, Epoch(1), &grant).await);
            b.answer(id, &grant, 1, "by another").await;
        }
    });
    tokio::join!(join_all(at_a), join_all(at_b));
    let counts = |holder: &Holder| [TASKS, RESULTS].map(|name| holder.database(name).info().unwrap().entries);
    until_it_shows(|| async {}, || counts(&a) == counts(&b)).await;
    let c = Holder::start(3, &[&b.keeper]).await;
    until_it_shows(|| async {}, || counts(&a) == counts(&b) && counts(&c) == counts(&a)).await;
    for holder in [&a, &b, &c] {
        for name in [TASKS, RESULTS] {
            holder.database(name).flush().await.unwrap();
        }
    }
    for id in &ids {
        let (at_a, at_b, at_c) = (a.view(id).await, b.view(id).await, c.view(id).await);
        assert_eq!(at_a, at_b);
        assert_eq!(at_a, at_c, "who comes late sees the same");
        for holder in [&a, &b, &c] {
            let in_memory = holder.store.summary(id).unwrap();
            assert_eq!((in_memory.status, in_memory.settled), (at_a.status, at_a.settled));
        }
        let shown = [&a, &b, &c].map(|holder| holder.store.get_task(id).unwrap());
        assert!(shown.iter().all(|task| *task == shown[0]));
    }
    c.stop().await;
    b.stop().await;
    a.stop().await;
}
