//! What is too large for an entry.

use bombus_core::chat::{Message, Role};
use bombus_core::tasks::{AttemptFailure, TaskOptions};

use super::*;

fn megabyte() -> String {
    (0..1 << 20).map(|number: u32| char::from(b'a' + u8::try_from(number * 7 % 26).unwrap())).collect()
}

#[tokio::test]
async fn a_large_prompt_is_read_by_a_second_node_after_the_first_is_gone_and_by_a_third_from_the_second() {
    let a = Holder::start(1, &[]).await;
    let b = Holder::start(2, &[&a.keeper]).await;
    let task = a.submit(&megabyte()).await;
    let entry = a.store.get_task(&task).unwrap().unwrap();
    assert!(entry.prompt.is_empty() && entry.prompt_block.is_some(), "it does not stand in the entry");
    b.sees(&task, TaskStatus::Pending).await;
    // Nobody has asked for it: it comes by itself.
    until_it_shows(|| async {}, || b.store.size().unwrap().text_bytes > 1 << 20).await;
    let root = entry.prompt_block.unwrap().parse().unwrap();
    let root = b.keeper.db.block(&root).await.unwrap().expect("the root is here");
    let parts = orbitdb::cbor::Value::decode(&root).unwrap();
    let parts = parts.as_list().unwrap();
    assert_eq!(parts.len(), 5, "no block is larger than 256 KiB");
    for part in parts {
        let orbitdb::cbor::Value::Link(part) = part else { panic!("{part:?}") };
        let part = orbitdb::cid::Hash::from_cid(part).unwrap();
        let here = async {
            while b.keeper.db.block(&part).await.unwrap().is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        timeout(LIMIT, here).await.expect("all parts come");
    }
    a.crash().await;
    let view = b.view(&task).await;
    assert!(b.store.whole_task(&view.task).await.unwrap().prompt == megabyte());

    let c = Holder::start(3, &[&b.keeper]).await;
    c.sees(&task, TaskStatus::Pending).await;
    let view = c.view(&task).await;
    assert!(c.store.whole_task(&view.task).await.unwrap().prompt == megabyte());
    c.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn large_answers_conversations_and_vectors_come_back_whole_and_outlive_a_restart() {
    let a = Holder::start(1, &[]).await;
    let messages = vec![Message::text(Role::User, megabyte())];
    let document = TaskDocument { messages: Some(messages.clone()), ..a.store.draft().unwrap() };
    let task = a.store.create_task(document).await.unwrap().id;
    let grant = a.grant(&task, 1, a.worker()).await.unwrap();
    let result = a.answer(&task, &grant, 1, &megabyte()).await;
    a.store.settle(&task, Settlement::completed(Some(grant), Some(result))).await.unwrap();
    let vector: Vec<f64> = (0..4_096).map(|number| f64::from(number) / 7.0).collect();
    let other = a.submit("embed").await;
    let grant = a.grant(&other, 1, a.worker()).await.unwrap();
    let embedding = ResultDocument {
        embedding: Some(vector.clone()),
        grant: Some(grant),
        ..ResultDocument::new(other.clone(), "", 0)
    };
    let (stored, _) = a.store.complete(embedding, None).await.unwrap();
    assert_eq!(stored.embedding, Some(Vec::new()));
    let sealed = Some(json!({ "to": ["x".repeat(20 << 10)] }));
    let document = TaskDocument { sealed: sealed.clone(), ..a.store.draft().unwrap() };
    let secret = a.store.create_task(document).await.unwrap().id;
    for entry in [&a.database(TASKS), &a.database(RESULTS)].into_iter().flat_map(|database| database.query(|_| true)) {
        assert!(entry.value.encode().unwrap().len() < 16 << 10);
    }
    let directory = a.stop().await;

    let a = Holder::again(1, &[], directory).await;
    let view = a.view(&task).await;
    assert_eq!(view.task.messages.as_deref(), Some(&[][..]));
    assert!(a.store.whole_task(&view.task).await.unwrap().messages == Some(messages));
    assert!(a.store.get_result(&task).await.unwrap().unwrap().response == megabyte());
    assert!(a.store.get_result(&other).await.unwrap().unwrap().embedding == Some(vector));
    let view = a.view(&secret).await;
    assert!(a.store.whole_task(&view.task).await.unwrap().sealed == sealed);
    a.stop().await;
}

#[tokio::test]
async fn entries_stay_small_however_much_goes_with_a_prompt_and_however_attempts_fail() {
    let a = Holder::start(1, &[]).await;
    let b = Holder::start(2, &[&a.keeper]).await;
    let options = TaskOptions { stop: Some(vec!["y".repeat(30 << 10); 3]), ..TaskOptions::default() };
    let wordy = TaskDocument {
        prompt: "p".repeat(8 << 10),
        system: Some("x".repeat(100 << 10)),
        options: Some(options.clone()),
        map: Some("m".repeat(7 << 10)),
        reduce: Some("r".repeat(7 << 10)),
        ..a.store.draft().unwrap()
    };
    let task = a.store.create_task(wordy.clone()).await.unwrap().id;
    let failure = |epoch| AttemptFailure {
        epoch: Epoch(epoch),
        worker_peer_id: a.keeper.id().to_string(),
        reason: format!("{epoch}: {}", "\u{fc}".repeat(1_000)),
        at: 7,
    };
    for epoch in 1..=20 {
        a.grant(&task, epoch, a.worker()).await.unwrap();
        a.store.release(&task, Epoch(epoch), Some(failure(epoch))).await.unwrap();
    }
    let failures = a.view(&task).await.failures;
    assert_eq!(failures.len(), 20);
    assert!(failures.iter().all(|failure| failure.reason.starts_with(&format!("{}: ", failure.epoch.0))));
    a.store.settle(&task, Settlement::failed("e".repeat(2_000), failures)).await.unwrap();
    let sizes: Vec<usize> = a
        .database(TASKS)
        .history(task.as_str())
        .unwrap()
        .iter()
        .map(|record| record.operation.value.encode().unwrap().len())
        .collect();
    assert!(sizes.len() == 42 && sizes.iter().all(|size| *size < 16 << 10), "{sizes:?}");

    b.sees(&task, TaskStatus::Failed).await;
    let read = b.store.whole_task(&b.view(&task).await.task).await.unwrap();
    assert!(read.system == wordy.system && read.map == wordy.map && read.reduce == wordy.reduce);
    assert!(read.options == Some(options) && read.prompt == wordy.prompt);
    assert_eq!(b.view(&task).await.failures.len(), 20, "entries before name those before");
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_anything_is_written() {
    let a = Holder::start(1, &[]).await;
    let huge = TaskDocument { prompt: "x".repeat((32 << 20) + 1), ..a.store.draft().unwrap() };
    assert!(matches!(a.store.create_task(huge).await, Err(StoreError::TooLarge { max, .. }) if max == 32 << 20));
    let wordy = TaskDocument { system: Some("x".repeat(32 << 20)), ..a.store.draft().unwrap() };
    assert!(matches!(a.store.create_task(wordy).await, Err(StoreError::TooLarge { .. })));
    let joined = TaskDocument { join: Some("x".repeat(200 << 10)), ..a.store.draft().unwrap() };
    assert!(matches!(a.store.create_task(joined).await, Err(StoreError::TooLarge { .. })));
    assert_eq!((a.store.size().unwrap().tasks, a.database(TASKS).info().unwrap().entries), (0, 0));
    a.stop().await;
}
