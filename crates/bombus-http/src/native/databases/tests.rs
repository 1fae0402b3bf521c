//! The routes of the databases, over one that does what a test wants.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use bombus_infer::fake::FakeConfig;
use futures::StreamExt;
use insta::assert_snapshot;
use serde_json::{Value, json};
use tokio::time::timeout;
use tower::ServiceExt;

use super::scripted::{ADDRESS, Scripted, scripted};
use crate::databases::{DatabaseChange, DatabaseRow, DatabaseType, DatabasesError};
use crate::testing::{Answer, LOOPBACK, fake, get, loopback, post, send, with_session_key};
use crate::{HttpConfig, Limits, Services, router};

fn over(databases: &Scripted) -> Services {
    Services { databases: Some(Arc::new(databases.clone())), ..fake(FakeConfig::default()) }
}

fn row(key: &str, value: Value) -> Result<DatabaseRow, DatabasesError> {
    Ok(DatabaseRow { hash: format!("zdpu{key}"), key: Some(key.into()), value })
}

fn documents() -> Scripted {
    let rows = vec![row("a", json!({ "_id": "a", "n": 1 })), row("b", json!({ "_id": "b", "n": 2.5 }))];
    Scripted { rows, ..scripted(DatabaseType::Documents) }
}

/// Sends a request with the key that changes need on loopback too.
async fn keyed(databases: &Scripted, method: &str, path: &str, body: Value) -> Answer {
    let (services, key) = with_session_key(over(databases));
    let request = Request::builder().method(method).uri(path).header("x-api-key", key);
    send(&loopback(services), request.body(Body::from(body.to_string())).unwrap()).await
}

#[tokio::test]
async fn a_database_is_made_opened_listed_and_described() {
    let databases = documents();
    let router = loopback(over(&databases));
    assert_snapshot!("databases_list", get(&router, "/db").await.shown());
    let new = json!({ "name": "notes", "type": "documents", "index_by": "id", "write": ["*"] });
    assert_snapshot!("databases_create", post(&router, "/db", new).await.shown());
    assert_eq!(post(&router, "/db", json!({ "name": "log", "type": "events" })).await.status, 201);
    assert_eq!(post(&router, "/db", json!({ "address": ADDRESS, "index_by": "id" })).await.status, 200);
    assert_eq!(get(&router, "/db/notes").await.json()["name"], "notes");
    assert_eq!(get(&router, "/db/%2Forbitdb%2FzdpuAmH").await.json()["address"], ADDRESS, "an address has slashes");
    let told = databases.told();
    let wanted = [
        "create notes documents Some(\"id\") Some([\"*\"])",
        "create log events None None",
        "open /orbitdb/zdpuAmH Some(\"id\")",
    ];
    assert_eq!(told[2..], wanted);
}

#[tokio::test]
async fn a_request_that_says_too_little_or_too_much_is_refused() {
    let router = loopback(over(&documents()));
    for (body, param) in [
        (json!({}), "name"),
        (json!({ "name": "n" }), "type"),
        (json!({ "name": "", "type": "events" }), "name"),
        (json!({ "name": "a\nb", "type": "events" }), "name"),
        (json!({ "name": "x".repeat(513), "type": "events" }), "name"),
        (json!({ "name": "n", "type": "tables" }), "type"),
        (json!({ "name": "n", "type": "events", "write": [] }), "write"),
        (json!({ "name": "n", "type": "events", "write": ["two words"] }), "no id of an identity"),
        (json!({ "address": ADDRESS, "name": "n" }), "address"),
    ] {
        let answer = post(&router, "/db", &body).await;
        assert_eq!(answer.status, 400, "{body} {}", answer.body);
        assert!(answer.body.contains(param), "{body} {}", answer.body);
    }
    assert_eq!(get(&router, "/db/notes/get").await.status, 400, "no key");
    assert_eq!(get(&router, "/db/notes/all?amount=-1").await.status, 400);
    assert_eq!(get(&router, "/db/none").await.status, 404);
}

