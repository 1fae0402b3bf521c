use bombus_core::chat::{ChatEvent, ChatRequest, Message, Prompt, ResponseFormat, Role, Sampling, Tool, ToolChoice};
use serde_json::{Value, json};

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
fn a_cancelled_run_leaves_its_slot_to_the_next_one_within_a_round() {
    let model = TinyModel::load(1, 256);
    let prompts = model.prompts();
    let mut generator = model.generator(&prompts);
    let speaks = |generator: &mut Generator<'_>| {
        generator.round();
        let spoken = generator.take_messages().filter_map(|message| match message {
            FromWorker::Event { id, event: ChatEvent::Delta(_) } => Some(id),
            _ => None,
        });
        spoken.collect::<Vec<RunId>>()
    };
    // Once in the middle of an answer, and once in the middle of a prompt, of which a round computes 32 tokens.
    for (first, prompt_tokens, spoken) in [(0, 3, vec![0]), (10, 200, vec![])] {
        let next = first + 1;
        for (id, prompt_tokens) in [(first, prompt_tokens), (next, 3)] {
            generator.take_prepared(id, model.run(&prompts, id, ask(prompt_tokens, 50)));
        }
        assert_eq!(speaks(&mut generator), spoken);
        generator.take(ToWorker::Cancel { id: first });
        assert_eq!(speaks(&mut generator), [next]);
        generator.take(ToWorker::Cancel { id: next });
        assert!(!generator.has_work());
    }
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

fn answer(request: ChatRequest) -> Vec<FromWorker> {
    let model = TinyModel::load(1, 256);
    let prompts = model.prompts();
    let mut generator = model.generator(&prompts);
    generator.take_prepared(0, model.run(&prompts, 0, request));
    finish(&mut generator)
}

/// Demands one of these values.
fn one_of(values: &[Value]) -> ResponseFormat {
    ResponseFormat::JsonSchema(json!({ "enum": values }))
}

fn error_of(request: ChatRequest) -> RunError {
    match answer(request).pop() {
        Some(FromWorker::Failed { error, .. }) => error,
        told => panic!("{told:?}"),
    }
}

#[test]
fn an_answer_ends_where_its_form_does_though_its_end_is_to_be_passed_over() {
    for temperature in [0.0, 1.0] {
        let sampling = Sampling { temperature: Some(temperature), ..Sampling::default() };
        let response_format = one_of(&[json!("a")]);
        let told = answer(ChatRequest { sampling, ignore_eos: true, response_format, ..ask(3, 100) });
        assert_eq!(end_of(&told, 0).0, FinishReason::Stop);
        let text = |message: &FromWorker| match message {
            FromWorker::Event { event: ChatEvent::Delta(delta), .. } => Some(delta.text.clone()),
            _ => None,
        };
        let text: String = told.iter().filter_map(text).collect();
        assert_eq!(text.trim(), "\"a\"");
    }
}

#[test]
fn a_form_that_the_vocabulary_has_no_words_for_is_no_failure_of_the_engine() {
    let error = error_of(ChatRequest { response_format: one_of(&[json!(5)]), ..ask(3, 100) });
    assert!(matches!(&error, RunError::Unsupported { param, .. } if param == "response_format"), "{error:?}");
    // The quotation mark before it there is a token for.
    let error = error_of(ChatRequest { response_format: one_of(&[json!("b")]), ..ask(3, 100) });
    assert!(matches!(&error, RunError::DeadEnd { param, .. } if param == "response_format"), "{error:?}");
}

#[test]
fn a_call_that_the_vocabulary_has_no_words_for_is_told_as_one_of_tools() {
    let parameters = json!({ "type": "object" });
    let error = error_of(ChatRequest {
        prompt: Prompt::Chat(vec![Message::text(Role::User, "a")]),
        template: Some("{# <tool_call> #}{% if tools %}aaa{% endif %}".into()),
        tools: vec![Tool { name: "a".into(), description: None, parameters, strict: None }],
        tool_choice: ToolChoice::Required,
        ..ask(3, 100)
    });
    assert!(matches!(&error, RunError::Unsupported { param, .. } if param == "tools"), "{error:?}");
}
