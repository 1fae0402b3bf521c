use serde_json::json;

use super::*;

/// As the plan that other peers follow has it.
fn of_javascript() -> Value {
    json!({
        "_id": "5f0c2f5e-52a7-4b76-8a52-30d1b4a1c111",
        "prompt": "Why is the sky blue?",
        "model": "tinyllama",
        "status": "PENDING",
        "requesterPeerId": "12D3KooWJs",
        "createdAt": 1_700_000_000_000.25,
        "options": { "temperature": 0.7, "top_p": 1, "num_predict": 64, "stop": ["\n"], "mirostat": 2 },
        "encrypted": false,
        "retries": [1, 2],
    })
}

#[test]
fn a_document_of_another_peer_is_read_without_our_fields_and_with_some_of_its_own() {
    let task = TaskDocument::read(of_javascript()).unwrap();
    assert_eq!(task.status, TaskStatus::Pending);
    assert_eq!(task.created_at, 1_700_000_000_000);
    assert_eq!(task.kind(), TaskKind::Inference);
    assert_eq!((task.priority(), task.max_attempts()), (5, 3));
    let request = task.chat_request(&task.prompt);
    assert_eq!(request.prompt, Prompt::Chat(vec![Message::text(Role::User, "Why is the sky blue?")]));
    assert_eq!(request.sampling.temperature, Some(0.7));
    assert_eq!(request.sampling.top_p, Some(1.0));
    assert_eq!((request.max_tokens, request.stop), (Some(64), vec!["\n".to_owned()]));
}

#[test]
fn a_task_that_is_sealed_or_for_one_node_may_be_claimed_by_nobody_else() {
    let node = |number| crate::identity::NodeKey::from_secret(&[number; 32]).node_id();
    let open = TaskDocument::new(TaskId::parse("t").unwrap(), "", 7);
    assert_eq!(open.sealed_to(), None);
    assert!(open.may_be_claimed_by(&node(1)));
    let keys = json!([{ "node": node(1), "enc": "" }, { "node": "nobody" }, 3, { "node": node(2) }]);
    let sealed = TaskDocument { sealed: Some(json!({ "v": 1, "keys": keys })), ..open.clone() };
    assert_eq!(sealed.sealed_to(), Some(vec![node(1), node(2)]));
    assert!(sealed.may_be_claimed_by(&node(2)) && !sealed.may_be_claimed_by(&node(3)));
    let designated = TaskDocument { to: Some(node(1)), ..sealed };
    assert!(designated.may_be_claimed_by(&node(1)) && !designated.may_be_claimed_by(&node(2)));
    let unreadable = TaskDocument { sealed: Some(json!("another version's")), ..open };
    assert!(!unreadable.may_be_claimed_by(&node(1)), "who is meant is not known");
}

#[test]
fn what_is_none_is_not_written() {
    let task = TaskDocument::new(TaskId::parse("t").unwrap(), "12D3KooWJs", 7);
    let written = serde_json::to_value(&task).unwrap();
    let expected = json!({ "_id": "t", "prompt": "", "model": "", "status": "PENDING", "requesterPeerId": "12D3KooWJs", "createdAt": 7 });
    assert_eq!(written, expected);
    assert_eq!(TaskDocument::read(written).unwrap(), task);
}

#[test]
fn the_fields_of_a_grant_have_the_names_that_peers_know() {
    let task = TaskDocument {
        status: TaskStatus::Claimed,
        worker_peer_id: Some("12D3KooWW".to_owned()),
        epoch: Some(Epoch(2)),
        granted_by: Some(GrantedBy::SelfClaim),
        task_type: Some(TaskKind::Embedding),
        max_attempts: Some(3),
        released: Some(Epoch(1)),
        ..TaskDocument::new(TaskId::parse("t").unwrap(), "", 7)
    };
    let written = serde_json::to_value(&task).unwrap();
    for (name, value) in [
        ("status", json!("CLAIMED")),
        ("workerPeerId", json!("12D3KooWW")),
        ("epoch", json!(2)),
        ("grantedBy", json!("self")),
        ("taskType", json!("embedding")),
        ("maxAttempts", json!(3)),
        ("released", json!(1)),
    ] {
        assert_eq!(written[name], value, "{name}");
    }
    assert_eq!(TaskDocument::read(written).unwrap(), task);
}

#[test]
fn kinds_that_are_not_known_stay_what_they_are() {
    let mut document = of_javascript();
    document["taskType"] = json!("web_fetch");
    let task = TaskDocument::read(document).unwrap();
    assert_eq!(task.kind(), TaskKind::Other("web_fetch".to_owned()));
    assert_eq!(serde_json::to_value(&task).unwrap()["taskType"], json!("web_fetch"));
}

#[test]
fn what_is_no_task_is_refused_with_the_field() {
    for (field, value, word) in [
        ("status", json!("DONE"), "DONE"),
        ("_id", json!("a b"), "ASCII"),
        ("createdAt", json!("now"), "Number"),
        ("chunkIndex", json!(-1), "u32"),
    ] {
        let mut document = of_javascript();
        document[field] = value;
        let error = TaskDocument::read(document).unwrap_err().to_string();
        assert!(error.contains(word), "{field}: {error}");
    }
}

#[test]
fn a_repeated_request_is_told_from_another_one_with_the_same_key() {
    let task = TaskDocument::read(of_javascript()).unwrap();
    let later = TaskDocument { created_at: 9, status: TaskStatus::Claimed, epoch: Some(Epoch(1)), ..task.clone() };
    assert!(task.asks_the_same(&later));
    assert!(!task.asks_the_same(&TaskDocument { prompt: "Why is grass green?".to_owned(), ..task.clone() }));
    assert!(!task.asks_the_same(&TaskDocument { model: "other".to_owned(), ..task.clone() }));
}