#[tokio::test]
async fn rows_are_written_and_read() {
    let databases = documents();
    let router = loopback(over(&databases));
    let put = post(&router, "/db/notes/put", json!({ "key": "k", "value": { "/": { "bytes": "AA" } } })).await;
    assert_eq!(put.json(), json!({ "hash": "zdpuPut" }));
    assert_eq!(post(&router, "/db/notes/del", json!({ "key": "k" })).await.json(), json!({ "hash": "zdpuDel" }));
    assert_eq!(post(&router, "/db/notes/add", json!({ "value": null })).await.json(), json!({ "hash": "zdpuAdd" }));
    assert_eq!(post(&router, "/db/notes/add", json!({})).await.status, 400, "no value is not the value null");
    assert_eq!(get(&router, "/db/notes/get?key=a").await.json()["value"]["n"], 1);
    assert_eq!(get(&router, "/db/notes/get?key=%2Fz").await.json()["code"], "key_not_found");
    assert_snapshot!("databases_all", get(&router, "/db/notes/all?amount=2&newest=true&lt=zdpuB").await.shown());
    let query = json!({ "where": { "n": 1, "a.b": null }, "amount": 5 });
    assert_eq!(post(&router, "/db/notes/query", query).await.body.lines().count(), 2);
    let told = databases.told();
    let wanted = [
        "put notes Some(\"k\") {\"/\":{\"bytes\":\"AA\"}}",
        "del notes k",
        "add notes null",
        "get notes a",
        "get notes /z",
        "rows notes Some(2) true None None Some(\"zdpuB\") None",
        "query notes {\"n\":1,\"a.b\":null} Some(5)",
    ];
    assert_eq!(told, wanted);
}

#[tokio::test]
async fn rows_that_cannot_be_read_to_their_end_say_so() {
    let mut databases = documents();
    databases.rows.insert(1, Err(DatabasesError::Failed("the disk is gone".into())));
    let body = get(&loopback(over(&databases)), "/db/notes/all").await.body;
    assert_eq!(body.lines().nth(1), Some("{\"error\":\"the disk is gone\"}"), "{body}");
}

#[tokio::test]
async fn what_cannot_be_taken_back_needs_a_key_on_loopback_too() {
    let databases = documents();
    let router = loopback(over(&databases));
    let grant = json!({ "identity": "03cd" });
    for path in ["grant", "revoke", "close"] {
        assert_eq!(post(&router, &format!("/db/notes/{path}"), &grant).await.status, 401, "{path}");
    }
    let drop = Request::delete("/db/notes").body(Body::empty()).unwrap();
    assert_eq!(send(&router, drop).await.status, 401);
    assert!(databases.told().is_empty(), "nothing was done");

    assert_eq!(keyed(&databases, "POST", "/db/notes/grant", grant).await.json()["access"]["grantable"], true);
    let admin = json!({ "identity": "*", "capability": "admin" });
    assert_eq!(keyed(&databases, "POST", "/db/notes/revoke", admin).await.status, 200);
    assert_eq!(keyed(&databases, "POST", "/db/notes/close", json!({})).await.json(), json!({ "done": true }));
    assert_eq!(keyed(&databases, "DELETE", "/db/notes", json!({})).await.json(), json!({ "done": true }));
    let told = databases.told();
    assert_eq!(told, ["grant notes write 03cd", "revoke notes admin *", "close notes", "drop notes"]);
    let wrong = json!({ "identity": "03cd", "capability": "read" });
    assert_eq!(keyed(&databases, "POST", "/db/notes/grant", wrong).await.status, 400);
}

#[tokio::test]
async fn every_refusal_has_its_status_and_code() {
    let text = || "so it is".to_owned();
    let mut shown = String::new();
    for error in [
        DatabasesError::UnknownDatabase(text()),
        DatabasesError::AmbiguousDatabase(text()),
        DatabasesError::NameTaken(text()),
        DatabasesError::Closed(text()),
        DatabasesError::TooMany(text()),
        DatabasesError::UnknownKey(text()),
        DatabasesError::Invalid { param: "value", message: text() },
        DatabasesError::WrongType(text()),
        DatabasesError::NotAdmitted(text()),
        DatabasesError::FixedWriters(text()),
        DatabasesError::NotGranted(text()),
        DatabasesError::Unreachable(text()),
        DatabasesError::Unavailable(text()),
        DatabasesError::Failed(text()),
    ] {
        let router = loopback(over(&Scripted { refusal: Some(error), ..documents() }));
        let answer = post(&router, "/db/notes/del", json!({ "key": "k" })).await;
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        shown += &format!("{} {}\n", answer.status.as_u16(), answer.json()["code"]);
    }
    assert_snapshot!("databases_refusals", shown);
}

