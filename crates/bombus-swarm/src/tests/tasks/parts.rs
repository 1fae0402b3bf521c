//! Tasks in parts.

use bombus_core::tasks::chunk::Chunking;

use super::*;
use crate::tasks::TaskFilter;

fn cut(prompt: &str) -> Submission {
    Submission { chunking: Chunking::Paragraph, max_chunk: Some(8), ..Submission::prompt("echo", prompt) }
}

const VERSES: &str = "one one\n\ntwo two\n\nthree x\n\nfour 44";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_run_on_their_own_and_their_answers_keep_their_order() {
    let (left, right) = (Model::new(Mood::Echo), Model::new(Mood::Echo));
    let a = Working::start_calmly(1, &[], None).await;
    let b = Working::start_calmly(2, &[&a], Some(&left)).await;
    let c = Working::start_calmly(3, &[&a, &b], Some(&right)).await;
    a.knows(&b).await;
    a.knows(&c).await;
    let joined = Submission { joiner: Some("|".to_owned()), map: Some("<{text}>".to_owned()), ..cut(VERSES) };
    let submitted = a.tasks.submit(joined.clone()).await.unwrap();
    assert_eq!((submitted.progress.total, submitted.parts.len()), (4, 4));
    let report = a.ends(&submitted.id).await;
    assert_eq!((report.status, report.progress.done, report.settled), (TaskStatus::Completed, 4, true));
    let wanted = "<one one\n\n>|<two two\n\n>|<three x\n\n>|<four 44>";
    assert_eq!(a.response(&submitted.id).await, wanted);
    b.sees(&submitted.id, |report| report.settled).await;
    assert_eq!(b.response(&submitted.id).await, wanted, "any node puts it together");
    let again = Submission { id: Some(submitted.id.clone()), ..joined };
    assert_eq!(a.tasks.submit(again.clone()).await.unwrap().status, TaskStatus::Completed);
    let otherwise = Submission { max_chunk: Some(20), ..again };
    assert!(matches!(a.tasks.submit(otherwise).await, Err(TasksError::Conflict(_))));
    let whole = Submission { id: Some(submitted.id.clone()), ..Submission::prompt("echo", VERSES) };
    assert!(matches!(a.tasks.submit(whole).await, Err(TasksError::Conflict(_))));
    let page = a.tasks.list(&TaskFilter { limit: 10, ..TaskFilter::default() }).await.unwrap();
    assert_eq!(page.tasks.iter().map(|task| &task.id).collect::<Vec<_>>(), [&submitted.id]);
    let parts = TaskFilter { parent: Some(submitted.id), limit: 10, ..TaskFilter::default() };
    assert_eq!(a.tasks.list(&parts).await.unwrap().tasks.len(), 4);
    assert_eq!(left.asked_in_all() + right.asked_in_all(), 4);
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_sums_up_the_answers_of_all_parts() {
    let model = Model::new(Mood::Echo);
    let a = Working::start(1, &[], None).await;
    let b = Working::start(2, &[&a], Some(&model)).await;
    a.knows(&b).await;
    let summed = Submission { reduce: Some("sum: {text}".to_owned()), joiner: Some("+".to_owned()), ..cut(VERSES) };
    let id = a.tasks.submit(summed).await.unwrap().id;
    let report = a.ends(&id).await;
    assert_eq!((report.status, report.progress.total), (TaskStatus::Completed, 5));
    assert_eq!(a.response(&id).await, "sum: one one\n\n+two two\n\n+three x\n\n+four 44");
    let result = a.tasks.result(&id).await.unwrap().unwrap();
    assert_eq!((result.parts.len(), result.parts[1].response.as_deref()), (5, Some("two two\n\n")));
    for node in [a, b] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_fails_fails_the_whole_and_hides_no_other() {
    let model = Model::new(Mood::FailOn("two"));
    let node = Working::start(1, &[], Some(&model)).await;
    let summed = Submission { reduce: Some("sum".to_owned()), ..cut(VERSES) };
    let id = node.tasks.submit(summed).await.unwrap().id;
    let report = node.ends(&id).await;
    assert_eq!((report.status, report.settled), (TaskStatus::Failed, true));
    assert!(report.error.as_deref().unwrap_or_default().contains("as the test wants"), "{report:?}");
    for place in [0, 2, 3] {
        let part = report.parts[place].id.clone();
        assert_eq!(node.ends(&part).await.status, TaskStatus::Completed);
    }
    let sum = report.parts[4].id.clone();
    assert_eq!(node.ends(&sum).await.status, TaskStatus::Failed, "what it needs will never be there");
    let result = node.tasks.result(&id).await.unwrap().unwrap();
    assert!(!result.complete);
    assert_eq!(result.parts[3].response.as_deref(), Some("four 44"));
    assert!(result.parts[1].response.is_none() && result.parts[1].error.is_some());
    node.stop().await;
}
