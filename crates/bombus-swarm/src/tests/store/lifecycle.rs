//! One node: from submission to the end.

use std::collections::BTreeSet;

use futures::future::join_all;

use super::*;

#[tokio::test]
async fn a_task_is_created_with_an_id_and_a_time_and_is_pending() {
    let a = Holder::start(1, &[]).await;
    let before = a.store.now_ms();
    let (first, second) = (a.submit("first").await, a.submit("second").await);
    assert_ne!(first, second);
    assert_eq!(first.as_str().len(), 36, "it is a UUID");
    let task = a.store.get_task(&first).unwrap().unwrap();
    assert!((before..=a.store.now_ms()).contains(&task.created_at));
    assert_eq!((task.status, &*task.prompt, &*task.model), (TaskStatus::Pending, "first", "smol"));
    assert_eq!(task.requester_peer_id, a.keeper.id().as_str());
    let view = a.view(&first).await;
    assert!(view.requester.proven && !view.settled && view.refused.is_empty());
    assert_eq!(a.store.get_task(&id("other")).unwrap(), None);
    let again = TaskDocument { id: first.clone(), ..a.store.draft().unwrap() };
    assert!(matches!(a.store.create_task(again).await, Err(StoreError::Exists(of)) if of == first));
    a.stop().await;
}

#[tokio::test]
async fn of_many_that_create_one_task_at_once_one_does() {
    let a = Holder::start(1, &[]).await;
    let document = a.store.draft().unwrap();
    let created = join_all((0..20).map(|_| a.store.create_task(document.clone()))).await;
    assert_eq!(created.iter().filter(|created| created.is_ok()).count(), 1);
    assert_eq!(a.database(TASKS).history(document.id.as_str()).unwrap().len(), 1);
    a.stop().await;
}

#[tokio::test]
async fn a_pending_task_is_claimed_once() {
    let a = Holder::start(1, &[]).await;
    let task = a.submit("run me").await;
    let hash = a.grant(&task, 1, a.worker()).await.unwrap();
    let shown = a.store.get_task(&task).unwrap().unwrap();
    assert_eq!((shown.status, shown.epoch), (TaskStatus::Claimed, Some(Epoch(1))));
    assert_eq!((&*shown.prompt, shown.worker_peer_id.as_deref()), ("run me", Some(a.keeper.id().as_str())));
    let live = a.view(&task).await.grant.unwrap();
    assert_eq!((live.hash, live.by, live.attempt), (hash, GrantedBy::Requester, 1));
    let claimed =
        |claimed: Result<String, StoreError>| matches!(claimed, Err(StoreError::Claimed { newest: Epoch(1), .. }));
    for epoch in [1, 2, 7] {
        assert!(claimed(a.grant(&task, epoch, a.worker()).await), "{epoch}: the grant before is not released");
    }
    assert!(claimed(a.claim_itself(&task, 1).await), "an epoch is never used twice");
    assert!(matches!(a.grant(&id("other"), 1, a.worker()).await, Err(StoreError::NotFound(_))));
    assert_eq!(a.database(TASKS).history(task.as_str()).unwrap().len(), 2, "what was refused was not written");
    a.stop().await;
}

#[tokio::test]
async fn of_many_claims_at_once_one_is_written() {
    let a = Holder::start(1, &[]).await;
    let task = a.submit("run me").await;
    let claims = join_all((0..20).map(|_| a.grant(&task, 1, a.worker()))).await;
    assert_eq!(claims.iter().filter(|claimed| claimed.is_ok()).count(), 1);
    assert_eq!(a.view(&task).await.grants.len(), 1);
    a.stop().await;
}

#[tokio::test]
async fn a_task_is_run_and_its_result_is_stored_and_settled_for_ever() {
    let a = Holder::start(1, &[]).await;
    let mut updates = a.store.updates();
    let task = a.submit("say hello").await;
    let grant = a.grant(&task, 1, a.worker()).await.unwrap();
    a.store.running(&task, Epoch(1), &grant).await.unwrap();
    assert_eq!(a.status(&task), Some(TaskStatus::Running));
    let result = a.answer(&task, &grant, 1, "hello").await;
    let view = a.view(&task).await;
    assert_eq!((view.status, view.settled, view.result_hash), (TaskStatus::Completed, false, Some(result.clone())));
    a.store.settle(&task, Settlement::completed(Some(grant.clone()), Some(result.clone()))).await.unwrap();
    let view = a.view(&task).await;
    assert_eq!((view.status, view.settled, view.result_hash), (TaskStatus::Completed, true, Some(result)));
    assert_eq!(view.refused, []);
    let stored = a.store.get_result(&task).await.unwrap().unwrap();
    assert_eq!(
        (&*stored.response, stored.id, stored.worker_peer_id),
        ("hello", task.clone(), a.keeper.id().to_string())
    );
    let shown = a.store.get_task(&task).unwrap().unwrap();
    assert_eq!((shown.status, shown.settled, shown.grant), (TaskStatus::Completed, Some(true), Some(grant)));
    let over =
        |over: Result<String, StoreError>| matches!(over, Err(StoreError::Over { status: TaskStatus::Completed, .. }));
    assert!(over(a.grant(&task, 2, a.worker()).await));
    assert!(over(a.store.cancel(&task).await));
    assert!(over(a.store.settle(&task, Settlement::cancelled()).await));
    assert!(over(a.store.release(&task, Epoch(1), None).await));
    let told: Vec<_> = [TaskStatus::Pending, TaskStatus::Claimed, TaskStatus::Running].into();
    for status in told {
        change(&mut updates, |view| view.task.id == task && view.status == status).await;
    }
    change(&mut updates, |view| view.task.id == task && view.settled).await;
    a.stop().await;
}

