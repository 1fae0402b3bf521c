use bombus_core::chat::{EmbedInput, EmbedRequest, Overflow};

use super::*;
use crate::captured::Log;

/// What the log says of a prompt that seems to have been cut.
const CUT: &str = "upstream read far fewer tokens than the prompt seems to have; it may have cut it";

/// What the log says of a prompt that was cut for sure, where that was allowed.
const CUT_SILENTLY: &str =
    "upstream cut the prompt without a word; from version 0.12.6 on Ollama lets it be told what was left out";

/// The contexts that chats asked for, in order.
fn contexts(upstream: &Upstream) -> Vec<Value> {
    requests(upstream, "POST /api/chat").iter().map(|request| request.json()["options"]["num_ctx"].clone()).collect()
}

fn long(bytes: usize) -> ChatRequest {
    ChatRequest { max_tokens: Some(10), ..ask(&"long ".repeat(bytes / 5)) }
}

#[tokio::test]
async fn a_request_asks_for_the_context_that_it_needs() {
    let upstream = server().await;
    upstream.on("POST /api/chat", answer(&["a"]));
    let backend = backend(&upstream);
    run(&backend, long(100)).await;
    run(&backend, long(15_000)).await;
    run(&backend, long(90_000)).await;
    run(&backend, ChatRequest { context_tokens: Some(1000), ..long(15_000) }).await;
    assert_eq!(contexts(&upstream), [Value::Null, json!(8192), json!(8192), json!(1000)]);
    assert_eq!(requests(&upstream, "POST /api/show").len(), 1, "a model is described once");
}

#[tokio::test]
async fn a_loaded_context_that_suffices_is_kept() {
    let upstream = server().await;
    upstream.on("GET /api/ps", loaded("small:latest", 6000));
    upstream.on("POST /api/chat", answer(&["a"]));
    let backend = backend(&upstream);
    run(&backend, long(100)).await;
    run(&backend, long(12_000)).await;
    assert_eq!(contexts(&upstream), [json!(6000), json!(6000)]);
    assert_eq!(requests(&upstream, "GET /api/ps").len(), 1, "what is loaded is believed for a while");
}

#[tokio::test]
async fn a_context_at_the_models_limit_is_kept_even_where_the_request_that_asked_for_it_failed() {
    let upstream = server().await;
    upstream.once("POST /api/chat", Script::json(400, &json!({"error": "no"})));
    upstream.on("POST /api/chat", answer(&["a"]));
    let backend = backend(&upstream);
    run(&backend, long(20_000)).await;
    upstream.on("GET /api/ps", loaded("small:latest", 8192));
    run(&backend, long(100)).await;
    assert_eq!(contexts(&upstream), [json!(8192), json!(8192)]);
}

#[tokio::test]
async fn another_name_of_the_same_weights_keeps_their_context_too() {
    let upstream = server().await;
    let models = json!({"models": [listed("small:latest", "d1"), listed("derived:latest", "d2")]});
    upstream.on("GET /api/tags", Script::json(200, &models));
    upstream.on("GET /api/ps", loaded("small:latest", 6000));
    upstream.on("POST /api/chat", answer(&["a"]));
    let backend = backend(&upstream);
    run(&backend, ChatRequest { model: "derived".into(), ..long(100) }).await;
    assert_eq!(contexts(&upstream), [json!(6000)]);
    assert!(backend.models().await.unwrap().iter().all(|model| model.warm));
}

#[tokio::test]
async fn a_prompt_with_more_tokens_than_estimated_gets_a_larger_context() {
    let upstream = server().await;
    upstream.once("POST /api/chat", too_long());
    upstream.once("POST /api/chat", too_long());
    upstream.on("POST /api/chat", answer(&["a"]));
    let outcome = run(&backend(&upstream), long(5000)).await;
    assert_eq!((outcome.text.as_str(), outcome.error), ("a", None));
    assert_eq!(contexts(&upstream), [Value::Null, json!(4096), json!(8192)]);
}

