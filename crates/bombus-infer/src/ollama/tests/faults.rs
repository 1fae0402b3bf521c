use super::*;
use crate::Health;
use crate::ollama::wire::GenerateRequest;

fn impatient(upstream: &Upstream) -> OllamaBackend {
    OllamaBackend::of("far", patient(upstream).timeout(IMPATIENCE).build().unwrap())
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let client = OllamaClient::builder().url(Upstream::refusing().await.unwrap()).retry(1, Duration::from_millis(1));
    let backend = OllamaBackend::of("far", client.build().unwrap());
    let outcome = run(&backend, ask("Hi")).await;
    assert!(matches!(outcome.error, Some(BackendError::Unavailable { reason }) if reason.contains("'far'")));
    assert!(matches!(backend.models().await, Err(BackendError::Unavailable { .. })));
    assert!(matches!(backend.health().await, Health::Unavailable(reason) if reason.contains("running")));
}

#[tokio::test]
async fn a_server_that_hangs_before_the_headers_times_out_and_loses_its_connection() {
    let upstream = server().await;
    upstream.on("POST /api/chat", Script::hang());
    let outcome = run(&impatient(&upstream), ask("Hi")).await;
    assert_eq!(outcome.error, Some(BackendError::TimedOut { after: IMPATIENCE }));
    assert_eq!(upstream.abandoned().await.line, "POST /api/chat");
}

#[tokio::test]
async fn a_server_that_hangs_after_the_headers_times_out_before_the_answer_begins() {
    let upstream = server().await;
    upstream.on("POST /api/chat", Script::stream("application/x-ndjson").then_hang());
    let stream = impatient(&upstream).chat(ask("Hi")).await;
    assert_eq!(stream.err(), Some(BackendError::TimedOut { after: IMPATIENCE }));
}

#[tokio::test]
async fn a_server_that_hangs_in_the_middle_times_out() {
    let upstream = server().await;
    upstream.on("POST /api/chat", Script::lines(&[said("a")]).then_hang());
    let outcome = run(&impatient(&upstream), ask("Hi")).await;
    assert_eq!((outcome.text.as_str(), outcome.error), ("a", Some(BackendError::TimedOut { after: IMPATIENCE })));
}

#[tokio::test]
async fn a_death_in_the_middle_interrupts_and_is_not_tried_again() {
    let upstream = server().await;
    for script in
        [Script::lines(&[said("a")]).then_cut(), Script::lines(&[said("a")]).then_reset(), Script::lines(&[said("a")])]
    {
        upstream.once("POST /api/chat", script);
        let outcome = run(&backend(&upstream), ask("Hi")).await;
        assert_eq!(outcome.text, "a");
        assert!(matches!(outcome.error, Some(BackendError::Interrupted { .. })), "{outcome:?}");
    }
    assert_eq!(requests(&upstream, "POST /api/chat").len(), 3);
}

#[tokio::test]
async fn a_death_before_the_first_piece_is_unavailable() {
    let upstream = server().await;
    upstream.on("POST /api/chat", Script::stream("application/x-ndjson").then_cut());
    let stream = backend(&upstream).chat(ask("Hi")).await;
    assert!(matches!(stream.err(), Some(BackendError::Unavailable { .. })));
}