#[tokio::test]
async fn a_node_without_databases_says_why() {
    let answer = get(&loopback(fake(FakeConfig::default())), "/db").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (503, &json!("databases_unavailable")));
    assert!(answer.body.contains("db.enabled"), "{}", answer.body);
}

/// The frames of a stream of changes, as they come.
async fn frames(router: &Router) -> impl StreamExt<Item = String> + Unpin + use<> {
    let request = Request::get("/db/notes/watch").body(Body::empty()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let body = response.into_body().into_data_stream();
    body.map(|frame| String::from_utf8(frame.unwrap().to_vec()).unwrap())
}

fn eventful() -> Scripted {
    let update = DatabaseChange::Update {
        hash: "zdpuA".into(),
        time: 7,
        writer: "02ab".into(),
        op: Some("put"),
        key: Some("a".into()),
        value: json!("x\ny"),
        node_id: None,
    };
    let join = DatabaseChange::Join { node_id: "12D3KooWHive".into(), heads: vec!["zdpuA".into()] };
    let leave = DatabaseChange::Leave { node_id: "12D3KooWHive".into() };
    let refused =
        DatabaseChange::Refused { hash: "zdpuB".into(), reason: "clock".into(), detail: "its time is wrong".into() };
    Scripted { changes: vec![update, join, leave, refused, DatabaseChange::Readmitted], ..documents() }
}

#[tokio::test]
async fn changes_come_as_they_happen() {
    let mut frames = frames(&loopback(over(&eventful()))).await;
    let mut shown = String::new();
    for _ in 0..6 {
        shown += &frames.next().await.unwrap();
    }
    assert_snapshot!("databases_watch", shown);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_watch_shows_that_it_lives() {
    let begun = tokio::time::Instant::now();
    let mut frames = frames(&loopback(over(&documents()))).await;
    for beats in 0..=2 {
        assert_eq!(frames.next().await.unwrap(), ": alive\n\n");
        assert_eq!(begun.elapsed(), Duration::from_secs(15) * beats);
    }
}

#[tokio::test]
async fn a_watch_that_lags_is_told_and_ends() {
    let changes = vec![DatabaseChange::Lagged { missed: 9 }, DatabaseChange::Readmitted];
    let body = get(&loopback(over(&Scripted { changes, ..documents() })), "/db/notes/watch").await.body;
    assert!(body.ends_with("event: lagged\ndata: {\"event\":\"lagged\",\"missed\":9}\n\n"), "{body}");
}

#[tokio::test]
async fn a_node_that_stops_ends_a_watch() {
    let (router, app) = router::build(HttpConfig::default(), over(&documents()), LOOPBACK.into());
    let mut frames = frames(&router).await;
    assert!(frames.next().await.is_some());
    app.stopping.cancel();
    let end = timeout(Duration::from_secs(10), frames.next()).await;
    assert_eq!(end.expect("it ends without being waited for"), None);
}

#[tokio::test]
async fn what_is_taken_out_can_be_put_in_again() {
    let from = documents();
    let lines = get(&loopback(over(&from)), "/db/notes/export").await.body;
    let to = documents();
    let taken = post(&loopback(over(&to)), "/db/notes/import", &lines).await;
    assert_eq!(taken.json(), json!({ "imported": 2 }), "{lines}");
    let put = |value: &str| format!("put {ADDRESS} None {value}");
    assert_eq!(to.told(), [put(r#"{"_id":"a","n":1}"#), put(r#"{"_id":"b","n":2.5}"#)]);

    let keys = scripted(DatabaseType::KeyValue);
    let taken = post(&loopback(over(&keys)), "/db/notes/import", "{\"key\":\"k\",\"value\":1}\n\n{\"value\":2}").await;
    assert!(taken.status == 400 && taken.body.contains("line 3: the row has no key"), "{}", taken.body);
    let other = post(&loopback(over(&keys)), "/db/notes/import", &lines).await;
    assert_eq!(other.json()["code"], "wrong_type", "documents are no values under keys");
    assert!(to.told().len() == 2);
}

#[tokio::test]
async fn a_line_at_fault_is_named_without_what_it_holds() {
    let events = scripted(DatabaseType::Events);
    let router = loopback(over(&events));
    for (body, wanted) in [
        ("{\"value\":\"s3cret\"}\n{\"value\":\"bad\"}", "line 2: it has no form"),
        ("{\"value\":1}\ns3cret", "line 2: it is not valid JSON at column 1"),
        ("{\"value\":1}\n{\"value\":\r\n{}", "line 2: it is not valid JSON at column 9"),
        ("{\"value\":[\"s3cret\",18446744073709551616]}", "line 1: an integer is not from -2^63"),
        ("{\"s3cret\":1}", "line 1: a row has to be of the form"),
        ("{\"format\":\"bombus-db-9\",\"name\":\"n\",\"type\":\"events\"}", "line 1: the export is of the format"),
        ("{\"error\":\"the disk is gone\"}", "line 1: the export broke off there"),
        ("", "the body is empty"),
    ] {
        let answer = post(&router, "/db/notes/import", body).await;
        assert!(answer.status == 400 && answer.body.contains(wanted), "{body}: {}", answer.body);
        assert!(!answer.body.contains("s3cret"), "{}", answer.body);
    }
    let config = HttpConfig { limits: Limits { body_bytes_max: 64, ..Limits::default() }, ..HttpConfig::default() };
    let (router, _) = router::build(config, over(&events), LOOPBACK.into());
    let many = "{\"value\":1}\n".repeat(50);
    assert_eq!(post(&router, "/db/notes/import", many).await.json(), json!({ "imported": 50 }), "each line is small");
    let long = format!("{{\"value\":\"{}\"}}", "x".repeat(100));
    assert_eq!(post(&router, "/db/notes/import", long).await.status, 413);
}

#[tokio::test(start_paused = true)]
async fn what_follows_a_line_at_fault_is_not_written() {
    let good = |number: u32| format!("{{\"value\":{number}}}\n");
    for fault in ["s3cret", "{\"value\":", "{\"key\":\"k\"}", "{\"value\":\"bad\"}", "{\"value\":18446744073709551616}"]
    {
        let events = Scripted { slow: true, ..scripted(DatabaseType::Events) };
        let body = format!("{}{}{fault}\n{}{}", good(1), good(2), good(4), good(5));
        let answer = post(&loopback(over(&events)), "/db/notes/import", body).await;
        assert!(answer.status == 400 && answer.body.contains("line 3: "), "{fault}: {}", answer.body);
        assert_eq!(events.told(), [format!("add {ADDRESS} 1"), format!("add {ADDRESS} 2")], "{fault}");
    }
}

#[tokio::test]
async fn an_integer_that_no_64_bits_hold_is_refused_in_every_body() {
    let databases = documents();
    let router = loopback(over(&databases));
    for (path, body) in [
        ("put", "{\"value\":{\"_id\":\"a\",\"n\":18446744073709551616}}"),
        ("add", "{\"value\":-9223372036854775809}"),
        ("query", "{\"where\":{\"n\":18446744073709551616}}"),
    ] {
        let answer = post(&router, &format!("/db/notes/{path}"), body).await;
        assert!(
            answer.status == 400 && answer.body.contains("an integer is not from -2^63"),
            "{path}: {}",
            answer.body
        );
    }
    assert!(databases.told().is_empty(), "nothing was done");
    let largest = post(&router, "/db/notes/add", "{\"value\":[18446744073709551615,1e20,null]}").await;
    assert_eq!(largest.status, 200, "{}", largest.body);
    assert_eq!(databases.told(), ["add notes [18446744073709551615,1e+20,null]"]);
}
