//! The routes of files and batches, over some in memory.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use bombus_core::batches::{BatchLine, BatchStatus, Computed, Endpoint, FILE_BYTES_MAX, LineError, LineOutcome};
use bombus_core::chat::{EmbedResponse, FinishReason, TokenAlternative, TokenLogprob, ToolCall, Usage};
use bombus_core::tasks::{ChatAnswer, TaskId, WholeAnswer};
use bombus_infer::fake::FakeConfig;
use insta::assert_snapshot;
use serde_json::{Value, json};

use super::scripted::{ScriptedFiles, the_batch};
use crate::Services;
use crate::testing::{Answer, fake, get, loopback, post, send};

const BOUNDARY: &str = "----bees";

fn over(files: &ScriptedFiles) -> Router {
    loopback(Services { files: Some(Arc::new(files.clone())), ..fake(FakeConfig::default()) })
}

fn part(name: &str, filename: Option<&str>, content: &str) -> String {
    let filename = filename.map(|name| format!("; filename=\"{name}\"")).unwrap_or_default();
    format!("--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"{filename}\r\n\r\n{content}\r\n")
}

async fn upload(router: &Router, parts: &[String]) -> Answer {
    let body = format!("{}--{BOUNDARY}--\r\n", parts.concat());
    let request =
        Request::post("/v1/files").header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"));
    send(router, request.body(Body::from(body)).unwrap()).await
}

fn purpose() -> String {
    part("purpose", None, "batch")
}

fn file() -> String {
    part("file", Some("questions.jsonl"), "{\"a\": 1}\n{\"b\": 2}\n")
}

async fn delete(router: &Router, path: &str) -> Answer {
    send(router, Request::delete(path).body(Body::empty()).unwrap()).await
}

fn error_of(answer: &Answer) -> (u16, Value, Value) {
    let error = &answer.json()["error"];
    (answer.status.as_u16(), error["code"].clone(), error["param"].clone())
}

#[tokio::test]
async fn a_file_is_taken_told_of_read_and_removed() {
    let router = over(&ScriptedFiles::default());
    // Some clients send the file first.
    let answer = upload(&router, &[file(), purpose()]).await;
    assert_snapshot!("file_created", answer.shown());
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(get(&router, &format!("/v1/files/{id}")).await.json(), answer.json());
    let content = get(&router, &format!("/v1/files/{id}/content")).await;
    assert_eq!(
        (content.header("content-type"), content.body.as_str()),
        (Some("application/octet-stream"), "{\"a\": 1}\n{\"b\": 2}\n")
    );
    upload(&router, &[purpose(), part("expires_after[anchor]", None, "created_at"), file()]).await;
    assert_snapshot!("file_list", get(&router, "/v1/files?limit=1&order=asc").await.shown());
    let removed = delete(&router, &format!("/v1/files/{id}")).await;
    assert_eq!(removed.json(), json!({ "id": id, "object": "file", "deleted": true }));
    assert_eq!(error_of(&get(&router, &format!("/v1/files/{id}")).await).0, 404);
}

#[tokio::test]
async fn what_is_no_file_for_a_batch_is_refused_and_leaves_nothing() {
    let files = ScriptedFiles::default();
    let router = over(&files);
    let other = part("purpose", None, "fine-tune");
    let told = upload(&router, &[other.clone(), file()]).await;
    assert_snapshot!("file_purpose", told.shown());
    for (parts, param) in [
        (vec![file(), other], "purpose"),
        (vec![file()], "purpose"),
        (vec![purpose()], "file"),
        (vec![purpose(), part("file", None, "no name")], "file"),
        (vec![purpose(), file(), file()], "file"),
    ] {
        let answer = upload(&router, &parts).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["error"]["param"]), (400, &json!(param)), "{}", answer.body);
    }
    assert!(files.stored.lock().unwrap().is_empty());
    assert_eq!(*files.dropped.lock().unwrap(), 3, "what had begun is forgotten");
    let answer = post(&router, "/v1/files", "{}").await;
    assert_eq!(error_of(&answer), (400, json!("invalid_form"), Value::Null));
    let cut = format!("{}{}", purpose(), file().trim_end());
    let request =
        Request::post("/v1/files").header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"));
    let answer = send(&router, request.body(Body::from(cut)).unwrap()).await;
    assert_eq!(error_of(&answer), (400, json!("invalid_form"), Value::Null));
}

