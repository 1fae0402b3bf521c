//! What becomes of the faults of a server.

use super::*;

/// Asks a server that answers by this script; returns the text that came before the end or the error.
async fn broken(script: Script) -> (String, Option<BackendError>) {
    broken_within(20_000, script).await
}

async fn broken_within(timeout_ms: u64, script: Script) -> (String, Option<BackendError>) {
    let upstream = Upstream::start().await.unwrap();
    upstream.on(CHAT, script);
    let backend = backend(OpenAiConfig { timeout_ms, ..config(upstream.url()) });
    let mut stream = match backend.chat(ask("x")).await {
        Ok(stream) => stream,
        Err(error) => return (String::new(), Some(error)),
    };
    let mut events = Vec::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => events.push(event),
            Err(error) => {
                assert!(stream.next().await.is_none(), "nothing comes after an error");
                return (text_of(&events), Some(error));
            }
        }
    }
    assert!(matches!(events.last(), Some(ChatEvent::Done { .. })), "{events:?}");
    (text_of(&events), None)
}

fn begun() -> Script {
    Script::events(&[said("be"), said("gun")])
}

fn is_unavailable(error: Option<&BackendError>) -> bool {
    matches!(error, Some(BackendError::Unavailable { reason }) if reason.contains("'far'"))
}

fn is_interrupted(error: Option<&BackendError>) -> bool {
    matches!(error, Some(BackendError::Interrupted { reason }) if reason.contains("'far'"))
}