#[tokio::test]
async fn a_prompt_that_no_context_holds_is_refused_with_both_numbers() {
    let upstream = server().await;
    upstream.on("POST /api/chat", too_long());
    let outcome = run(&backend(&upstream), long(60_000)).await;
    let Some(BackendError::ContextExceeded { prompt_tokens, context_tokens }) = outcome.error else {
        panic!("{outcome:?}")
    };
    assert!(context_tokens == 8192 && (20_000..21_000).contains(&prompt_tokens), "{prompt_tokens} {context_tokens}");
    let asked = requests(&upstream, "POST /api/chat");
    assert_eq!((asked.len(), &asked[0].json()["truncate"]), (1, &json!(false)));

    let short = ChatRequest { context_tokens: Some(64), ..long(100) };
    let exceeded = BackendError::ContextExceeded { prompt_tokens: 74, context_tokens: 64 };
    assert_eq!(run(&backend(&upstream), short).await.error, Some(exceeded));
}

#[tokio::test]
async fn the_oldest_turns_are_left_out_where_that_is_allowed_and_it_is_said() {
    let upstream = server().await;
    upstream.once("POST /api/chat", too_long());
    upstream.once("POST /api/chat", too_long());
    upstream.on("POST /api/chat", answer(&["a"]));
    let turn = |role, text: &str| Message::text(role, text.repeat(2000));
    let turns = vec![
        Message::text(Role::System, "Be brief"),
        turn(Role::User, "first "),
        turn(Role::Assistant, "second "),
        turn(Role::User, "third "),
        turn(Role::Assistant, "fourth "),
        turn(Role::User, "last "),
    ];
    let overflow = Overflow { truncate: true, ..Overflow::default() };
    let request = ChatRequest { overflow, ..ChatRequest::new("small", Prompt::Chat(turns)) };
    let log = Log::capture();
    let mut events = backend(&upstream).chat(request).await.unwrap();
    let Some(Ok(ChatEvent::Truncated { messages, prompt_tokens: 0 })) = events.next().await else { panic!() };
    let left_out = log.lines("INFO", "the conversation is longer than the context; its oldest turns were left out");
    assert_eq!(left_out[0]["truncated.messages"], json!(messages));
    assert!(!log.text().contains("prompt_tokens"), "a number that is not known is not told: {}", log.text());
    let asked = requests(&upstream, "POST /api/chat");
    let sent = asked.last().unwrap().json()["messages"].as_array().unwrap().clone();
    assert_eq!((messages as usize, sent[0]["content"].as_str()), (6 - sent.len(), Some("Be brief")));
    assert!(sent.last().unwrap()["content"].as_str().unwrap().starts_with("last"));
    assert!(asked.iter().all(|request| request.json()["truncate"] == json!(false)));
}

#[tokio::test]
async fn a_single_turn_that_is_too_long_is_cut_where_that_is_allowed() {
    let upstream = server().await;
    upstream.once("POST /api/chat", too_long());
    upstream.on("POST /api/chat", answer(&["a"]));
    let overflow = Overflow { truncate: true, ..Overflow::default() };
    let mut events = backend(&upstream).chat(ChatRequest { overflow, ..long(60_000) }).await.unwrap();
    let truncated = ChatEvent::Truncated { messages: 0, prompt_tokens: 8192 };
    assert_eq!(events.next().await, Some(Ok(truncated)));
    assert_eq!(requests(&upstream, "POST /api/chat")[1].json()["truncate"], json!(true));
}