#[tokio::test]
async fn garbage_is_no_answer() {
    let upstream = server().await;
    upstream.once("POST /api/chat", Script::text(200, "<html>hello</html>\n"));
    let stream = backend(&upstream).chat(ask("Hi")).await;
    assert!(matches!(stream.err(), Some(BackendError::Unavailable { .. })));
    upstream.once("POST /api/chat", Script::raw("SSH-2.0-OpenSSH_9.6\r\n"));
    let stream = backend(&upstream).chat(ask("Hi")).await;
    assert!(matches!(stream.err(), Some(BackendError::Unavailable { .. })));
    upstream.once("POST /api/chat", Script::lines(&[said("a")]).piece("}{\n"));
    let outcome = run(&backend(&upstream), ask("Hi")).await;
    assert!(outcome.text == "a" && matches!(outcome.error, Some(BackendError::Interrupted { .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_huge_line_ends_the_answer() {
    let upstream = server().await;
    let huge = vec![b'x'; 9 << 20];
    upstream.on("POST /api/chat", Script::lines(&[said("a")]).piece(huge).piece("\n"));
    let outcome = run(&backend(&upstream), ask("Hi")).await;
    assert!(outcome.text == "a" && matches!(outcome.error, Some(BackendError::Interrupted { .. })), "{outcome:?}");
}

#[tokio::test]
async fn characters_survive_being_cut_into_single_bytes() {
    let upstream = server().await;
    upstream.on("POST /api/chat", answer(&["grüß", "e 🐝", "\u{2028}"]).cut_into(1));
    let outcome = run(&backend(&upstream), ask("Hi")).await;
    let expected = Outcome { text: "grüße 🐝\u{2028}".into(), finish: Some(FinishReason::Stop), error: None };
    assert_eq!(outcome, expected);
}

#[tokio::test]
async fn a_server_that_closes_late_does_not_hold_the_end_back() {
    let upstream = server().await;
    upstream.on("POST /api/chat", answer(&["a"]).then_hang());
    let outcome = run(&backend(&upstream), ask("Hi")).await;
    assert_eq!((outcome.finish, outcome.error), (Some(FinishReason::Stop), None));
    upstream.abandoned().await;
}

#[tokio::test]
async fn too_many_requests_say_when_to_come_back() {
    let upstream = server().await;
    let busy = Script::json(429, &json!({"error": "slow down"})).header("retry-after", "7");
    upstream.on("POST /api/chat", busy);
    let outcome = run(&backend(&upstream), ask("Hi")).await;
    assert_eq!(outcome.error, Some(BackendError::Overloaded { retry_after: Duration::from_secs(7) }));
    assert_eq!(requests(&upstream, "POST /api/chat").len(), 1);
}

#[tokio::test]
async fn a_refused_key_says_what_to_set() {
    let upstream = server().await;
    upstream.on("POST /api/chat", Script::json(401, &json!({"error": "unauthorized"})));
    let outcome = run(&backend(&upstream), ask("Hi")).await;
    assert!(matches!(outcome.error, Some(BackendError::Rejected { reason }) if reason.contains("api_key_env")));
}

#[tokio::test]
async fn an_error_line_ends_the_answer_with_its_words() {
    let upstream = server().await;
    let error = json!({"error": "model runner has unexpectedly stopped"});
    upstream.once("POST /api/chat", Script::lines(&[said("a"), error.clone()]));
    let outcome = run(&backend(&upstream), ask("Hi")).await;
    let Some(BackendError::Interrupted { reason }) = outcome.error else { panic!("{outcome:?}") };
    assert!(outcome.text == "a" && reason.contains("unexpectedly stopped"), "{reason}");
    upstream.once("POST /api/chat", Script::lines(&[error]));
    let stream = backend(&upstream).chat(ask("Hi")).await;
    assert!(matches!(stream.err(), Some(BackendError::Unavailable { .. })));
}

#[tokio::test]
async fn dropping_an_answer_closes_the_connection() {
    let upstream = server().await;
    upstream.on("POST /api/chat", Script::lines(&[said("a")]).then_hang());
    let mut events = backend(&upstream).chat(ask("Hi")).await.unwrap();
    assert!(matches!(events.next().await, Some(Ok(ChatEvent::Delta(_)))));
    drop(events);
    assert_eq!(upstream.abandoned().await.line, "POST /api/chat");
}

#[tokio::test]
async fn dropping_the_wait_for_an_answer_closes_the_connection() {
    let upstream = server().await;
    upstream.on("POST /api/generate", Script::hang());
    let client = patient(&upstream).build().unwrap();
    let request = GenerateRequest { model: "small".into(), prompt: "Hi".into(), ..GenerateRequest::default() };
    tokio::select! {
        answer = client.generate(&request) => panic!("{answer:?}"),
        _ = upstream.received(1) => {}
    }
    assert_eq!(upstream.abandoned().await.line, "POST /api/generate");
}

#[tokio::test]
async fn a_list_that_hangs_or_fails_does_not_keep_a_request_from_being_answered() {
    let upstream = server().await;
    upstream.on("GET /api/tags", Script::hang());
    upstream.on("GET /api/ps", Script::json(500, &json!({"error": "no"})));
    upstream.on("POST /api/chat", answer(&["a"]));
    let outcome = run(&impatient(&upstream), ask("Hi")).await;
    assert_eq!((outcome.text.as_str(), outcome.finish), ("a", Some(FinishReason::Stop)));
}
