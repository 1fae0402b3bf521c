use bombus_core::chat::ChatEvent;

use super::*;
use crate::worker::tiny::{TinyModel, ask};

/// Most rounds that the runs of a test may take.
const ROUNDS_MAX: usize = 5_000;

/// Computes until nothing is left to do, and returns what was told.
fn finish(generator: &mut Generator<'_>) -> Vec<FromWorker> {
    let mut told = Vec::new();
    for _ in 0..ROUNDS_MAX {
        if !generator.has_work() {
            return told;
        }
        generator.round();
        told.extend(generator.take_messages());
    }
    panic!("the runs do not end");
}

/// Returns why a run ended, and after how many tokens.
fn end_of(told: &[FromWorker], run: RunId) -> (FinishReason, u32) {
    let end = |message: &FromWorker| match message {
        FromWorker::Event { id, event: ChatEvent::Done { finish, usage, .. } } if *id == run => {
            Some((*finish, usage.completion_tokens))
        }
        _ => None,
    };
    told.iter().find_map(end).unwrap_or_else(|| panic!("run {run} has no end: {told:?}"))
}

#[test]
fn a_run_that_loses_its_room_hears_that_it_waits_and_writes_all_of_its_answer() {
    let model = TinyModel::load(2, 256);
    let prompts = model.prompts();
    let mut generator = model.generator(&prompts);
    for id in [0, 1] {
        generator.take_prepared(id, model.run(&prompts, id, ask(3, 150)));
    }
    let told = finish(&mut generator);
    let waits = |message: &FromWorker| matches!(message, FromWorker::Waiting { ids } if *ids == [1]);
    assert!(told.iter().any(waits), "both fitted: {told:?}");
    assert_eq!([0, 1].map(|run| end_of(&told, run)), [(FinishReason::Length, 150); 2]);
}

#[test]
fn a_run_that_waits_for_a_slot_hears_so() {
    let model = TinyModel::load(1, 256);
    let prompts = model.prompts();
    let mut generator = model.generator(&prompts);
    for id in [0, 1] {
        generator.take_prepared(id, model.run(&prompts, id, ask(3, 5)));
    }
    generator.round();
    let told: Vec<FromWorker> = generator.take_messages().collect();
    assert!(matches!(&told[0], FromWorker::Waiting { ids } if *ids == [1]), "{told:?}");
    let told = finish(&mut generator);
    assert_eq!([0, 1].map(|run| end_of(&told, run)), [(FinishReason::Length, 5); 2]);
}
