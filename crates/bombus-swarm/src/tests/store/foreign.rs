//! Peers that know nothing of grants, and peers that are up to no good.

use super::*;

/// A node without a task store, which opens the databases of another one by their addresses.
async fn foreigner(number: u8, holder: &Holder) -> (Keeper, Database, Database) {
    let keeper = Keeper::start(number, &[&holder.keeper]).await;
    let [tasks, results, _] = holder.store.addresses().map(|address| address.to_string());
    let (tasks, results) = (keeper.db.open(&tasks).await.unwrap(), keeper.db.open(&results).await.unwrap());
    (keeper, tasks, results)
}

#[tokio::test]
async fn a_task_of_a_peer_in_javascript_is_shown_claimed_and_answered() {
    let a = Holder::start(1, &[]).await;
    let (js, tasks, results) = foreigner(2, &a).await;
    let mut updates = a.store.updates();
    put_raw(&tasks, &js_task("js-1", "PENDING")).await;
    let view = change(&mut updates, |view| view.task.id == id("js-1")).await;
    assert!(!view.requester.proven && view.requester.peer.is_none());
    assert_eq!(a.store.pending().len(), 1);
    let task = a.store.get_task(&id("js-1")).unwrap().unwrap();
    assert_eq!((&*task.prompt, task.options.unwrap().temperature), ("Why is the sky blue?", Some(0.5)));
    assert!(matches!(a.grant(&id("js-1"), 1, a.worker()).await, Err(StoreError::NotRequester(_))));
    let grant = a.claim_itself(&id("js-1"), 1).await.unwrap();
    a.answer(&id("js-1"), &grant, 1, "Rayleigh").await;
    assert_eq!(a.view(&id("js-1")).await.status, TaskStatus::Completed);
    let document = |database: &Database| database.get("js-1").map(|row| row.value.to_json());
    until_it_shows(|| async {}, || document(&tasks).is_some_and(|task| task["status"] == "CLAIMED")).await;
    until_it_shows(|| async {}, || document(&results).is_some_and(|result| result["response"] == "Rayleigh")).await;
    let claimed = document(&tasks).unwrap();
    assert_eq!(claimed["note"], "a field of its own", "what we do not know stays in what we write");
    assert_eq!((&claimed["prompt"], &claimed["workerPeerId"]), (&json!("Why is the sky blue?"), &json!(a.keeper.id())));
    let result = document(&results).unwrap();
    assert_eq!((&result["taskId"], &result["workerPeerId"]), (&json!("js-1"), &json!(a.keeper.id())));
    js.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn a_peer_in_javascript_is_told_of_a_failure_once_no_attempt_is_left() {
    let a = Holder::start(1, &[]).await;
    let (js, tasks, results) = foreigner(2, &a).await;
    put_raw(&tasks, &js_task("js-1", "PENDING")).await;
    a.sees(&id("js-1"), TaskStatus::Pending).await;
    let document = |database: &Database| database.get("js-1").map(|row| row.value.to_json()).unwrap_or_default();
    for attempt in 1..=3_u32 {
        let epoch = Epoch(attempt.into());
        let claim = Claim { attempt, ..claim(epoch.0, a.worker(), GrantedBy::SelfClaim) };
        let grant = a.store.claim(&id("js-1"), claim).await.unwrap();
        let why = format!("out of memory {attempt}");
        let failed = ResultDocument {
            error: Some(why.clone()),
            grant: Some(grant.clone()),
            epoch: Some(epoch),
            ..ResultDocument::new(id("js-1"), "", 0)
        };
        let (_, entry) = a.store.complete(failed, None).await.unwrap();
        a.store.conclude(&id("js-1"), epoch, &grant, &entry, Some(&why)).await.unwrap();
        let claimed = || document(&tasks)["claimedAt"].is_number();
        until_it_shows(|| async {}, || document(&results)["error"] == why && claimed()).await;
        let newest = a.database(TASKS).history("js-1").unwrap();
        assert_eq!(newest.len(), if attempt < 3 { 1 + attempt as usize } else { 5 }, "it is told at the end alone");
    }
    until_it_shows(|| async {}, || document(&tasks)["status"] == "FAILED").await;
    let told = document(&tasks);
    assert_eq!((&told["error"], &told["prompt"]), (&json!("out of memory 3"), &json!("Why is the sky blue?")));
    assert_eq!(a.view(&id("js-1")).await.status, TaskStatus::Failed);
    js.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn a_worker_in_javascript_bids_and_its_result_counts_once_the_bid_is_granted() {
    let a = Holder::start(1, &[]).await;
    let (js, tasks, results) = foreigner(2, &a).await;
    let task = a.submit("Why is the sky blue?").await;
    let shown = || tasks.get(task.as_str()).map(|row| row.value.to_json());
    until_it_shows(|| async {}, || shown().is_some()).await;
    let mut claim = shown().unwrap();
    claim["status"] = json!("CLAIMED");
    claim["workerPeerId"] = json!("js-worker");
    put_raw(&tasks, &claim).await;
    until_it_shows(|| async {}, || a.store.unfinished_view(&task).is_some_and(|view| !view.bids.is_empty())).await;
    assert_eq!(a.status(&task), Some(TaskStatus::Pending), "a bid is no right");
    let bid = a.view(&task).await.bids[0].clone();
    let worker = Worker::Foreign { peer: bid.worker, identity: bid.writer };
    let grant = a.grant(&task, 1, worker).await.unwrap();
    put_raw(
        &results,
        &json!({ "_id": task, "taskId": task, "response": "Rayleigh", "model": "m", "workerPeerId": "js-worker", "completedAt": 5 }),
    )
    .await;
    a.sees(&task, TaskStatus::Completed).await;
    let result = a.view(&task).await.result_hash;
    a.store.settle(&task, Settlement::completed(Some(grant), result)).await.unwrap();
    assert_eq!(a.store.get_result(&task).await.unwrap().unwrap().response, "Rayleigh");
    js.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn what_does_not_count_is_kept_out_and_counted_by_its_reason() {
    let a = Holder::start(1, &[]).await;
    let (mallory, tasks, results) = foreigner(2, &a).await;
    let task = a.submit("mine").await;
    until_it_shows(|| async {}, || tasks.get(task.as_str()).is_some()).await;
    let ours = tasks.get(task.as_str()).unwrap().value.to_json();
    let with = |changes: &[(&str, Json)]| {
        let mut document = ours.clone();
        changes.iter().for_each(|(field, value)| document[*field] = value.clone());
        document
    };
    // Decides what is not its own, grants itself what it may not, takes the task away, and writes what is no document.
    put_raw(&tasks, &with(&[("status", json!("COMPLETED")), ("settled", json!(true)), ("prompt", json!("stolen"))]))
        .await;
    let grant = [("status", json!("CLAIMED")), ("epoch", json!(1)), ("workerPeerId", json!(mallory.id()))];
    put_raw(&tasks, &with(&[&grant[..], &[("grantedBy", json!("requester"))]].concat())).await;
    put_raw(&tasks, &with(&[&grant[..], &[("grantedBy", json!("self"))]].concat())).await;
    put_raw(&tasks, &with(&[("status", json!("DONE"))])).await;
    tasks.del(task.as_str()).await.unwrap();
    put_raw(
        &results,
        &json!({ "_id": task, "taskId": task, "workerPeerId": "x", "grant": "none", "response": "stolen" }),
    )
    .await;
    put_raw(&results, &json!({ "_id": task, "says": "nothing" })).await;
    let wanted = [("deletion", 1), ("form", 2), ("no_grant", 1), ("not_requester", 2), ("proof", 1)];
    until_it_shows(|| async {}, || a.store.refused() == wanted.into()).await;
    let view = a.view(&task).await;
    assert_eq!((view.status, view.settled, view.grants.len(), view.result), (TaskStatus::Pending, false, 0, None));
    let shown = a.store.get_task(&task).unwrap().unwrap();
    assert_eq!((&*shown.prompt, shown.status, shown.settled), ("mine", TaskStatus::Pending, None));
    assert_eq!(a.store.get_result(&task).await.unwrap(), None);
    a.grant(&task, 1, a.worker()).await.expect("nothing stands in the way of the requester");
    mallory.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn a_store_that_is_closed_says_so() {
    let a = Holder::start(1, &[]).await;
    let task = a.submit("mine").await;
    a.store.close().await.unwrap();
    let closed = a.store.create_task(a.store.draft().unwrap()).await;
    assert!(matches!(closed, Err(StoreError::Database(DatabaseError::Closed))));
    assert!(a.store.view(&task).await.is_err());
    a.stop().await;
}
