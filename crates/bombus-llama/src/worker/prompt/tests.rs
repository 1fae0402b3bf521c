use bombus_core::chat::{Overflow, Role};

use super::*;
use crate::worker::tiny::TinyModel;

/// Tokens that fit into the context of the tests' model. Its tokens stand for up to six bytes each.
const LIMIT: usize = 256;

/// Asks a model that leaves out what does not fit, in a template of plain texts.
fn ask(prompt: Prompt) -> ChatRequest {
    ChatRequest {
        template: Some("{% for message in messages %}{{ message.content }}{% endfor %}".into()),
        overflow: Overflow { truncate: true, ..Overflow::default() },
        ..ChatRequest::new("tiny", prompt)
    }
}

fn turns(turns: &[(Role, usize)]) -> Prompt {
    Prompt::Chat(turns.iter().map(|(role, bytes)| Message::text(*role, "a".repeat(*bytes))).collect())
}

#[test]
fn models_that_can_think_do_so_unless_they_are_told_otherwise() {
    assert_eq!(how_to_think(None, true, false), Ok(Some(Think::On)));
    assert_eq!(how_to_think(None, true, true), Ok(Some(Think::Off)));
    assert_eq!(how_to_think(Some(&Think::On), true, true), Ok(Some(Think::On)));
    assert_eq!(how_to_think(Some(&Think::Off), true, false), Ok(Some(Think::Off)));
    assert_eq!(how_to_think(Some(&Think::Off), false, false), Ok(None));
    let error = how_to_think(Some(&Think::On), false, false).unwrap_err();
    assert!(error.to_string().contains("does not support thinking"), "{error}");
}

#[test]
fn a_prompt_that_ends_with_the_opening_begins_the_thoughts() {
    assert!(opens_thoughts(&[Piece::Template("<|assistant|><think>\n".into())]));
    assert!(!opens_thoughts(&[Piece::Template("<think>\n\n</think>\n\n".into())]));
    assert!(!opens_thoughts(&[Piece::Literal("<think>".into())]));
}

#[test]
fn a_prompt_that_is_far_too_long_is_refused_without_counting_it() {
    let model = TinyModel::load(1, 256);
    let prompts = model.prompts();
    let refused = |prompt| prompts.read(&ChatRequest { overflow: Overflow::default(), ..ask(prompt) }, LIMIT).err();
    for prompt in [Prompt::Raw("a".repeat(5_000)), turns(&[(Role::User, 2_500), (Role::User, 2_500)])] {
        assert_eq!(refused(prompt), Some(exceeded(LIMIT)));
    }
    // Where it may be cut, and what stays in any case is too long.
    let system = prompts.read(&ask(turns(&[(Role::System, 5_000), (Role::User, 3)])), LIMIT).err();
    assert_eq!(system, Some(exceeded(LIMIT)));
    let little = prompts.read(&ask(turns(&[(Role::System, 300), (Role::User, 3)])), LIMIT);
    assert!(little.is_ok_and(|prompt| prompt.tokens.len() > 300), "one that is a little too long is counted");
}

#[test]
fn of_a_text_that_is_far_too_long_stays_what_stays_of_others() {
    let model = TinyModel::load(1, 256);
    let prompts = model.prompts();
    let cut = |bytes| prompts.read(&ask(Prompt::Raw("a".repeat(bytes))), LIMIT).unwrap().tokens;
    let little = cut(500);
    assert_eq!(little.len(), LIMIT - 1);
    assert_eq!(cut(50_000), little);
}

#[test]
fn turns_that_are_far_too_long_are_left_out_and_the_last_is_shortened() {
    use Role::{Assistant, User};
    let model = TinyModel::load(1, 256);
    let prompts = model.prompts();
    let read = |prompt| prompts.read(&ask(prompt), LIMIT).unwrap();
    let first = read(turns(&[(User, 50_000), (Assistant, 3), (User, 10)]));
    assert_eq!(first.left_out, Some(1));
    assert!((13..30).contains(&first.tokens.len()), "{}", first.tokens.len());
    let last = read(turns(&[(User, 10), (Assistant, 3), (User, 50_000)]));
    assert_eq!(last.left_out, Some(2));
    assert!((200..LIMIT).contains(&last.tokens.len()), "{}", last.tokens.len());
    let behind_others = read_behind(&prompts, turns(&[(User, 50_000)]));
    assert_eq!(behind_others.tokens.len(), LIMIT - 1);
}

/// Reads a prompt behind the tokens of an earlier answer.
fn read_behind(prompts: &PromptReader<'_>, prompt: Prompt) -> ReadPrompt {
    prompts.read(&ChatRequest { earlier_tokens: vec![0; 20], ..ask(prompt) }, LIMIT).unwrap()
}