#[tokio::test]
async fn a_server_that_refuses_connections_is_unavailable() {
    let backend = backend(config(Upstream::refusing().await.unwrap()));
    let error = backend.chat(ask("x")).await.err();
    assert!(is_unavailable(error.as_ref()), "{error:?}");
    assert!(matches!(backend.health().await, Health::Unavailable(reason) if reason.contains("Is the server running?")));
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_before_and_after_its_headers() {
    // Long enough that a busy machine has heard by then what the server did say.
    const LIMIT_MS: u64 = 2_000;
    let timed_out = Some(BackendError::TimedOut { after: Duration::from_millis(LIMIT_MS) });
    assert_eq!(broken_within(LIMIT_MS, Script::hang()).await, (String::new(), timed_out.clone()));
    let silent = Script::stream("text/event-stream").then_hang();
    assert_eq!(broken_within(LIMIT_MS, silent).await, (String::new(), timed_out.clone()));
    assert_eq!(broken_within(LIMIT_MS, begun().then_hang()).await, ("begun".to_owned(), timed_out));
}

#[tokio::test]
async fn a_server_that_dies_before_the_first_token_leaves_the_request_to_others() {
    for script in [Script::raw(""), Script::stream("text/event-stream").then_cut(), Script::events(&[])] {
        let (_, error) = broken(script).await;
        assert!(is_unavailable(error.as_ref()), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_interrupts_the_answer() {
    for script in [begun().then_cut(), begun()] {
        let (text, error) = broken(script).await;
        assert_eq!(text, "begun");
        assert!(is_interrupted(error.as_ref()), "{error:?}");
    }
    // A reset may overtake what was sent before it.
    let (text, error) = broken(begun().then_reset()).await;
    assert!(is_interrupted(error.as_ref()) || (text.is_empty() && is_unavailable(error.as_ref())), "{text} {error:?}");
}

#[tokio::test]
async fn a_fault_after_the_reason_to_end_takes_nothing_away() {
    let whole = || begun().event(&ended("stop"));
    for script in [whole().then_cut(), whole().then_reset(), whole().piece("data: {").then_cut()] {
        assert_eq!(broken(script).await, ("begun".to_owned(), None));
    }
}

#[tokio::test]
async fn an_empty_reason_to_end_is_none() {
    let piece = |key: &str, text: &str| json!({"choices": [{"index": 0, key: {"content": text}, "finish_reason": ""}]});
    let begun = || Script::events(&[piece("delta", "be"), piece("delta", "gun")]);
    let (text, error) = broken(begun().then_cut()).await;
    assert_eq!(text, "begun");
    assert!(is_interrupted(error.as_ref()), "{error:?}");
    assert_eq!(broken(begun().event(&ended("stop")).done()).await, ("begun".to_owned(), None));
    assert_eq!(broken(Script::json(200, &piece("message", "whole"))).await, ("whole".to_owned(), None));
}

#[tokio::test]
async fn garbage_is_not_passed_on() {
    let page = "<html><body>It works!</body></html>\n";
    for script in [
        Script::raw("SSH-2.0-OpenSSH_9.6\r\n"),
        Script::raw("HTTP/1.1 abc\r\n\r\n"),
        Script::stream("text/html").piece(page),
        Script::stream("text/event-stream").piece("data: {\"choices\": [}\n\n"),
        Script::stream("text/event-stream").piece([b'd', b'a', b't', b'a', b':', 0xff, 0xfe, b'\n']),
        Script::json(200, &json!({"choices": "many"})),
        Script::json(200, &json!({"hello": "world"})),
    ] {
        let (_, error) = broken(script).await;
        assert!(is_unavailable(error.as_ref()), "{error:?}");
    }
    let (text, error) = broken(begun().piece("data: nonsense\n\n")).await;
    assert_eq!(text, "begun");
    assert!(is_interrupted(error.as_ref()), "{error:?}");
}

#[tokio::test]
async fn a_huge_line_is_not_read_to_its_end() {
    let huge = vec![b'x'; 9 << 20];
    let (_, error) = broken(begun().piece("data: ").piece(huge).then_hang()).await;
    assert!(matches!(&error, Some(BackendError::Interrupted { reason }) if reason.contains("8 MiB")), "{error:?}");
}

#[tokio::test]
async fn characters_may_be_cut_at_any_byte() {
    let text = "Grüße, 蜂 🐝!";
    for bytes in 1..6 {
        let script = Script::events(&[said(text), ended("stop")]).done().cut_into(bytes);
        assert_eq!(broken(script).await, (text.to_owned(), None), "{bytes}");
    }
}

#[tokio::test]
async fn a_server_that_closes_late_is_not_waited_for() {
    let upstream = Upstream::start().await.unwrap();
    upstream.on(CHAT, begun().event(&ended("stop")).done().then_hang());
    let answer = events(&backend(config(upstream.url())), ask("x")).await.unwrap();
    assert_eq!(text_of(&answer), "begun");
    upstream.abandoned().await;
}

#[tokio::test]
async fn a_server_that_is_busy_says_for_how_long() {
    for (status, wait) in [(429, "7"), (503, "7")] {
        let script = Script::json(status, &json!({"error": {"message": "slow down"}})).header("Retry-After", wait);
        let expected = BackendError::Overloaded { retry_after: Duration::from_secs(7) };
        assert_eq!(broken(script).await.1, Some(expected));
    }
}

#[tokio::test]
async fn a_wrong_key_is_told_to_whoever_set_it() {
    let upstream = Upstream::start().await.unwrap();
    let refusal = Script::json(401, &json!({"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}));
    upstream.on(CHAT, refusal.clone());
    upstream.on("GET /v1/models", refusal);
    let backend = backend(config(upstream.url()));
    let error = backend.chat(ask("x")).await.err();
    assert!(matches!(error, Some(BackendError::Rejected { reason }) if reason.contains("api_key_env")));
    assert!(matches!(backend.health().await, Health::Unavailable(reason) if reason.contains("Incorrect API key")));
}

#[tokio::test]
async fn a_servers_own_errors_are_unavailability_and_the_requests_faults_are_not() {
    let (_, error) = broken(Script::json(500, &json!({"error": {"message": "boom", "code": 500}}))).await;
    assert!(is_unavailable(error.as_ref()), "{error:?}");
    let (_, error) = broken(Script::json(400, &json!({"error": {"message": "no such option", "code": 400}}))).await;
    let expected = BackendError::InvalidRequest { param: None, message: "no such option".to_owned() };
    assert_eq!(error, Some(expected));
}

#[tokio::test]
async fn errors_inside_a_stream_are_errors() {
    let error = |code: Value| json!({"error": {"message": "no room", "type": "x", "code": code}});
    let (_, first) = broken(Script::events(&[error(json!(400))])).await;
    assert_eq!(first, Some(BackendError::InvalidRequest { param: None, message: "no room".to_owned() }));
    let (_, first) = broken(Script::events(&[error(json!("server_error"))])).await;
    assert!(is_unavailable(first.as_ref()), "{first:?}");
    let (_, bare) = broken(Script::stream("text/event-stream").piece(format!("{}\n", error(json!(429))))).await;
    assert!(matches!(bare, Some(BackendError::Overloaded { .. })), "{bare:?}");
    let (text, later) = broken(begun().event(&error(Value::Null))).await;
    assert_eq!(text, "begun");
    assert!(matches!(later, Some(BackendError::Interrupted { reason }) if reason.contains("no room")));
}

#[tokio::test]
async fn a_client_that_goes_away_stops_the_server() {
    let upstream = Upstream::start().await.unwrap();
    upstream.once(CHAT, begun().then_hang());
    let backend = backend(config(upstream.url()));
    let mut stream = backend.chat(ask("x")).await.unwrap();
    assert!(matches!(stream.next().await, Some(Ok(ChatEvent::Delta(_)))));
    drop(stream);
    upstream.abandoned().await;
}

#[tokio::test]
async fn a_client_that_goes_away_before_the_headers_stops_the_server_too() {
    let upstream = Upstream::start().await.unwrap();
    upstream.on(CHAT, Script::hang());
    let backend = backend(config(upstream.url()));
    tokio::select! {
        _ = backend.chat(ask("x")) => panic!("a server that hangs answered"),
        _ = upstream.received(1) => {}
    }
    upstream.abandoned().await;
}

#[tokio::test]
async fn a_server_that_comes_back_is_used_again() {
    let upstream = Upstream::start().await.unwrap();
    upstream.on(CHAT, begun().event(&ended("stop")).done());
    let backend = backend(config(upstream.url()));
    assert!(events(&backend, ask("x")).await.is_ok());
    upstream.stop();
    let gone = async { while !is_unavailable(events(&backend, ask("x")).await.err().as_ref()) {} };
    timeout(Duration::from_secs(20), gone).await.unwrap();
    upstream.restart().await.unwrap();
    assert_eq!(text_of(&events(&backend, ask("x")).await.unwrap()), "begun");
}
