//! The databases of tasks turn to the next generation while tasks go on.

use super::*;
use crate::store::Retention;

/// Keeps nothing that has ended.
const NOTHING: Retention = Retention { retain: Duration::ZERO, keep: usize::MAX };

impl Working {
    /// Lets go what has ended, and returns which generations went and which has begun.
    async fn prune(&self) -> (Vec<u64>, Option<u64>) {
        let pruned = timeout(TASK_LIMIT, self.tasks.prune(NOTHING, false)).await.expect("it ends").unwrap();
        (pruned.dropped.iter().map(|dropped| dropped.generation).collect(), pruned.begun)
    }

    async fn generations(&self) -> Vec<u64> {
        let size = self.tasks.size().await.unwrap();
        size.generations.iter().map(|generation| generation.generation).collect()
    }

    async fn comes_to_have(&self, generations: &[u64]) {
        let has = async {
            while self.generations().await != generations {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(TASK_LIMIT, has).await.is_err() {
            panic!("it has {:?} and not {generations:?}", self.generations().await);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_turn_of_a_generation_holds_up_no_task_and_doubles_none() {
    let model = Model::new(Mood::Echo);
    model.word_ms.store(5, Ordering::SeqCst);
    let a = Working::start_calmly(1, &[], None).await;
    let b = Working::start_calmly(2, &[&a], Some(&model)).await;
    a.knows(&b).await;
    let submitted = futures::stream::iter(0..120)
        .map(|number| {
            let a = &a;
            async move {
                let id = a.submit(&format!("task number {number}")).await;
                sleep(Duration::from_millis(20)).await;
                (number, id)
            }
        })
        .buffered(4)
        .collect::<Vec<_>>();
    let turns = async {
        for _ in 0..2 {
            sleep(Duration::from_millis(100)).await;
            a.prune().await;
        }
    };
    let (ids, ()) = tokio::join!(submitted, turns);
    let newest = *a.generations().await.last().unwrap();
    assert!(newest > 1, "it has turned");
    for (_, id) in &ids {
        // What has ended may have gone already.
        match timeout(TASK_LIMIT, a.tasks.wait(id)).await.expect("it ends") {
            Ok(report) => assert_eq!((report.status, report.attempt), (TaskStatus::Completed, 1)),
            Err(TasksError::UnknownTask(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let asked = model.asked();
    assert!(asked.len() == ids.len() && asked.values().all(|count| *count == 1), "{asked:?}");
    a.prune().await;
    let last = a.submit("after all that").await;
    assert_eq!(a.ends(&last).await.status, TaskStatus::Completed);
    assert_eq!(b.sees(&last, |report| report.settled).await.worker, Some(b.id().to_string()));
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_late_sees_what_is_kept_and_a_node_that_comes_back_after_long_has_its_task_done() {
    let model = Model::new(Mood::Echo);
    let away = Working::start(3, &[], None).await;
    let id = away.submit("waits for a model").await;
    let directory = away.stop().await;

    let a = Working::start(1, &[], Some(&model)).await;
    let old = a.submit("done long ago").await;
    a.ends(&old).await;
    assert_eq!(a.prune().await, (vec![1], Some(2)));
    let kept = a.submit("kept").await;
    a.ends(&kept).await;
    let late = Working::start(2, &[&a], None).await;
    late.sees(&kept, |report| report.settled).await;
    assert_eq!(late.response(&kept).await, "kept");

    let away = Working::start_with(3, &[&a], None, hasty_tasks(), directory).await;
    away.comes_to_have(&[1, 2]).await;
    assert_eq!(away.ends(&id).await.status, TaskStatus::Completed);
    assert_eq!(away.response(&id).await, "waits for a model");
    assert_eq!(away.sees(&id, |report| report.settled).await.worker, Some(a.id().to_string()));
    assert!(matches!(a.tasks.report(&old).await, Err(TasksError::UnknownTask(_))), "what was over does not come back");
    for node in [late, away, a] {
        node.stop().await;
    }
}
