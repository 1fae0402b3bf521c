//! Conversations that are longer than the context.

use bombus_core::chat::Overflow;

use super::*;

/// As llama-server refuses.
fn too_long(prompt_tokens: u32) -> Script {
    let error = json!({
        "code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": prompt_tokens, "n_ctx": 8192,
        "message": "the request exceeds the available context size, try increasing it",
    });
    Script::json(400, &json!({ "error": error }))
}

fn answer() -> Script {
    Script::events(&[said("a"), ended("stop")]).done()
}

fn conversation(truncate: bool) -> ChatRequest {
    let turn = |role, text: &str| Message::text(role, text.repeat(2000));
    let turns = vec![
        Message::text(Role::System, "Be brief"),
        turn(Role::User, "first "),
        turn(Role::Assistant, "second "),
        turn(Role::User, "third "),
        turn(Role::Assistant, "fourth "),
        turn(Role::User, "last "),
    ];
    let overflow = Overflow { truncate, ..Overflow::default() };
    ChatRequest { overflow, max_tokens: Some(10), ..ChatRequest::new("m", Prompt::Chat(turns)) }
}

fn sent(upstream: &Upstream) -> Vec<Vec<Value>> {
    let asked = upstream.requests().into_iter().filter(|request| request.line == CHAT);
    asked.map(|request| request.json()["messages"].as_array().unwrap().clone()).collect()
}

#[tokio::test]
async fn the_oldest_turns_are_left_out_where_that_is_allowed_and_it_is_said() {
    let upstream = Upstream::start().await.unwrap();
    upstream.once(CHAT, too_long(12_000));
    upstream.once(CHAT, too_long(9_000));
    upstream.on(CHAT, answer());
    let events = events(&backend(config(upstream.url())), conversation(true)).await.unwrap();
    let Some(ChatEvent::Truncated { messages, prompt_tokens: 0 }) = events.first() else { panic!("{events:?}") };
    assert_eq!(text_of(&events), "a");
    let sent = sent(&upstream);
    let last = sent.last().unwrap();
    assert_eq!((*messages as usize, &last[0]["content"]), (6 - last.len(), &json!("Be brief")));
    assert!(last.last().unwrap()["content"].as_str().unwrap().starts_with("last"));
    assert!(sent.len() == 3 && sent[0].len() == 6 && sent.is_sorted_by(|a, b| a.len() > b.len()), "{messages}");
}

#[tokio::test]
async fn where_it_is_not_allowed_or_no_use_both_numbers_are_told() {
    let upstream = Upstream::start().await.unwrap();
    upstream.on(CHAT, too_long(12_000));
    let backend = backend(config(upstream.url()));
    let exceeded = Err(BackendError::ContextExceeded { prompt_tokens: 12_000, context_tokens: 8192 });
    assert_eq!(events(&backend, conversation(false)).await, exceeded);
    assert_eq!(sent(&upstream).len(), 1);
    assert_eq!(events(&backend, conversation(true)).await, exceeded);
    let sent = sent(&upstream);
    assert!(sent.len() <= 11 && sent.last().unwrap().len() == 2, "{} requests", sent.len());
}

#[tokio::test]
async fn the_length_that_the_list_tells_counts_where_the_refusal_tells_none() {
    let upstream = Upstream::start().await.unwrap();
    upstream.on("GET /v1/models", Script::json(200, &json!({"data": [{"id": "m", "max_model_len": 4096}]})));
    let words = "Please reduce the length of the messages or completion.";
    let too_long = || Script::json(400, &json!({"error": {"message": words, "code": "context_length_exceeded"}}));
    upstream.once(CHAT, too_long());
    upstream.on(CHAT, answer());
    let backend = backend(OpenAiConfig { models: Vec::new(), ..config(upstream.url()) });
    let shortened = events(&backend, conversation(true)).await.unwrap();
    assert!(matches!(shortened[0], ChatEvent::Truncated { messages: 1.., .. }), "{shortened:?}");

    // How long the prompt is nobody knows, so no number is told.
    upstream.on(CHAT, too_long());
    let refused = Err(BackendError::InvalidRequest { param: None, message: words.to_owned() });
    for truncate in [false, true] {
        assert_eq!(events(&backend, conversation(truncate)).await, refused, "{truncate}");
    }
}
