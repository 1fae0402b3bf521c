use bombus_core::chat::{FinishReason, ImageSource, Part, ResponseFormat, Resume, Think, Usage};

use super::*;

fn resumed(request: ChatRequest, text: &str, held: &str) -> ChatRequest {
    let resume =
        Resume { text: text.to_owned(), held: held.as_bytes().to_vec(), completion_tokens: 4, ..Resume::default() };
    ChatRequest { resume: Some(resume), ..request }
}

/// A scripted llama-server or vLLM with the model `m`.
async fn server(owner: &str) -> (Upstream, OpenAiBackend) {
    let upstream = Upstream::start().await.unwrap();
    upstream.on("GET /v1/models", Script::json(200, &json!({"data": [{"id": "m", "owned_by": owner}]})));
    upstream.on("POST /apply-template", Script::json(200, &json!({"prompt": "<user>Count<assistant>"})));
    let backend = backend(OpenAiConfig { models: Vec::new(), ..config(upstream.url()) });
    backend.models().await.unwrap();
    (upstream, backend)
}

fn more(text: &str) -> Value {
    json!({"choices": [{"index": 0, "text": text, "finish_reason": null}]})
}

fn end_of(events: &[ChatEvent]) -> (FinishReason, Usage) {
    let Some(ChatEvent::Done { finish, usage, .. }) = events.last() else { panic!("{events:?}") };
    (*finish, *usage)
}

#[tokio::test]
async fn llama_server_goes_on_behind_the_rendered_conversation() {
    let (upstream, backend) = server("llamacpp").await;
    assert!(backend.models().await.unwrap()[0].continues);
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 16, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 15}}});
    upstream.on(COMPLETIONS, Script::events(&[more("ee,"), more(" four"), ended("length"), usage]).done());
    let request = ChatRequest { max_tokens: Some(6), stop: vec!["\n".into()], think: Some(Think::Off), ..ask("Count") };
    let request = resumed(request, "One, two,", " thr");
    assert!(backend.can_resume(&request));
    let events = events(&backend, request).await.unwrap();
    assert_eq!(text_of(&events), " three, four");
    let whole = Usage { prompt_tokens: 12, cached_tokens: 12, completion_tokens: 6, ..Usage::default() };
    assert_eq!(end_of(&events), (FinishReason::Length, whole));
    let requests = upstream.requests();
    let [.., rendering, completing] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!(
        rendering.json(),
        json!({"messages": [{"role": "user", "content": "Count"}], "chat_template_kwargs": {"enable_thinking": false}})
    );
    assert_eq!(completing.json()["prompt"], "<user>Count<assistant>One, two, thr");
    assert_eq!((&completing.json()["max_tokens"], &completing.json()["stop"]), (&json!(2), &json!(["\n"])));
}

#[tokio::test]
async fn thoughts_go_on_in_the_marks_of_the_model() {
    let (upstream, backend) = server("llamacpp").await;
    upstream.on(COMPLETIONS, Script::events(&[more(" see.\n</th"), more("ink>\n\nYes"), ended("stop")]).done());
    let mut request = resumed(ask("Count"), "", "");
    request.resume.as_mut().unwrap().thinking = "Let me".to_owned();
    let events = events(&backend, request).await.unwrap();
    let thoughts = events.iter().filter_map(|event| match event {
        ChatEvent::Thinking(delta) => Some(delta.text.as_str()),
        _ => None,
    });
    assert_eq!((thoughts.collect::<String>().as_str(), text_of(&events).as_str()), (" see.", "Yes"));
    let prompt = &upstream.requests().last().unwrap().json()["prompt"];
    assert_eq!(prompt, "<user>Count<assistant><think>\nLet me");
}

#[tokio::test]
async fn vllm_continues_its_last_message() {
    let (upstream, backend) = server("vllm").await;
    upstream.on(CHAT, Script::events(&[said(" three"), ended("stop")]).done());
    let mut request = resumed(ask("Count"), "One, two, ", "");
    request.resume.as_mut().unwrap().thinking = "Hm.".to_owned();
    let events = events(&backend, request).await.unwrap();
    // The blank was told already, and vLLM is not asked to go on behind one.
    assert_eq!(text_of(&events), "three");
    let body = upstream.requests().last().unwrap().json();
    let begun = json!({"role": "assistant", "content": "One, two,", "reasoning_content": "Hm."});
    assert_eq!(body["messages"], json!([{"role": "user", "content": "Count"}, begun]));
    for (field, value) in [("continue_final_message", true), ("add_generation_prompt", false), ("echo", false)] {
        assert_eq!(body[field], value, "{field}");
    }
}

