use std::collections::BTreeMap;

use bombus_core::model::ModelName;
use futures::{TryStreamExt, stream};

use super::*;
use crate::{CreateRequest, ModelLibrary, Progress, PullRequest};

fn library(upstream: &Upstream) -> impl ModelLibrary {
    backend(upstream)
}

fn name(text: &str) -> ModelName {
    ModelName::parse(text).unwrap()
}

#[tokio::test]
async fn a_pull_tells_its_progress_and_ends_with_success() {
    let upstream = server().await;
    let hash = "b".repeat(64);
    let steps = [
        json!({"status": "pulling manifest"}),
        json!({"status": "pulling bbb", "digest": format!("sha256:{hash}"), "total": 10, "completed": 4}),
        json!({"status": "success"}),
    ];
    upstream.on("POST /api/pull", Script::lines(&steps));
    let progress: Vec<_> =
        library(&upstream).pull(PullRequest::new("small")).await.unwrap().try_collect().await.unwrap();
    let middle =
        Progress { status: "pulling bbb".into(), sha256: Some(hash), total_bytes: Some(10), completed_bytes: Some(4) };
    assert_eq!((progress.len(), &progress[1], progress[2].status.as_str()), (3, &middle, "success"));
    let insecure = PullRequest { insecure: true, ..PullRequest::new("hive.lan/small") };
    library(&upstream).pull(insecure).await.unwrap().try_collect::<Vec<_>>().await.unwrap();
    let sent: Vec<_> = requests(&upstream, "POST /api/pull").iter().map(Received::json).collect();
    let expected = json!({"model": "hive.lan/small", "insecure": true, "stream": true});
    assert_eq!(sent, [json!({"model": "small", "stream": true}), expected]);
}

#[tokio::test]
async fn a_pull_that_fails_says_why() {
    let upstream = server().await;
    let begin = json!({"status": "pulling manifest"});
    let pull = async || {
        library(&upstream).pull(PullRequest::new("nope")).await.unwrap().try_collect::<Vec<_>>().await.unwrap_err()
    };
    let missing = json!({"error": "pull model manifest: file does not exist"});
    upstream.once("POST /api/pull", Script::lines(&[begin.clone(), missing]));
    assert_eq!(pull().await, BackendError::ModelNotFound { model: "nope".into() });
    upstream.once("POST /api/pull", Script::lines(&[begin.clone(), json!({"error": "no such host"})]));
    assert!(matches!(pull().await, BackendError::Unavailable { reason } if reason.contains("no such host")));
    upstream.once("POST /api/pull", Script::lines(&[begin]));
    assert!(matches!(pull().await, BackendError::Unavailable { .. }), "an end without success is a failure");
}

#[tokio::test]
async fn dropping_a_pull_stops_it() {
    let upstream = server().await;
    upstream.on("POST /api/pull", Script::lines(&[json!({"status": "pulling manifest"})]).then_hang());
    let mut steps = library(&upstream).pull(PullRequest::new("small")).await.unwrap();
    steps.next().await.unwrap().unwrap();
    drop(steps);
    assert_eq!(upstream.abandoned().await.line, "POST /api/pull");
}

#[tokio::test]
async fn models_are_removed_and_copied_and_missing_ones_told() {
    let upstream = server().await;
    let library = library(&upstream);
    upstream.once("DELETE /api/delete", Script::text(200, ""));
    upstream.on("DELETE /api/delete", Script::json(404, &json!({"error": "model 'small:latest' not found"})));
    assert!(library.delete(&name("small")).await.unwrap());
    assert!(!library.delete(&name("small")).await.unwrap());
    assert_eq!(requests(&upstream, "DELETE /api/delete")[0].json(), json!({"model": "small:latest"}));
    upstream.once("POST /api/copy", Script::text(200, ""));
    upstream.on("POST /api/copy", Script::json(404, &json!({"error": "model \"small\" not found"})));
    assert!(library.copy(&name("small"), &name("b")).await.unwrap());
    assert!(!library.copy(&name("small"), &name("b")).await.unwrap());
    let sent = requests(&upstream, "POST /api/copy")[0].json();
    assert_eq!(sent, json!({"source": "small:latest", "destination": "b:latest"}));
}

