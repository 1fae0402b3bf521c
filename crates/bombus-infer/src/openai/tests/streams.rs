use bombus_core::chat::{Delta, FinishReason, Timings, TokenAlternative, TokenLogprob, ToolCallDelta, Usage};

use super::*;

/// Answers one request by these documents and returns the events that come of them.
async fn answered(line: &str, documents: &[Value], request: ChatRequest) -> Result<Vec<ChatEvent>, BackendError> {
    let upstream = Upstream::start().await.unwrap();
    upstream.on(line, Script::events(documents).done());
    events(&backend(config(upstream.url())), request).await
}

async fn chatted(documents: &[Value]) -> Vec<ChatEvent> {
    answered(CHAT, documents, ask("x")).await.unwrap()
}

fn delta(delta: &Value) -> Value {
    json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
}

fn finish_of(events: &[ChatEvent]) -> FinishReason {
    let Some(ChatEvent::Done { finish, .. }) = events.last() else { panic!("{events:?}") };
    *finish
}

#[tokio::test]
async fn an_answer_ends_with_what_the_server_counted_and_measured() {
    let usage = json!({"prompt_tokens": 12, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 1, "audio_tokens": 0}});
    let timings = json!({"cache_n": 8, "prompt_n": 4, "prompt_ms": 5.5, "predicted_n": 2, "predicted_ms": 7.5});
    let last = json!({"choices": [], "usage": usage, "timings": timings});
    let role = delta(&json!({"role": "assistant", "content": null}));
    let events = chatted(&[role, said("Hel"), said("lo"), ended("length"), last]).await;
    let text = |text: &str| ChatEvent::Delta(Delta::text(text));
    let done = ChatEvent::Done {
        finish: FinishReason::Length,
        usage: Usage { prompt_tokens: 12, cached_tokens: 8, completion_tokens: 2, reasoning_tokens: 1 },
        timings: Timings { prompt_ms: 5.5, generate_ms: 7.5, ..Timings::default() },
        tokens: Vec::new(),
    };
    assert_eq!(events, [text("Hel"), text("lo"), done]);
}

#[tokio::test]
async fn an_answer_that_a_filter_ended_says_so() {
    let events = chatted(&[said("a"), ended("content_filter")]).await;
    assert_eq!(finish_of(&events), FinishReason::ContentFilter);
}

