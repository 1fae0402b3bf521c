//! Nobody is killed or cut off: each task runs exactly once.

use std::collections::BTreeSet;
use std::time::Duration;

use bombus_core::tasks::TaskStatus;
use bombus_testkit::simulator::{Network, for_each_seed};

use super::node::Order;
use super::world::{Shape, World};

/// Streams lose nothing while their connection stands.
pub(crate) fn network(delay_ms_max: u64) -> Network {
    Network { delay_ms: 1..=delay_ms_max, ordered: true, broken_after_ms: Some(12_000), ..Network::lan() }
}

fn shape(seed: u64) -> Shape {
    let nodes = 1 + (seed % 6) as usize;
    let slots = (0..nodes).map(|node| ((seed + node as u64) % 4) as u32).collect::<Vec<u32>>();
    let mut shape = Shape::of(slots);
    // Somebody has to run them.
    shape.slots[0] = shape.slots[0].max(1);
    shape.lost_entries = [0.0, 0.2][(seed % 2) as usize];
    shape.run_ms = if seed.is_multiple_of(5) { 1..=40_000 } else { 1..=2_000 };
    shape
}

fn assert_each_began_once(world: &World) {
    for task in &world.tasks {
        assert_eq!(world.began.get(task), Some(&1), "{task}");
    }
}

#[test]
fn while_nobody_is_killed_or_cut_off_each_task_runs_exactly_once() {
    for_each_seed(0..60, |seed| {
        let mut world = World::new(seed, network(1 + seed % 50), shape(seed));
        world.run_for(2_000 * (seed % 3));
        for _ in 0..40 {
            let node = world.random_node();
            world.submit(node, "m");
            let wait_ms = world.simulation.random().within(&(0..=400));
            world.run_for(wait_ms);
        }
        world.recover(1_200_000);
        world.assert_all_final();
        assert_eq!(world.tally.completed, 40);
        assert_each_began_once(&world);
    });
}

#[test]
fn a_task_goes_to_who_has_its_model_and_waits_for_as_long_as_nobody_has() {
    for_each_seed(0..30, |seed| {
        let mut shape = Shape::of(vec![2, 2, 1]);
        shape.models.insert(0, BTreeSet::new());
        shape.models.insert(1, BTreeSet::from(["a".to_owned()]));
        shape.models.insert(2, BTreeSet::from(["b".to_owned()]));
        let mut world = World::new(seed, network(20), shape);
        world.kill(2);
        world.run_for(3_000);
        let tasks: Vec<_> = (0..20).map(|number| world.submit(0, ["a", "b"][number % 2])).collect();
        world.run_for(600_000);
        for (number, task) in tasks.iter().enumerate() {
            let status = world.view(0, task).unwrap().status;
            let expected = [TaskStatus::Completed, TaskStatus::Pending][number % 2];
            assert_eq!(status, expected, "{task} with {} at 0", ["a", "b"][number % 2]);
        }
        world.simulation.restart(2);
        world.recover(120_000);
        world.assert_all_final();
        assert_each_began_once(&world);
    });
}

#[test]
fn failed_runs_are_tried_again_and_end_after_the_last_attempt() {
    for_each_seed(0..30, |seed| {
        let mut shape = shape(seed);
        shape.failed_runs = [0.3, 1.0][(seed % 2) as usize];
        let mut world = World::new(seed, network(20), shape);
        for _ in 0..20 {
            let node = world.random_node();
            world.submit(node, "m");
        }
        world.recover(1_200_000);
        world.assert_all_final();
        for task in &world.tasks {
            let view = world.view(0, task).unwrap();
            let failed = view.failures.len() as u32;
            assert!(failed <= 3, "{task}: {:?}", view.failures);
            let answered = u32::from(view.status == TaskStatus::Completed);
            assert_eq!(world.began[task], failed + answered, "{task}: {:?}", view.failures);
        }
        if seed % 2 == 1 {
            assert_eq!(world.tally.failed, 20);
        }
        assert_eq!(world.tally.doubles, 0);
    });
}