#[tokio::test]
async fn what_failed_is_released_tried_again_and_given_up_with_all_reasons() {
    let a = Holder::start(1, &[]).await;
    let task = a.submit("fail").await;
    for epoch in 1..=2 {
        a.grant(&task, epoch, a.worker()).await.unwrap();
        let failure = bombus_core::tasks::AttemptFailure {
            epoch: Epoch(epoch),
            worker_peer_id: a.keeper.id().to_string(),
            reason: format!("reason {epoch}"),
            at: 1,
        };
        a.store.release(&task, Epoch(epoch), Some(failure)).await.unwrap();
        assert_eq!(a.status(&task), Some(TaskStatus::Pending));
    }
    a.store.fail(&task, "given up").await.unwrap();
    let view = a.view(&task).await;
    assert_eq!((view.status, view.settled, view.error.as_deref()), (TaskStatus::Failed, true, Some("given up")));
    let reasons: Vec<_> = view.failures.iter().map(|failure| &*failure.reason).collect();
    assert_eq!(reasons, ["reason 1", "reason 2"]);
    assert_eq!(view.task.prompt, "fail", "what was asked is kept");
    let cancelled = a.submit("never mind").await;
    a.store.cancel(&cancelled).await.unwrap();
    let view = a.view(&cancelled).await;
    assert_eq!((view.status, view.settled), (TaskStatus::Cancelled, true));
    a.stop().await;
}

#[tokio::test]
async fn pending_tasks_and_those_of_a_requester_are_found_without_a_scan() {
    let a = Holder::start(1, &[]).await;
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(a.submit(&format!("{number}")).await);
    }
    a.grant(&ids[1], 1, a.worker()).await.unwrap();
    a.store.cancel(&ids[3]).await.unwrap();
    let found: BTreeSet<TaskId> = a.store.pending().iter().map(|task| task.id.clone()).collect();
    assert_eq!(found, [0, 2, 4].map(|number| ids[number].clone()).into());
    assert_eq!(a.store.by_requester(a.keeper.id().as_str()).len(), 5);
    assert!(a.store.by_requester("nobody").is_empty());
    let mut filter = ListFilter { limit: 2, ..ListFilter::default() };
    let mut walked = Vec::new();
    loop {
        let page = a.store.list(&filter);
        walked.extend(page.tasks.iter().map(|task| task.id.clone()));
        let Some(next) = page.next else { break };
        filter.cursor = Some(next);
    }
    assert_eq!(walked.len(), 5);
    assert_eq!(walked.iter().collect::<BTreeSet<_>>(), ids.iter().collect());
    let size = a.store.size().unwrap();
    assert_eq!((size.tasks, size.pending), (5, 3));
    assert!(size.entries >= 7 && size.stored_bytes > 0 && size.audit_lost == 0);
    a.stop().await;
}

#[tokio::test]
async fn the_audit_log_says_what_happened_when_and_who_did_it() {
    let a = Holder::start(1, &[]).await;
    let task = a.submit("say hello").await;
    let grant = a.grant(&task, 1, a.worker()).await.unwrap();
    a.store.running(&task, Epoch(1), &grant).await.unwrap();
    let result = a.answer(&task, &grant, 1, "hello").await;
    a.store.settle(&task, Settlement::completed(Some(grant.clone()), Some(result.clone()))).await.unwrap();
    a.store.audit(AuditEvent { reason: Some("busy".to_owned()), ..a.store.event(&task, AuditKind::Declined) });
    let keeper = a.keeper.id().clone();
    let directory = a.stop().await;

    let again = Holder::again(1, &[], directory).await;
    let rows = again.database(EVENTS).all().unwrap();
    let read = |row: &orbitdb::index::Row| serde_json::from_value::<Vec<AuditEvent>>(row.value.to_json()).unwrap();
    let events: Vec<AuditEvent> = rows.iter().flat_map(read).collect();
    assert!(events.iter().all(|event| event.task_id == task && event.actor == keeper && event.at > 0));
    let find = |kind| events.iter().find(|event| event.event == kind).unwrap_or_else(|| panic!("{kind:?} is missing"));
    assert_eq!(find(AuditKind::Granted).entry.as_ref(), Some(&grant));
    assert_eq!(find(AuditKind::Granted).worker_peer_id.as_deref(), Some(keeper.as_str()));
    assert_eq!(
        (find(AuditKind::Result).epoch, find(AuditKind::Result).entry.as_ref()),
        (Some(Epoch(1)), Some(&result))
    );
    assert_eq!(find(AuditKind::Completed).epoch, Some(Epoch(1)));
    assert_eq!(find(AuditKind::Declined).reason.as_deref(), Some("busy"));
    find(AuditKind::Created);
    find(AuditKind::Running);
    assert_eq!(events.len(), 6);
    again.stop().await;
}