#[tokio::test]
async fn what_a_server_does_not_tell_is_counted_and_measured_here() {
    let events = chatted(&[said("a"), said("b"), ended("stop")]).await;
    let Some(ChatEvent::Done { usage, timings, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(usage.completion_tokens, 2);
    assert!(timings.prompt_ms > 0.0 && timings.generate_ms >= 0.0, "{timings:?}");
}

#[tokio::test]
async fn thoughts_are_told_apart_by_all_their_names() {
    for thought in [
        json!({"reasoning_content": "Hm."}),
        json!({"reasoning": "Hm."}),
        json!({"reasoning": "Hm.", "reasoning_content": "Hm.", "content": ""}),
        json!({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]}),
    ] {
        let events = chatted(&[delta(&thought), said("Yes"), ended("stop")]).await;
        assert_eq!(events[0], ChatEvent::Thinking(Delta::text("Hm.")), "{thought}");
        assert_eq!(text_of(&events), "Yes");
    }
}

#[tokio::test]
async fn tool_calls_are_passed_on_in_pieces() {
    let piece = |piece: Value| delta(&json!({"tool_calls": [piece]}));
    let begin =
        piece(json!({"index": 0, "id": "c1", "type": "function", "function": {"name": "see", "arguments": ""}}));
    let rest = piece(json!({"index": 0, "function": {"arguments": "{}"}}));
    // Some servers say that they stopped where they mean that a tool is to be called.
    let events = chatted(&[begin, rest, ended("stop")]).await;
    let call = |id: Option<&str>, name: Option<&str>, arguments: &str| {
        let (id, name) = (id.map(str::to_owned), name.map(str::to_owned));
        ChatEvent::ToolCall(ToolCallDelta { index: 0, id, name, arguments: arguments.to_owned() })
    };
    assert_eq!(events[..2], [call(Some("c1"), Some("see"), ""), call(None, None, "{}")]);
    assert_eq!(finish_of(&events), FinishReason::ToolCalls);
}

#[tokio::test]
async fn a_legacy_function_call_is_a_tool_call() {
    let begin = delta(&json!({"function_call": {"name": "see", "arguments": "{"}}));
    let rest = delta(&json!({"function_call": {"arguments": "}"}}));
    let events = chatted(&[begin, rest, ended("function_call")]).await;
    assert!(
        matches!(&events[0], ChatEvent::ToolCall(call) if call.name.as_deref() == Some("see") && call.id.is_some())
    );
    assert!(matches!(&events[1], ChatEvent::ToolCall(call) if call.arguments == "}"));
    assert_eq!(finish_of(&events), FinishReason::ToolCalls);
}

fn alternative(id: u32, bytes: &[u8], logprob: f32) -> TokenAlternative {
    TokenAlternative { id, bytes: bytes.to_vec(), logprob }
}

#[tokio::test]
async fn log_probabilities_are_read_in_both_shapes() {
    let top = json!([{"id": 5, "token": "a", "bytes": [97], "logprob": -0.5}, {"id": 6, "token": "b", "bytes": null, "logprob": -1.5}]);
    let content = json!([{"id": 5, "token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": top}]);
    let choice = json!({"index": 0, "delta": {"content": "a"}, "logprobs": {"content": content, "refusal": null}});
    let request = ChatRequest { logprobs: Some(2), ..ask("x") };
    let events = answered(CHAT, &[json!({"choices": [choice]}), ended("stop")], request).await.unwrap();
    let token = alternative(5, b"a", -0.5);
    let top = vec![token.clone(), alternative(6, b"b", -1.5)];
    let expected = Delta { text: "a".to_owned(), logprobs: vec![TokenLogprob { token, top }], trace: None };
    assert_eq!(events[0], ChatEvent::Delta(expected));

    let legacy = json!({"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -1.5, "a": -0.5}], "text_offset": [0]});
    let chunk = json!({"choices": [{"index": 0, "text": "a", "logprobs": legacy, "finish_reason": "stop"}]});
    let request = ChatRequest { logprobs: Some(2), ..ChatRequest::new("m", Prompt::Raw("x".to_owned())) };
    let events = answered(COMPLETIONS, &[chunk], request).await.unwrap();
    let token = alternative(0, b"a", -0.5);
    let top = vec![token.clone(), alternative(0, b"b", -1.5)];
    let expected = Delta { text: "a".to_owned(), logprobs: vec![TokenLogprob { token, top }], trace: None };
    assert_eq!(events[0], ChatEvent::Delta(expected));
}

#[tokio::test]
async fn an_answer_that_comes_whole_is_taken_as_one() {
    let upstream = Upstream::start().await.unwrap();
    let call = json!({"id": "c1", "type": "function", "function": {"name": "see", "arguments": "{}"}});
    let message = json!({"role": "assistant", "content": "Hello", "reasoning_content": "Hm.", "tool_calls": [call]});
    let whole = json!({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}});
    upstream.on(CHAT, Script::json(200, &whole));
    let events = events(&backend(config(upstream.url())), ask("x")).await.unwrap();
    assert_eq!(events[0], ChatEvent::Thinking(Delta::text("Hm.")));
    assert_eq!(text_of(&events), "Hello");
    assert!(matches!(&events[2], ChatEvent::ToolCall(call) if call.id.as_deref() == Some("c1")));
    assert_eq!(finish_of(&events), FinishReason::ToolCalls);
}

#[tokio::test]
async fn a_message_beside_what_is_new_is_passed_over() {
    let both = |message: Value, text: &str| json!({"choices": [{"index": 0, "message": message, "delta": {"content": text}, "finish_reason": null}]});
    let so_far = json!({"role": "assistant", "content": "hello so far"});
    let last = json!({"choices": [{"index": 0, "message": so_far, "delta": {}, "finish_reason": "stop"}]});
    let events = chatted(&[both(so_far, "he"), both(Value::Null, "llo"), last]).await;
    assert_eq!((text_of(&events).as_str(), finish_of(&events)), ("hello", FinishReason::Stop));
}

#[tokio::test]
async fn comments_and_other_choices_are_passed_over() {
    let upstream = Upstream::start().await.unwrap();
    let other = json!({"choices": [{"index": 1, "delta": {"content": "no"}}]});
    let script =
        Script::stream("text/event-stream; charset=utf-8").piece(": waiting\n\nevent: message\n").event(&other);
    upstream.on(CHAT, script.event(&said("yes")).event(&ended("stop")).piece("data:[DONE]\r\n\r\n"));
    let events = events(&backend(config(upstream.url())), ask("x")).await.unwrap();
    assert_eq!(text_of(&events), "yes");
}

#[tokio::test]
async fn connections_are_used_again() {
    let upstream = Upstream::start().await.unwrap();
    upstream.on(CHAT, Script::events(&[said("x"), ended("stop")]).done());
    let backend = backend(config(upstream.url()));
    for _ in 0..3 {
        events(&backend, ask("x")).await.unwrap();
    }
    assert_eq!(upstream.connections(), 1);
}