#[tokio::test]
async fn a_file_over_the_limit_is_refused_whether_it_says_so_or_not() {
    let files = ScriptedFiles::default();
    let router = over(&files);
    let typed =
        || Request::post("/v1/files").header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"));
    let announced = typed().header("content-length", FILE_BYTES_MAX * 2).body(Body::empty()).unwrap();
    assert_eq!(error_of(&send(&router, announced).await), (413, json!("request_too_large"), Value::Null));
    let head =
        format!("{}--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n", purpose());
    let piece = bytes::Bytes::from(vec![b'x'; 1 << 20]);
    let pieces = std::iter::once(bytes::Bytes::from(head)).chain(std::iter::repeat_n(piece, 66));
    let body = Body::from_stream(futures::stream::iter(pieces.map(Ok::<_, std::io::Error>)));
    let answer = send(&router, typed().body(body).unwrap()).await;
    assert_eq!(error_of(&answer), (413, json!("request_too_large"), Value::Null));
    assert!(files.stored.lock().unwrap().is_empty());
}

#[tokio::test]
async fn ids_that_are_none_and_parameters_that_cannot_be_are_told() {
    let router = over(&ScriptedFiles::default());
    assert_snapshot!("file_unknown", get(&router, "/v1/files/file-x").await.shown());
    for path in ["/v1/files/file-x/content", "/v1/files/%FF"] {
        assert_eq!(error_of(&get(&router, path).await), (404, json!("file_not_found"), json!("id")), "{path}");
    }
    assert_eq!(error_of(&delete(&router, "/v1/files/file-x").await).0, 404);
    assert_eq!(error_of(&get(&router, "/v1/batches/batch_x").await), (404, json!("batch_not_found"), json!("id")));
    assert_eq!(error_of(&post(&router, "/v1/batches/batch_x/cancel", "").await).0, 404);
    for path in
        ["/v1/files?limit=0", "/v1/files?limit=10001", "/v1/files?order=up", "/v1/batches?limit=101", "/v1/batches?x=1"]
    {
        assert_eq!(error_of(&get(&router, path).await).0, 400, "{path}");
    }
    let none = loopback(fake(FakeConfig::default()));
    assert_eq!(error_of(&get(&none, "/v1/files").await), (503, json!("files_unavailable"), Value::Null));
}

#[tokio::test]
async fn a_batch_is_made_of_a_file_and_told_of() {
    let files = ScriptedFiles::default();
    let router = over(&files);
    let id = upload(&router, &[purpose(), file()]).await.json()["id"].clone();
    let batch = json!({ "input_file_id": id, "endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": { "a": "b" } });
    let made = post(&router, "/v1/batches", &batch).await;
    assert_snapshot!("batch_created", made.shown());
    assert_eq!(files.made.lock().unwrap()[0].endpoint, Endpoint::Chat);
    let path = format!("/v1/batches/{}", the_batch());
    assert_eq!(get(&router, &path).await.json(), made.json());
    assert_eq!(get(&router, "/v1/batches").await.json()["data"], json!([made.json()]));
    assert_eq!(post(&router, &format!("{path}/cancel"), "").await.json()["status"], "cancelling");
    for (field, value) in [
        ("input_file_id", json!("file-x")),
        ("endpoint", json!("/v1/responses")),
        ("completion_window", json!("1h")),
        ("metadata", json!({ "a": 1 })),
    ] {
        let mut wrong = batch.clone();
        wrong[field] = value;
        let answer = post(&router, "/v1/batches", &wrong).await;
        let param = answer.json()["error"]["param"].as_str().unwrap_or_default().to_owned();
        assert!(answer.status == 400 && param.starts_with(field), "{field}: {}", answer.body);
    }
}

