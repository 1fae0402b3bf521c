use std::time::Duration;

use orbitdb::{Bounds, Take};

use super::*;

/// Returns what the audit log tells, the oldest first.
fn told(holder: &Holder) -> Vec<(AuditKind, Option<Epoch>)> {
    let rows = holder.database(EVENTS).iterate(Bounds { take: Take::Oldest, ..Bounds::default() }).unwrap();
    let events = rows.iter().rev().flat_map(|row| match row.value.to_json() {
        Json::Array(events) => events,
        event => vec![event],
    });
    let events = events.map(|event| serde_json::from_value::<AuditEvent>(event).unwrap());
    events.map(|event| (event.event, event.epoch)).collect()
}

async fn tells(holder: &Holder, wanted: &[(AuditKind, Option<Epoch>)]) {
    let seen = timeout(LIMIT, until_it_shows(|| async {}, || told(holder) == wanted)).await;
    assert!(seen.is_ok(), "{:?}", told(holder));
}

/// A holder whose audit log nobody writes.
async fn without_log() -> Holder {
    let keeper = Keeper::start(1, &[]).await;
    let key = Arc::new(NodeKey::from_secret(&[1; 32]));
    let (store, service) = TaskStore::open(keeper.db.clone(), key, StoreLimits::default()).await.unwrap();
    drop(service);
    Holder { keeper, store, stop: CancellationToken::new(), task: tokio::spawn(async {}) }
}

#[tokio::test]
async fn what_was_submitted_and_granted_with_one_entry_is_told_as_both_after_a_crash() {
    let holder = without_log().await;
    let task = holder.store.draft().unwrap();
    holder.store.create_granted(task, claim(1, holder.worker(), GrantedBy::Requester)).await.unwrap();
    let holder = Holder::again(1, &[], holder.stop().await).await;
    let wanted = [(AuditKind::Created, None), (AuditKind::Granted, Some(Epoch(1)))];
    tells(&holder, &wanted).await;
    let holder = Holder::again(1, &[], holder.stop().await).await;
    holder.submit("again").await;
    tells(&holder, &[&wanted[..], &[(AuditKind::Created, None)]].concat()).await;
    holder.stop().await;
}

#[tokio::test]
async fn what_a_crash_kept_from_the_audit_log_is_added_at_the_next_start_and_only_once() {
    let holder = without_log().await;
    let id = holder.submit("hello").await;
    let first = holder.grant(&id, 1, holder.worker()).await.unwrap();
    holder.store.running(&id, Epoch(1), &first).await.unwrap();
    holder.store.release(&id, Epoch(1), None).await.unwrap();
    let grant = holder.grant(&id, 2, holder.worker()).await.unwrap();
    // Times tell the order, in milliseconds.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let result = holder.answer(&id, &grant, 2, "hello yourself").await;
    holder.store.settle(&id, Settlement::completed(Some(grant), Some(result))).await.unwrap();
    assert_eq!(told(&holder), []);
    let directory = holder.stop().await;

    let (first, second) = (Some(Epoch(1)), Some(Epoch(2)));
    let mut wanted = vec![
        (AuditKind::Created, None),
        (AuditKind::Granted, first),
        (AuditKind::Running, first),
        (AuditKind::Released, first),
        (AuditKind::Granted, second),
        (AuditKind::Result, second),
        (AuditKind::Completed, second),
    ];
    let holder = Holder::again(1, &[], directory).await;
    tells(&holder, &wanted).await;
    let directory = holder.stop().await;
    let holder = Holder::again(1, &[], directory).await;
    holder.submit("again").await;
    wanted.push((AuditKind::Created, None));
    tells(&holder, &wanted).await;
    holder.stop().await;
}
