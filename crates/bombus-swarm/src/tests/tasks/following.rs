//! Reading along.

use super::*;
use crate::tasks::TaskNews;

/// Reads along to the end; returns the text that counts, and how often it began anew. Counts itself among those that have begun.
async fn read(node: &Working, id: &TaskId, begun: &watch::Sender<usize>) -> (String, usize, TaskReport) {
    let mut news = node.tasks.follow(id).await.unwrap();
    let (mut text, mut anew) = (String::new(), 0);
    let reading = async {
        while let Some(news) = news.next().await {
            match news {
                TaskNews::Token { text: more } => {
                    if text.is_empty() && anew == 0 {
                        begun.send_modify(|count| *count += 1);
                    }
                    text.push_str(&more);
                }
                TaskNews::Attempt { .. } => {
                    text.clear();
                    anew += 1;
                }
                TaskNews::State(_) => {}
                TaskNews::Done(report) => return *report,
            }
        }
        panic!("it ended without saying how");
    };
    let report = timeout(TASK_LIMIT, reading).await.expect("the task ends");
    (text, anew, report)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_read_while_it_is_written_on_the_requester_the_worker_and_a_third_node() {
    let model = Model::new(Mood::Hang);
    let a = Working::start_calmly(1, &[], None).await;
    let b = Working::start_calmly(2, &[&a], Some(&model)).await;
    let c = Working::start_calmly(3, &[&a, &b], None).await;
    a.knows(&b).await;
    c.node.sees_whole(&b.id()).await;
    let id = a.submit("first second third").await;
    a.sees(&id, |report| report.status == TaskStatus::Running).await;
    c.sees(&id, |report| report.epoch.0 == 1).await;
    for node in [&a, &b, &c] {
        let mut news = node.tasks.follow(&id).await.unwrap();
        let first = async {
            while let Some(news) = news.next().await {
                if let TaskNews::Token { text } = news {
                    return text;
                }
            }
            panic!("it ended");
        };
        assert_eq!(timeout(LIMIT, first).await.expect("the first word comes before the last"), "first ");
    }
    let begun = watch::Sender::new(0);
    let reading = futures::future::join_all([&a, &b, &c].map(|node| read(node, &id, &begun)));
    let (read, ()) = tokio::join!(reading, async {
        begun.subscribe().wait_for(|count| *count == 3).await.unwrap();
        model.mood.send_replace(Mood::Echo);
    });
    for (text, anew, report) in read {
        assert_eq!((text.as_str(), anew, report.status), ("first second third", 0, TaskStatus::Completed));
    }
    let late = read_late(&c, &id).await;
    assert_eq!(late, "first second third", "who comes late gets all of it");
    for node in [a, b, c] {
        node.stop().await;
    }
}

async fn read_late(node: &Working, id: &TaskId) -> String {
    read(node, id, &watch::Sender::new(0)).await.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_along_is_told_that_another_attempt_begins() {
    let (hanging, echoing) = (Model::new(Mood::Hang), Model::new(Mood::Echo));
    let a = Working::start(1, &[], None).await;
    let b = Working::start(2, &[&a], Some(&hanging)).await;
    a.knows(&b).await;
    let id = a.submit("once more").await;
    a.sees(&id, |report| report.progress.tokens > 0).await;
    let c = Working::start(3, &[&a], Some(&echoing)).await;
    a.knows(&c).await;
    let begun = watch::Sender::new(0);
    let (read, _) = tokio::join!(read(&a, &id, &begun), async {
        begun.subscribe().wait_for(|count| *count == 1).await.unwrap();
        b.crash().await
    });
    let (text, anew, report) = read;
    assert_eq!((text.as_str(), anew, report.attempt), ("once more", 1, 2));
    for node in [a, c] {
        node.stop().await;
    }
}
