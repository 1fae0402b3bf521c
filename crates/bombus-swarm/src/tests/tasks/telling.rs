//! What those hear who only watch.

use bombus_core::topics::{Topic, TopicMessage};

use super::*;
use crate::MessageStream;
use crate::tasks::TaskFilter;

/// The three topics of tasks, as a node hears them.
struct Watching {
    broadcasts: MessageStream,
    claims: MessageStream,
    results: MessageStream,
}

impl Watching {
    fn from(node: &Working) -> Self {
        let of = |topic| node.node.swarm.messages(topic);
        Self { broadcasts: of(Topic::TaskBroadcast), claims: of(Topic::TaskClaim), results: of(Topic::TaskResult) }
    }
}

/// Returns what is heard of a task on a topic, and from whom.
async fn about(stream: &mut MessageStream, id: &TaskId) -> (NodeId, TopicMessage) {
    let heard = async {
        while let Some(heard) = stream.next().await {
            let of = match &*heard.message {
                TopicMessage::Task(task) => &task.task_id,
                TopicMessage::TaskClaim(claim) => &claim.task_id,
                TopicMessage::TaskResult(result) => &result.task_id,
                _ => continue,
            };
            if *of == id.as_str() {
                return (heard.from, TopicMessage::clone(&heard.message));
            }
        }
        panic!("the topic ends");
    };
    timeout(LIMIT, heard).await.expect("it is told")
}

/// Has tasks done until those who watch hear of it: before that the topic may not yet lead to them.
async fn hears(node: &Working, stream: &mut MessageStream) {
    let heard = async {
        loop {
            let id = node.submit("warm up").await;
            node.ends(&id).await;
            if timeout(Duration::from_millis(200), stream.next()).await.is_ok() {
                return;
            }
        }
    };
    timeout(LIMIT, heard).await.expect("somebody is heard");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_the_topics_hears_what_there_is_to_do_who_does_it_and_how_it_ended() {
    let model = Model::new(Mood::FailOn("never"));
    let a = Working::start(1, &[], None).await;
    let b = Working::start(2, &[&a], Some(&model)).await;
    let c = Working::start(3, &[&a, &b], None).await;
    a.knows(&b).await;
    for peer in [&a, &b] {
        c.node.sees_whole(&peer.id()).await;
    }
    let mut watching = Watching::from(&c);
    for stream in [&mut watching.broadcasts, &mut watching.claims, &mut watching.results] {
        hears(&a, stream).await;
    }
    let urgent = Submission { priority: 8, ..Submission::prompt("echo", "a secret") };
    let done = a.tasks.submit(urgent).await.unwrap().id;
    a.ends(&done).await;

    let (from, TopicMessage::Task(task)) = about(&mut watching.broadcasts, &done).await else { panic!("no task") };
    assert_eq!((from, task.task_id.as_str(), task.model.as_str()), (a.id(), done.as_str(), "echo"));
    assert_eq!((&task.params["task_type"], &task.params["priority"]), (&"inference".into(), &8.into()));
    assert_eq!((task.issue_url, task.input.as_str()), (format!("/task/{done}"), ""), "what is asked is not told");
    let (from, TopicMessage::TaskClaim(claim)) = about(&mut watching.claims, &done).await else { panic!("no claim") };
    assert_eq!((from, claim.task_id.as_str(), claim.node_id.as_str()), (b.id(), done.as_str(), b.id().as_str()));
    let (from, TopicMessage::TaskResult(result)) = about(&mut watching.results, &done).await else {
        panic!("no result")
    };
    assert_eq!((from, result.task_id.as_str(), result.result_type.as_str()), (b.id(), done.as_str(), "inference"));
    assert_eq!(result.result_url, format!("/task/{done}"));

    let failed = a.submit("never ever").await;
    a.ends(&failed).await;
    let (from, TopicMessage::TaskResult(result)) = about(&mut watching.results, &failed).await else {
        panic!("no result")
    };
    assert_eq!((from, result.task_id.as_str(), result.result_type.as_str()), (a.id(), failed.as_str(), "failure"));

    model.mood.send_replace(Mood::Hang);
    let mut events = c.node.swarm.events(None);
    let cancelled = a.submit("no end").await;
    a.sees(&cancelled, |report| report.status == TaskStatus::Running).await;
    c.sees(&cancelled, |report| report.epoch.0 == 1).await;
    c.tasks.cancel(&cancelled).await.unwrap();
    let (from, TopicMessage::TaskResult(result)) = about(&mut watching.results, &cancelled).await else {
        panic!("no result")
    };
    assert_eq!((from, result.task_id.as_str(), result.result_type.as_str()), (a.id(), cancelled.as_str(), "cancelled"));
    let ended = async {
        loop {
            match events.next().await {
                Some(EventItem::Event(event)) if event.data["task_id"] == cancelled.as_str() => match event.kind {
                    "task:failed" => panic!("who is cancelled has not failed"),
                    "task:cancelled" => return event,
                    _ => {}
                },
                Some(_) => {}
                None => panic!("the events end"),
            }
        }
    };
    assert_eq!(timeout(LIMIT, ended).await.expect("the end is told").data["status"], "CANCELLED");
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_nobody_can_do_says_why_it_waits_and_lists_have_it_among_those_that_wait() {
    let model = Model::new(Mood::Hang);
    let a = Working::start(1, &[], None).await;
    let b = Working::start(2, &[&a], Some(&model)).await;
    a.knows(&b).await;
    let why = async |submission: Submission| {
        let report = a.tasks.submit(submission).await.unwrap();
        (report.id.clone(), a.tasks.hindrance(&report).await)
    };
    let (unknown, reason) = why(Submission::prompt("unknown", "hello")).await;
    assert_eq!(reason.as_deref(), Some("no node that is here has the model 'unknown' for it"));
    let (_, reason) = why(Submission { to: Some(a.id()), ..Submission::prompt("echo", "hello") }).await;
    assert_eq!(reason.as_deref(), Some("the node that is to do it has not the model 'echo' for it"));
    let nobody = NodeKey::from_secret(&[9; 32]).node_id();
    let (_, reason) = why(Submission { to: Some(nobody), ..Submission::prompt("echo", "hello") }).await;
    assert_eq!(reason.as_deref(), Some("the node that is to do it is not here"));
    let (running, reason) = why(Submission::prompt("echo", "hello you")).await;
    assert_eq!(reason, None);
    let report = a.sees(&running, |report| report.status == TaskStatus::Running).await;
    assert_eq!(a.tasks.hindrance(&report).await, None);
    b.sees(&unknown, |_| true).await;
    let report = b.tasks.report(&unknown).await.unwrap();
    assert!(b.tasks.hindrance(&report).await.is_some(), "any node says so");

    let listed = async |statuses: &[TaskStatus]| {
        let filter = TaskFilter { statuses: statuses.to_vec(), limit: 10, ..TaskFilter::default() };
        a.tasks.list(&filter).await.unwrap().tasks.len()
    };
    assert_eq!(listed(&[]).await, 4);
    assert_eq!(listed(&[TaskStatus::Pending, TaskStatus::Claimed]).await, 3);
    assert_eq!(listed(&[TaskStatus::Running]).await, 1);
    let cursor = Some("nothing of the kind".to_owned());
    let refused = a.tasks.list(&TaskFilter { cursor, limit: 10, ..TaskFilter::default() }).await;
    assert!(matches!(refused, Err(TasksError::Invalid { param: "cursor", .. })), "{refused:?}");
    a.tasks.cancel(&running).await.unwrap();
    for node in [a, b] {
        node.stop().await;
    }
}
