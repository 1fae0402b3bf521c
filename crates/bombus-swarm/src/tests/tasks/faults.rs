//! What dies between.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_worker_finishes_what_one_that_vanishes_has_begun() {
    let (hanging, echoing) = (Model::new(Mood::Hang), Model::new(Mood::Echo));
    let a = Working::start(1, &[], None).await;
    let b = Working::start(2, &[&a], Some(&hanging)).await;
    a.knows(&b).await;
    let id = a.submit("to be continued").await;
    a.sees(&id, |report| report.status == TaskStatus::Running).await;
    let c = Working::start(3, &[&a], Some(&echoing)).await;
    a.knows(&c).await;
    let gone = b.id();
    b.crash().await;
    let report = a.ends(&id).await;
    assert_eq!((report.status, report.worker.as_deref()), (TaskStatus::Completed, Some(c.id().as_str())));
    assert_eq!((report.attempt, report.failures.len()), (2, 1));
    assert_eq!(report.failures[0].worker_peer_id, gone.as_str());
    assert_eq!(a.response(&id).await, "to be continued");
    for node in [a, c] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_claims_a_task_whose_requester_vanishes_and_the_requester_adopts_the_result() {
    let model = Model::new(Mood::Echo);
    let a = Working::start(1, &[], None).await;
    // Nobody has the model yet, so that the task stays without a grant.
    let b = Working::start(2, &[&a], None).await;
    let id = a.submit("orphaned work").await;
    b.sees(&id, |report| report.status == TaskStatus::Pending).await;
    let directory = a.crash().await;
    let c = Working::start(3, &[&b], Some(&model)).await;
    let seen = c.sees(&id, |report| report.status == TaskStatus::Completed).await;
    assert_eq!((seen.settled, seen.worker.as_deref()), (false, Some(c.id().as_str())));
    assert_eq!(b.sees(&id, |report| report.status == TaskStatus::Completed).await.epoch, seen.epoch);
    let a = Working::start_with(1, &[&b, &c], None, hasty_tasks(), directory).await;
    let report = a.ends(&id).await;
    assert_eq!((report.status, report.epoch, report.settled), (TaskStatus::Completed, seen.epoch, true));
    assert_eq!(a.response(&id).await, "orphaned work");
    assert_eq!(model.asked_in_all(), 1);
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requester_that_starts_again_goes_on_with_its_tasks() {
    let model = Model::new(Mood::Echo);
    let a = Working::start(1, &[], None).await;
    let id = a.submit("kept over the night").await;
    let directory = a.crash().await;
    let a = Working::start_with(1, &[], Some(&model), hasty_tasks(), directory).await;
    let report = a.ends(&id).await;
    assert_eq!((report.status, model.asked_in_all()), (TaskStatus::Completed, 1));
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_stops_the_run_at_once_wherever_it_is_asked_for() {
    let model = Model::new(Mood::Hang);
    let a = Working::start_calmly(1, &[], None).await;
    let b = Working::start_calmly(2, &[&a], Some(&model)).await;
    let c = Working::start_calmly(3, &[&a, &b], None).await;
    a.knows(&b).await;
    c.node.sees_whole(&a.id()).await;
    let mut times = Vec::new();
    for canceller in [&a, &b, &c] {
        let id = a.submit("without an end").await;
        a.sees(&id, |report| report.status == TaskStatus::Running).await;
        canceller.sees(&id, |_| true).await;
        assert_eq!(model.running(), 1);
        let begun = Instant::now();
        let report = canceller.tasks.cancel(&id).await.unwrap();
        until_it_shows(|| async {}, || model.running() == 0).await;
        times.push(begun.elapsed());
        assert_eq!((report.status, report.settled), (TaskStatus::Cancelled, true));
        let again = canceller.tasks.cancel(&id).await.unwrap();
        assert_eq!(again.status, TaskStatus::Cancelled, "what has ended stays as it is");
    }
    times.sort_unstable();
    // It is done within a second where nothing holds the machine up, and without a word only when the lease of a minute is over.
    assert!(times[0] < Duration::from_secs(1) && times[2] < Duration::from_secs(20), "{times:?}");
    let unknown = TaskId::of_key("never submitted");
    assert!(matches!(a.tasks.cancel(&unknown).await, Err(TasksError::UnknownTask(_))));
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_worker_stops_for_any_member_while_the_requester_is_away_and_the_requester_confirms_it() {
    let model = Model::new(Mood::Hang);
    let a = Working::start(1, &[], None).await;
    let b = Working::start(2, &[&a], Some(&model)).await;
    let c = Working::start(3, &[&a, &b], None).await;
    a.knows(&b).await;
    let id = a.submit("without an end").await;
    c.sees(&id, |report| report.epoch.0 == 1).await;
    until_it_shows(|| async {}, || model.running() == 1).await;
    let directory = a.crash().await;
    let report = c.tasks.cancel(&id).await.unwrap();
    assert!(report.cancelling && !report.settled, "{report:?}");
    until_it_shows(|| async {}, || model.running() == 0).await;
    assert!(b.sees(&id, |report| report.cancelling).await.completed_at.is_none());
    let a = Working::start_with(1, &[&b, &c], None, hasty_tasks(), directory).await;
    assert_eq!(a.ends(&id).await.status, TaskStatus::Cancelled);
    assert_eq!(c.ends(&id).await.status, TaskStatus::Cancelled);
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_drains_hands_back_what_it_cannot_finish() {
    let (hanging, echoing) = (Model::new(Mood::Hang), Model::new(Mood::Echo));
    let a = Working::start_calmly(1, &[], None).await;
    let b = Working::start_calmly(2, &[&a], Some(&hanging)).await;
    a.knows(&b).await;
    let id = a.submit("passed on").await;
    a.sees(&id, |report| report.status == TaskStatus::Running).await;
    let c = Working::start_calmly(3, &[&a, &b], Some(&echoing)).await;
    a.knows(&c).await;
    b.tasks.drain(Duration::from_millis(100)).await;
    let report = a.ends(&id).await;
    assert_eq!((report.status, report.worker.as_deref()), (TaskStatus::Completed, Some(c.id().as_str())));
    assert_eq!(report.failures, [], "to be handed back is no failure of the task");
    for node in [a, b, c] {
        node.stop().await;
    }
}
