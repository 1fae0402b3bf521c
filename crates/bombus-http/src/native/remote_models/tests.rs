use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use bombus_infer::Progress;
use bombus_infer::fake::FakeConfig;
use serde_json::{Value, json};

use crate::Services;
use crate::mesh::{ModelsError, Peer, PeerState};
use crate::testing::{Answer, ScriptedMesh, fake, loopback, peer, send, with_session_key};

fn step(status: &str) -> Result<Progress, ModelsError> {
    Ok(Progress { status: status.into(), total_bytes: Some(10), completed_bytes: Some(4), ..Progress::default() })
}

/// A node with the peers `hive`, which does what it is asked, `wasp`, which does not, and one that is gone.
fn mesh() -> ScriptedMesh {
    let gone = Peer { state: PeerState::Gone, ..peer("12D3KooWGone", "gone") };
    let refusal = ModelsError { code: "refused", message: "its owner says no".into() };
    ScriptedMesh {
        peers: vec![peer("12D3KooWHive", "hive"), peer("12D3KooWWasp", "wasp"), gone],
        model_steps: [("12D3KooWWasp".to_owned(), vec![Err(refusal)])].into(),
        ..ScriptedMesh::default()
    }
}

async fn ask(mesh: &ScriptedMesh, path: &str, body: &Value, with_key: bool) -> Answer {
    let services = Services { mesh: Some(Arc::new(mesh.clone())), ..fake(FakeConfig::default()) };
    let (services, key) = with_session_key(services);
    let mut request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    if with_key {
        request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
    }
    send(&loopback(services), request.body(Body::from(body.to_string())).unwrap()).await
}

fn lines(answer: &Answer) -> Vec<Value> {
    answer.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_node_is_named_and_tells_its_steps() {
    let mesh = ScriptedMesh {
        model_steps: [("12D3KooWHive".to_owned(), vec![step("pulling abc from peer wasp")])].into(),
        ..mesh()
    };
    let answer = ask(&mesh, "/node/models/pull", &json!({"model": "qwen3:8b", "node": "hi"}), true).await;
    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, Some("application/x-ndjson")));
    let (node_id, node) = ("12D3KooWHive", "hive");
    let expected = [
        json!({"node_id": node_id, "node": node, "status": "pulling abc from peer wasp", "total": 10, "completed": 4}),
        json!({"node_id": node_id, "node": node, "done": true}),
    ];
    assert_eq!(lines(&answer), expected);
    assert_eq!(*mesh.told.lock().unwrap(), ["pull qwen3:8b at 12D3KooWHive"]);
}

#[tokio::test]
async fn all_nodes_that_are_there_are_asked_and_each_tells_its_end() {
    let mesh = mesh();
    let answer = ask(&mesh, "/node/models/remove", &json!({"model": "m", "all": true}), true).await;
    let mut ends: Vec<(String, bool, Value)> = lines(&answer)
        .into_iter()
        .map(|line| (line["node"].as_str().unwrap().to_owned(), line["done"] == true, line["code"].clone()))
        .collect();
    ends.sort_by(|a, b| a.0.cmp(&b.0));
    let told: Vec<_> = ends.iter().map(|(node, done, code)| (node.as_str(), *done, code.as_str())).collect();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told.contains(&("hive", true, None)) && told.contains(&("wasp", false, Some("refused"))), "{told:?}");
    assert!(!told.iter().any(|(node, ..)| *node == "gone"));
}

#[tokio::test]
async fn who_has_no_key_or_names_nobody_is_refused() {
    let mesh = mesh();
    let model = json!({"model": "m", "node": "hive"});
    assert_eq!(ask(&mesh, "/node/models/pull", &model, false).await.status, StatusCode::UNAUTHORIZED);
    for (body, status) in [
        (json!({"model": "m", "node": "nobody"}), StatusCode::NOT_FOUND),
        (json!({"model": "m"}), StatusCode::BAD_REQUEST),
        (json!({"model": "m", "node": "hive", "all": true}), StatusCode::BAD_REQUEST),
        (json!({"model": "", "node": "hive"}), StatusCode::BAD_REQUEST),
        (json!({"model": "m".repeat(513), "node": "hive"}), StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(ask(&mesh, "/node/models/pull", &body, true).await.status, status, "{body}");
    }
    assert!(mesh.told.lock().unwrap().is_empty());
}