#[tokio::test]
async fn a_batch_that_ended_tells_how_and_cannot_be_cancelled() {
    let error =
        LineError { code: "invalid_url".into(), message: "wrong".into(), param: Some("url".into()), line: Some(3) };
    let files = ScriptedFiles { errors: vec![error], status: Some(BatchStatus::Failed), ..ScriptedFiles::default() };
    let router = over(&files);
    let id = upload(&router, &[purpose(), file()]).await.json()["id"].clone();
    let batch = json!({ "input_file_id": id, "endpoint": "/v1/embeddings", "completion_window": "24h" });
    let failed = post(&router, "/v1/batches", &batch).await.json();
    let data = json!([{ "code": "invalid_url", "message": "wrong", "param": "url", "line": 3 }]);
    assert_eq!((&failed["status"], &failed["errors"]), (&json!("failed"), &json!({ "object": "list", "data": data })));
    let refused = post(&router, &format!("/v1/batches/{}/cancel", the_batch()), "").await;
    assert_eq!(error_of(&refused), (409, json!("batch_ended"), Value::Null));
}

fn answered(task: &str, answer: WholeAnswer) -> BatchLine {
    let outcome = LineOutcome::Answered { model: "m".into(), created: 1_700_000_000, answer: Box::new(answer) };
    BatchLine { custom_id: format!("q-{task}"), task: TaskId::parse(task).unwrap(), outcome }
}

fn chat_answer(text: &str) -> ChatAnswer {
    ChatAnswer {
        text: text.into(),
        thinking: String::new(),
        tool_calls: Vec::new(),
        logprobs: Vec::new(),
        finish: FinishReason::Stop,
        usage: Usage { prompt_tokens: 3, cached_tokens: 1, completion_tokens: 2, ..Usage::default() },
    }
}

#[tokio::test]
async fn what_came_of_a_batch_is_written_as_requests_by_themselves_are_answered() {
    let call = ToolCall { id: "call_1".into(), name: "look".into(), arguments: "{}".into() };
    let calling = ChatAnswer { tool_calls: vec![call], ..chat_answer("") };
    let token = TokenAlternative { id: 1, bytes: b"Ho".to_vec(), logprob: -0.5 };
    let token = TokenLogprob { top: vec![token.clone()], token };
    let with_logprobs = ChatAnswer { logprobs: vec![token], ..chat_answer("Ho") };
    let chat = |answers, form: &str| WholeAnswer::Chat { answers, answers_each: 2, form: form.into() };
    let response = EmbedResponse::new(vec![vec![0.5, -1.0]], 4);
    let failed = |outcome| BatchLine { custom_id: "bad".into(), task: TaskId::parse("t-9").unwrap(), outcome };
    let lines = vec![
        answered("t-1", chat(vec![chat_answer("Hello"), calling], "chat")),
        answered("t-2", chat(vec![with_logprobs.clone()], "chat logprobs")),
        answered("t-3", chat(vec![chat_answer("a"), with_logprobs], "text logprobs")),
        answered("t-4", WholeAnswer::Embed { response: response.clone(), form: String::new() }),
        answered("t-5", WholeAnswer::Embed { response, form: "base64".into() }),
        failed(LineOutcome::Refused { status: 400, body: json!({ "error": { "message": "no" } }) }),
        failed(LineOutcome::Failed { code: "batch_expired", message: "too late".into() }),
    ];
    let router = over(&ScriptedFiles { lines, ..ScriptedFiles::default() });
    let path = format!("/v1/files/{}/content", Computed::Output.file_of(&the_batch()));
    let answer = get(&router, &path).await;
    let lines: Vec<Value> = answer.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_snapshot!("batch_output", serde_json::to_string_pretty(&lines).unwrap());
}