#[test]
fn tasks_of_programs_that_give_no_grants_are_claimed_and_run_once() {
    for_each_seed(0..30, |seed| {
        let mut world = World::new(seed, network(20), Shape::of(vec![2, 2, 2, 2]));
        world.run_for(3_000);
        for _ in 0..20 {
            let node = world.random_node();
            world.submit_as(node, "m", Order::SubmitForeign);
            let wait_ms = world.simulation.random().within(&(0..=1_000));
            world.run_for(wait_ms);
        }
        world.recover(600_000);
        world.assert_all_final();
        assert_eq!(world.tally.completed, 20);
        assert_each_began_once(&world);
    });
}

#[test]
fn a_bid_of_a_worker_that_knows_no_grants_is_granted_and_its_answer_counts() {
    for_each_seed(0..20, |seed| {
        // Nobody else could run it.
        let mut shape = Shape::of(vec![0, 0]);
        shape.config.foreign_workers = true;
        let mut world = World::new(seed, network(20), shape);
        world.run_for(3_000);
        let task = world.submit(0, "m");
        world.run_for(1_000);
        world.simulation.command(1, Order::Bid { task: task.clone(), answers: seed % 4 < 2 });
        world.run_for(10_000);
        if seed % 4 >= 2 {
            assert_eq!(world.view(0, &task).unwrap().status, TaskStatus::Claimed);
            // It is given up, and granted to the next bid.
            world.run_for(700_000);
            let view = world.view(0, &task).unwrap();
            assert_eq!(view.failures.len(), 1, "{view:?}");
            world.simulation.command(1, Order::Bid { task: task.clone(), answers: true });
        }
        world.recover(60_000);
        world.assert_all_final();
        assert_eq!(world.tally.completed, 1);
    });
}

#[test]
fn a_cancelled_task_ends_at_once_wherever_that_is_said() {
    for_each_seed(0..60, |seed| {
        let mut shape = Shape::of(vec![1, 1, 1]);
        shape.run_ms = 1..=20_000;
        let mut world = World::new(seed, network(20), shape);
        world.run_for(3_000);
        for _ in 0..20 {
            let node = world.random_node();
            world.submit(node, "m");
        }
        let wait_ms = world.simulation.random().within(&(0..=20_000));
        world.run_for(wait_ms);
        for task in world.tasks.clone() {
            let node = world.random_node();
            world.simulation.command(node, Order::Cancel(task));
        }
        world.run_for(2_500);
        for task in &world.tasks {
            assert!(world.is_final(task), "{task} within two seconds: {:?}", world.view(0, task).unwrap().status);
        }
        world.recover(1_000);
        world.assert_all_final();
        assert!(world.began.values().all(|times| *times == 1));
    });
}

#[test]
fn a_node_that_drains_finishes_or_hands_back_and_begins_nothing() {
    for_each_seed(0..30, |seed| {
        let mut shape = Shape::of(vec![2, 2, 2]);
        shape.run_ms = 1..=10_000;
        let mut world = World::new(seed, network(20), shape);
        world.run_for(3_000);
        for _ in 0..30 {
            let node = world.random_node();
            world.submit(node, "m");
        }
        world.run_for(2_000);
        let leaver = (seed % 3) as usize;
        world.simulation.command(leaver, Order::Drain);
        world.run_for(5_000);
        assert!(world.drained.contains(&leaver), "all has stopped within the grace time of 3 s");
        world.run_for(60_000);
        world.restart(leaver);
        world.recover(600_000);
        world.assert_all_final();
        assert_eq!((world.tally.completed, world.tally.doubles), (30, 0));
        let handed_back = world.tasks.iter().filter(|task| world.view(0, task).unwrap().failures.is_empty());
        assert_eq!(handed_back.count(), 30, "to be handed back is no failure");
    });
}

#[test]
fn the_limit_of_a_run_ends_it() {
    for_each_seed(0..10, |seed| {
        let mut shape = Shape::of(vec![1, 1]);
        shape.run_ms = 50_000..=60_000;
        shape.config.run_limit = Duration::from_secs(10);
        let mut world = World::new(seed, network(20), shape);
        world.run_for(3_000);
        let task = world.submit(0, "m");
        world.recover(300_000);
        world.assert_all_final();
        let view = world.view(1, &task).unwrap();
        assert_eq!((view.status, view.failures.len(), world.began[&task]), (TaskStatus::Failed, 3, 3));
        assert!(view.failures.iter().all(|failure| failure.reason.contains("10 s")), "{:?}", view.failures);
    });
}
