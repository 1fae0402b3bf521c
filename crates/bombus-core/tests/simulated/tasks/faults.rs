//! Nodes are killed, frozen and cut off while they work: nothing is lost, and each task ends once. `BOMBUS_FAULT_ROUNDS` repeats each loop
//! more often: 20 rounds are a thousand kills and two hundred partitions.

use std::sync::Mutex;

use bombus_core::tasks::TaskStatus;
use bombus_testkit::simulator::for_each_seed;

use super::node::Order;
use super::peaceful::network;
use super::world::{Shape, Tally, World, rounds};

fn shape(seed: u64) -> Shape {
    let nodes = 2 + (seed % 4) as usize;
    let mut shape = Shape::of((0..nodes).map(|node| ((seed / 2 + node as u64) % 3) as u32).collect());
    shape.slots[nodes - 1] = shape.slots[nodes - 1].max(1);
    shape.lost_entries = [0.0, 0.3][(seed % 2) as usize];
    shape.failed_writes = [0.0, 0.0, 0.05][(seed % 3) as usize];
    shape.run_ms = if seed.is_multiple_of(4) { 1..=30_000 } else { 1..=3_000 };
    shape
}

/// Submits some tasks where that is possible.
fn submit_some(world: &mut World, count: usize) {
    for _ in 0..count {
        let node = world.random_node();
        if world.simulation.node(node).is_some() {
            world.submit(node, "m");
        }
    }
}

fn wait(world: &mut World, ms_max: u64) {
    let ms = world.simulation.random().within(&(0..=ms_max));
    world.run_for(ms);
}

/// Runs something with many seeds, and says what happened in all.
fn many(what: &str, seeds: u64, test: impl Fn(u64) -> Tally + Sync) {
    let total = Mutex::new(Tally::default());
    for_each_seed(0..seeds, |seed| {
        let tally = test(seed);
        total.lock().expect("no test fails while it counts").add(&tally);
    });
    total.into_inner().expect("no test fails while it counts").say(what, 0..seeds);
}

fn ended(mut world: World) -> Tally {
    world.recover(3_600_000);
    world.assert_all_final();
    world.tally
}

#[test]
fn whoever_is_killed_nothing_is_lost_and_each_task_ends_once() {
    many("kills", 5 * rounds(), |seed| {
        let mut world = World::new(seed, network(1 + seed % 40), shape(seed));
        world.run_for(2_000);
        while world.tally.kills < 10 {
            submit_some(&mut world, 6);
            wait(&mut world, 6_000);
            let node = world.random_node();
            match world.simulation.random().index(3) {
                0 => world.restart(node),
                1 => world.kill(node),
                _ => {
                    world.kill(node);
                    // Long enough for others to take over, or not quite.
                    wait(&mut world, 90_000);
                    world.restart(node);
                }
            }
            let node = world.random_node();
            if world.simulation.node(node).is_none() {
                world.restart(node);
            }
        }
        ended(world)
    });
}

#[test]
fn whoever_is_cut_off_nothing_is_lost_and_each_task_ends_once() {
    many("partitions", rounds(), |seed| {
        let mut world = World::new(seed, network(1 + seed % 40), shape(seed));
        world.run_for(2_000);
        let nodes = 2 + (seed % 4) as usize;
        for _ in 0..10 {
            submit_some(&mut world, 6);
            wait(&mut world, 4_000);
            let part: Vec<usize> = (0..nodes).filter(|_| world.simulation.random().chance(0.5)).collect();
            world.simulation.partition(&[&[], &part]);
            world.tally.partitions += 1;
            submit_some(&mut world, 3);
            wait(&mut world, 100_000);
            world.simulation.heal();
            wait(&mut world, 10_000);
        }
        ended(world)
    });
}

#[test]
fn whoever_sleeps_nothing_is_lost_and_each_task_ends_once() {
    many("sleepers", 5 * rounds(), |seed| {
        let mut world = World::new(seed, network(1 + seed % 40), shape(seed));
        world.run_for(2_000);
        for _ in 0..10 {
            submit_some(&mut world, 6);
            wait(&mut world, 4_000);
            let node = world.random_node();
            world.simulation.pause(node);
            world.tally.pauses += 1;
            // Shorter and longer than a lease, and than the grace time.
            wait(&mut world, 80_000);
            world.simulation.resume(node);
            wait(&mut world, 3_000);
        }
        ended(world)
    });
}

#[test]
fn whatever_happens_at_once_nothing_is_lost_and_each_task_ends_once() {
    many("everything", 10 * rounds(), |seed| {
        let mut shape = shape(seed);
        shape.failed_runs = 0.1;
        let nodes = shape.slots.len();
        let mut world = World::new(seed, network(1 + seed % 200), shape);
        world.run_for(2_000);
        for _ in 0..30 {
            submit_some(&mut world, 2);
            let (node, other) = (world.random_node(), world.random_node());
            match world.simulation.random().index(10) {
                0 | 1 => world.kill(node),
                2 | 3 => world.restart(node),
                4 => {
                    world.simulation.pause(node);
                    world.tally.pauses += 1;
                }
                5 => world.simulation.resume(node),
                6 => {
                    let part: Vec<usize> = (0..nodes).filter(|_| world.simulation.random().chance(0.4)).collect();
                    world.simulation.partition(&[&[], &part]);
                    world.tally.partitions += 1;
                }
                7 => world.simulation.heal(),
                8 if node != other => world.simulation.break_link(node, other),
                _ => {
                    if let Some(task) = world.tasks.last().cloned() {
                        world.simulation.command(node, Order::Cancel(task));
                    }
                }
            }
            wait(&mut world, 20_000);
        }
        ended(world)
    });
}

#[test]
fn when_the_requester_dies_for_good_another_node_has_the_answer() {
    for_each_seed(0..10 * rounds(), |seed| {
        let mut world = World::new(seed, network(20), Shape::of(vec![seed as u32 % 3, 2, 2]));
        world.run_for(5_000);
        for _ in 0..12 {
            world.submit(0, "m");
        }
        let wait_ms = world.simulation.random().within(&(50..=3_000));
        world.run_for(wait_ms);
        world.kill(0);
        world.run_for(180_000);
        let mut answered = 0;
        for task in world.tasks.clone() {
            if let Some(view) = world.view(1, &task) {
                assert_eq!(view.status, TaskStatus::Completed, "{task}: {:?}", view.grant);
                answered += 1;
            }
        }
        assert!(answered >= 10, "the tasks had time to spread: {answered}");
        let before = world.tally.runs;
        world.restart(0);
        world.recover(120_000);
        world.assert_all_final();
        assert_eq!(world.tally.runs - before, 12 - answered, "what is answered is adopted");
        assert_eq!(world.tally.completed, 12);
    });
}

#[test]
fn a_killed_worker_is_replaced_within_seconds() {
    for_each_seed(0..20 * rounds(), |seed| {
        let mut shape = Shape::of(vec![0, 1, 1]);
        shape.run_ms = 5_000..=5_000;
        let mut world = World::new(seed, network(5), shape);
        world.run_for(5_000);
        let task = world.submit(0, "m");
        world.run_for(2_000);
        let worker = world.view(0, &task).unwrap().grant.expect("it is granted").worker;
        let victim =
            (1..3).find(|node| worker.node() == Some(&crate::peer::id(*node))).expect("it is granted to a worker");
        world.kill(victim);
        world.run_for(4_000);
        assert_eq!(world.began[&task], 2, "the other one runs it");
        world.recover(60_000);
        world.assert_all_final();
        assert_eq!((world.tally.completed, world.tally.runs), (1, 2));
    });
}