#[tokio::test]
async fn an_answer_that_had_not_begun_is_an_ordinary_one() {
    let (upstream, backend) = server("vllm").await;
    let thought = json!({"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}}]});
    upstream.on(CHAT, Script::events(&[thought, said("One"), ended("stop")]).done());
    let events = events(&backend, resumed(ask("Count"), "", "")).await.unwrap();
    assert_eq!(events[0], ChatEvent::Thinking(bombus_core::chat::Delta::text("Hm.")));
    assert!(upstream.requests().last().unwrap().json().get("continue_final_message").is_none());
}

#[tokio::test]
async fn a_beginning_that_is_sent_back_is_not_told_twice() {
    let (upstream, backend) = server("vllm").await;
    upstream.on(CHAT, Script::events(&[said("One, two, three, four,"), said(" five"), ended("stop")]).done());
    let events = events(&backend, resumed(ask("Count"), "One, two, three,", "")).await.unwrap();
    assert_eq!(text_of(&events), " four, five");
}

#[tokio::test]
async fn a_stop_text_across_the_seam_ends_the_answer_and_the_work() {
    let (upstream, backend) = server("llamacpp").await;
    upstream.on(COMPLETIONS, Script::events(&[more("D and so on"), more("x")]).then_hang());
    let request = ChatRequest { stop: vec!["END".into()], ..ChatRequest::new("m", Prompt::Raw("Say".into())) };
    let events = events(&backend, resumed(request, "x ", "EN")).await.unwrap();
    assert_eq!(text_of(&events), "");
    assert_eq!((end_of(&events).0, end_of(&events).1.completion_tokens), (FinishReason::Stop, 5));
    assert_eq!(upstream.abandoned().await.json()["prompt"], "Sayx EN");
}

#[tokio::test]
async fn an_answer_at_its_end_asks_the_server_for_nothing_more() {
    let (upstream, backend) = server("vllm").await;
    let request = ChatRequest { max_tokens: Some(4), ..ask("Count") };
    let events = events(&backend, resumed(request, "One", " tw")).await.unwrap();
    assert_eq!((text_of(&events).as_str(), end_of(&events).0), (" tw", FinishReason::Length));
    assert_eq!(end_of(&events).1.completion_tokens, 4);
    assert!(upstream.requests().iter().all(|request| request.line.starts_with("GET")));
}

#[tokio::test]
async fn a_context_that_the_beginning_fills_ends_the_answer() {
    let (upstream, backend) = server("vllm").await;
    let words = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4900 in the messages, 100 in the completion).";
    let refusal = json!({"error": {"message": words, "code": 400}});
    upstream.on(CHAT, Script::json(400, &refusal));
    let ended = events(&backend, resumed(ask("Count"), "One", "")).await.unwrap();
    assert_eq!(end_of(&ended).0, FinishReason::Length);
}

#[tokio::test]
async fn what_cannot_go_on_is_known_beforehand() {
    let (_upstream, vllm) = server("vllm").await;
    let (_other, llama) = server("llamacpp").await;
    let picture = Part::Image(ImageSource::Url("https://a/b".into()).into());
    let seen = Message { content: vec![picture], ..Message::text(Role::User, "") };
    let last_is_assistants = vec![Message::text(Role::User, "x"), Message::text(Role::Assistant, "y")];
    let of = |prompt: Prompt| resumed(ChatRequest::new("m", prompt), "One", "");
    let with_form = ChatRequest { response_format: ResponseFormat::JsonObject, ..of(Prompt::Raw("x".into())) };
    for (request, by_vllm, by_llama) in [
        (of(Prompt::Raw("x".into())), true, true),
        (of(Prompt::Tokens(vec![1])), false, false),
        (of(Prompt::Chat(vec![seen])), true, false),
        (of(Prompt::Chat(last_is_assistants)), false, false),
        (with_form.clone(), false, false),
        (resumed(ask("x"), "", "<thi"), false, true),
    ] {
        assert_eq!((vllm.can_resume(&request), llama.can_resume(&request)), (by_vllm, by_llama), "{request:?}");
    }
    let error = events(&vllm, with_form).await.unwrap_err();
    assert!(matches!(error, BackendError::Unsupported { param: "resume", .. }), "{error:?}");
    let (_plain, other) = server("somebody").await;
    assert!(!other.models().await.unwrap()[0].continues);
    assert!(!other.can_resume(&of(Prompt::Raw("x".into()))));
}