#[tokio::test]
async fn a_model_is_made_of_another_or_of_blobs() {
    let upstream = server().await;
    upstream
        .on("POST /api/create", Script::lines(&[json!({"status": "writing manifest"}), json!({"status": "success"})]));
    let request = CreateRequest {
        name: "derived".into(),
        from: Some("small".into()),
        files: BTreeMap::from([("m.gguf".to_owned(), "c".repeat(64))]),
        system: Some("Be brief".into()),
        parameters: json!({"temperature": 0.5}).as_object().unwrap().clone(),
        messages: vec![Message::text(Role::User, "Hi")],
        renderer: Some("qwen3-coder".into()),
        parser: Some("qwen3".into()),
        requires: Some("0.14.0".into()),
        info: json!({"context_length": 4096}).as_object().unwrap().clone(),
        ..CreateRequest::default()
    };
    let steps: Vec<_> = library(&upstream).create(request).await.unwrap().try_collect().await.unwrap();
    assert_eq!(steps.len(), 2);
    let expected = json!({
        "model": "derived", "from": "small", "files": {"m.gguf": format!("sha256:{}", "c".repeat(64))},
        "system": "Be brief", "parameters": {"temperature": 0.5}, "messages": [{"role": "user", "content": "Hi"}],
        "renderer": "qwen3-coder", "parser": "qwen3", "requires": "0.14.0", "info": {"context_length": 4096},
        "stream": true,
    });
    assert_eq!(requests(&upstream, "POST /api/create")[0].json(), expected);
}

#[tokio::test]
async fn files_are_looked_for_and_taken_in() {
    let upstream = server().await;
    let library = library(&upstream);
    let (here, gone) = ("c".repeat(64), "d".repeat(64));
    upstream.on(&format!("HEAD /api/blobs/sha256:{here}"), Script::raw("HTTP/1.1 200 OK\r\n\r\n"));
    upstream.on(&format!("HEAD /api/blobs/sha256:{gone}"), Script::raw("HTTP/1.1 404 Not Found\r\n\r\n"));
    assert!(library.has_blob(&here).await.unwrap());
    assert!(!library.has_blob(&gone).await.unwrap());
    assert!(matches!(library.has_blob("../x").await, Err(BackendError::InvalidRequest { .. })));

    let bytes = || stream::iter([Ok("GG".into()), Ok("UF".into())]).boxed();
    let line = format!("POST /api/blobs/sha256:{gone}");
    upstream.once(&line, Script::text(201, ""));
    upstream.on(&line, Script::json(400, &json!({"error": "digest mismatch"})));
    library.put_blob(&gone, bytes()).await.unwrap();
    let mismatch = library.put_blob(&gone, bytes()).await.unwrap_err();
    assert!(matches!(mismatch, BackendError::InvalidRequest { message, .. } if message.contains("mismatch")));
    assert!(requests(&upstream, &line).iter().all(|request| request.body == b"GGUF"));
}

#[tokio::test]
async fn an_upload_that_stalls_is_given_up_and_one_that_moves_is_not() {
    let upstream = server().await;
    // The pieces together take longer than the limit, and each of them far less, however busy the machine is.
    let limit = Duration::from_secs(4);
    let client = patient(&upstream).timeout(limit).build().unwrap();
    let hash = "d".repeat(64);
    let line = format!("POST /api/blobs/sha256:{hash}");
    upstream.on(&line, Script::text(201, ""));
    let slow = stream::iter(0..10).then(move |_| async move {
        tokio::time::sleep(limit / 8).await;
        Ok("x".into())
    });
    client.put_blob(&hash, slow.boxed()).await.unwrap();
    let stalled = client.put_blob(&hash, stream::pending().boxed()).await;
    assert_eq!(stalled, Err(crate::OllamaError::TimedOut { after: limit }));
}