#[tokio::test]
async fn a_server_that_cuts_against_its_order_is_found_out() {
    let mut filled = done();
    filled["prompt_eval_count"] = json!(1000);
    let answer = Script::lines(&[said("a"), filled]);
    let request = ChatRequest { context_tokens: Some(1000), ..long(15_000) };
    let exceeded = |error: &Option<BackendError>| {
        matches!(error, Some(BackendError::ContextExceeded { context_tokens: 1000, .. }))
    };
    for (version, cut) in [("0.12.5", true), ("0.24.0", false)] {
        let upstream = server().await;
        upstream.on("GET /api/version", Script::json(200, &json!({ "version": version })));
        upstream.on("POST /api/chat", answer.clone());
        let outcome = run(&backend(&upstream), request.clone()).await;
        assert_eq!((outcome.text.as_str(), exceeded(&outcome.error)), ("a", cut), "{version}: {outcome:?}");
    }
    let log = Log::capture();
    let upstream = server().await;
    upstream.on("GET /api/version", Script::json(200, &json!({"version": "0.12.5"})));
    upstream.on("POST /api/chat", answer);
    let allowed = ChatRequest { overflow: Overflow { truncate: true, ..Overflow::default() }, ..request };
    assert_eq!(run(&backend(&upstream), allowed).await.error, None);
    assert_eq!(log.lines("WARN", CUT_SILENTLY).len(), 1, "{}", log.text());
}

#[tokio::test]
async fn a_cut_that_was_allowed_is_noted_unless_it_was_told() {
    let log = Log::capture();
    let upstream = server().await;
    let mut end = done();
    end["prompt_eval_count"] = json!(2048);
    let overflow = Overflow { truncate: true, ..Overflow::default() };
    let request = ChatRequest { overflow, ..long(60_000) };
    let backend = backend(&upstream);
    upstream.on("POST /api/chat", Script::lines(&[said("a"), end]));
    for told in [false, true] {
        if told {
            upstream.once("POST /api/chat", too_long());
        }
        let events: Vec<_> = backend.chat(request.clone()).await.unwrap().map(Result::unwrap).collect().await;
        assert_eq!(matches!(events[0], ChatEvent::Truncated { .. }), told, "{events:?}");
        assert!(matches!(events.last(), Some(ChatEvent::Done { .. })), "{events:?}");
        assert_eq!(log.lines("WARN", CUT).len(), 1, "{}", log.text());
    }
}

#[tokio::test]
async fn a_count_far_below_the_need_is_noted_and_the_answer_stands() {
    let log = Log::capture();
    for (prompt_eval_count, noted) in [(12, 1), (4000, 0)] {
        let before = log.lines("WARN", CUT).len();
        let upstream = server().await;
        let mut end = done();
        end["prompt_eval_count"] = json!(prompt_eval_count);
        upstream.on("POST /api/chat", Script::lines(&[said("a"), end]));
        let outcome = run(&backend(&upstream), long(15_000)).await;
        assert_eq!((outcome.text.as_str(), outcome.finish, outcome.error), ("a", Some(FinishReason::Stop), None));
        let lines = log.lines("WARN", CUT);
        assert_eq!(lines.len() - before, noted, "{prompt_eval_count}");
        assert!(
            lines.iter().all(|line| line["prompt_eval_count"] == 12 && line["tokens_estimated"].as_u64() >= Some(5000))
        );
    }
}

#[tokio::test]
async fn inputs_of_embeddings_get_the_context_of_the_longest() {
    let upstream = server().await;
    upstream.once("POST /api/embed", too_long());
    upstream.on("POST /api/embed", Script::json(200, &json!({"embeddings": [[1.0], [1.0]], "prompt_eval_count": 3})));
    let inputs = vec![EmbedInput::Text("a".into()), EmbedInput::Text("long ".repeat(1800))];
    let response = backend(&upstream).embed(EmbedRequest::new("small", inputs.clone())).await.unwrap();
    assert_eq!((response.vectors.len(), response.prompt_tokens), (2, 3));
    let asked: Vec<_> = requests(&upstream, "POST /api/embed").iter().map(Received::json).collect();
    assert_eq!([&asked[0]["options"]["num_ctx"], &asked[1]["options"]["num_ctx"]], [&json!(4096), &json!(8192)]);
    assert_eq!((&asked[0]["truncate"], asked[0]["input"][0].as_str()), (&json!(false), Some("a")));

    upstream.on("POST /api/embed", too_long());
    let error = backend(&upstream).embed(EmbedRequest::new("small", inputs)).await.unwrap_err();
    assert!(matches!(error, BackendError::ContextExceeded { context_tokens: 8192, .. }), "{error:?}");
}
