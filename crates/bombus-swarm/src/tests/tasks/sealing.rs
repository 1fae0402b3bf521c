//! What only some may read.

use std::fs;
use std::path::Path;

use super::*;
use crate::tasks::{SealChoice, TaskNews};

fn sealed(prompt: &str, seal_to: u32) -> Submission {
    Submission { seal_to: Some(seal_to), ..Submission::prompt("echo", prompt) }
}

/// Says whether any file below a directory has some text in it.
fn stands_in(text: &str, directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().map(Result::unwrap).any(|entry| {
        if entry.file_type().unwrap().is_dir() {
            return stands_in(text, &entry.path());
        }
        fs::read(entry.path()).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_third_node_holds_the_entries_of_a_sealed_task_and_cannot_read_them() {
    let model = Model::new(Mood::Hang);
    let a = Working::start(1, &[], None).await;
    let b = Working::start(2, &[&a], Some(&model)).await;
    let c = Working::start(3, &[&a, &b], None).await;
    a.knows(&b).await;
    c.node.sees_whole(&b.id()).await;
    c.node.sees_whole(&a.id()).await;
    let id = a.tasks.submit(sealed("confidential figures of October", 1)).await.unwrap().id;
    c.sees(&id, |report| report.epoch.0 == 1 && report.encrypted).await;
    let mut news = c.tasks.follow(&id).await.unwrap();
    until_it_shows(|| async {}, || model.running() == 1).await;
    model.mood.send_replace(Mood::Echo);
    let report = a.ends(&id).await;
    assert_eq!((report.status, report.worker.as_deref()), (TaskStatus::Completed, Some(b.id().as_str())));
    assert_eq!(a.response(&id).await, "confidential figures of October");

    for other in [&b, &c] {
        other.sees(&id, |report| report.settled).await;
        let result = other.tasks.result(&id).await.unwrap().unwrap();
        assert!(result.sealed && result.response.is_empty(), "{result:?}");
        assert_eq!(result.eval_count, Some(4), "what stays plain");
    }
    let to_the_end = async {
        while let Some(news) = news.next().await {
            assert!(!matches!(news, TaskNews::Token { .. }), "{news:?}");
        }
    };
    timeout(TASK_LIMIT, to_the_end).await.expect("it ends for those who cannot read it, too");

    let open = a.submit("everybody may know this").await;
    a.ends(&open).await;
    c.sees(&open, |report| report.settled).await;
    let directories = [a.stop().await, b.stop().await, c.stop().await];
    for directory in &directories {
        assert!(stands_in("everybody may know this", directory.path()));
        assert!(!stands_in("confidential", directory.path()), "on no disk, in neither prompt nor answer");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_worker_dies_the_requester_seals_anew_for_the_next_one() {
    // So large that it stands in blocks.
    let prompt = "word ".repeat(4_000);
    let (hanging, echoing) = (Model::new(Mood::Hang), Model::new(Mood::Echo));
    let a = Working::start(1, &[], None).await;
    let b = Working::start(2, &[&a], Some(&hanging)).await;
    a.knows(&b).await;
    let id = a.tasks.submit(sealed(&prompt, 1)).await.unwrap().id;
    a.sees(&id, |report| report.status == TaskStatus::Running).await;
    let c = Working::start(3, &[&a], Some(&echoing)).await;
    a.knows(&c).await;
    b.crash().await;
    let report = a.ends(&id).await;
    assert_eq!((report.status, report.worker.as_deref()), (TaskStatus::Completed, Some(c.id().as_str())));
    assert_eq!(a.response(&id).await, prompt);
    assert_eq!(echoing.asked().get(&prompt), Some(&1));
    for node in [a, c] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_worker_answers_while_the_requester_is_away_which_reads_it_when_it_is_back() {
    let model = Model::new(Mood::Hang);
    let a = Working::start(1, &[], None).await;
    let b = Working::start(2, &[&a], Some(&model)).await;
    let c = Working::start(3, &[&a, &b], None).await;
    a.knows(&b).await;
    let id = a.tasks.submit(sealed("a sealed letter", 1)).await.unwrap().id;
    c.sees(&id, |report| report.epoch.0 == 1).await;
    until_it_shows(|| async {}, || model.running() == 1).await;
    let directory = a.crash().await;
    model.mood.send_replace(Mood::Echo);
    let seen = c.sees(&id, |report| report.status == TaskStatus::Completed).await;
    assert!(!seen.settled);
    let a = Working::start_with(1, &[&b, &c], None, hasty_tasks(), directory).await;
    assert_eq!(a.ends(&id).await.status, TaskStatus::Completed);
    assert_eq!(a.response(&id).await, "a sealed letter");
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_task_under_the_same_key_is_the_same_and_another_one_is_refused() {
    let model = Model::new(Mood::Echo);
    let a = Working::start_calmly(1, &[], Some(&model)).await;
    let b = Working::start_calmly(2, &[&a], None).await;
    b.knows(&a).await;
    let of_key = |prompt: &str| Submission { id: Some(TaskId::of_key("letter 17")), ..sealed(prompt, 1) };
    let id = a.tasks.submit(of_key("one")).await.unwrap().id;
    a.ends(&id).await;
    assert_eq!(a.tasks.submit(of_key("one")).await.unwrap().status, TaskStatus::Completed);
    assert!(matches!(a.tasks.submit(of_key("two")).await, Err(TasksError::Conflict(_))));
    let unsealed = Submission { seal_to: None, ..of_key("one") };
    assert!(matches!(a.tasks.submit(unsealed).await, Err(TasksError::Conflict(_))), "it is not the same to seal it");
    b.sees(&id, |report| report.settled).await;
    assert_eq!(b.tasks.submit(of_key("one")).await.unwrap().requester, a.id().as_str());
    assert_eq!(model.asked_in_all(), 1);
    for node in [a, b] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_sealed_is_not_taken_where_everything_is_to_be() {
    let always = || TasksConfig { seal: SealChoice::Always, ..hasty_tasks() };
    let alone = Working::start_with(1, &[], None, always(), TempDir::new().unwrap()).await;
    let refused = alone.tasks.submit(Submission::prompt("echo", "hello")).await.unwrap_err();
    assert!(
        matches!(&refused, TasksError::Invalid { param: "encrypt", message } if message.contains("echo")),
        "{refused}"
    );
    alone.stop().await;
    let model = Model::new(Mood::Echo);
    let node = Working::start_with(2, &[], Some(&model), always(), TempDir::new().unwrap()).await;
    let report = node.tasks.submit(Submission::prompt("echo", "unasked for")).await.unwrap();
    assert!(report.encrypted);
    node.ends(&report.id).await;
    assert_eq!(node.response(&report.id).await, "unasked for");
    assert!(!stands_in("unasked for", node.stop().await.path()));
}
