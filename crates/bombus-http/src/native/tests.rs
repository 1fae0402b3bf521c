//! The routes of the mesh, over a mesh that does what a test wants.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use bombus_infer::fake::FakeConfig;
use futures::StreamExt;
use insta::assert_snapshot;
use serde_json::{Value, json};
use tokio::time::timeout;
use tower::ServiceExt;

use crate::mesh::{FeedItem, Happening, Listening, ListeningState, Managers, MeshError, Peer, PeerState, SharingState};
use crate::testing::{
    Answer, LOOPBACK, OPEN, ScriptedMesh, build, capture_log, fake, get, loopback, peer, post, send, with_session_key,
};
use crate::{HttpConfig, Services, router};

const HIVE: &str = "12D3KooWHiveHiveHiveHiveHiveHiveHiveHiveHiveHiveHive";

fn over(mesh: &ScriptedMesh) -> Services {
    Services { mesh: Some(Arc::new(mesh.clone())), ..fake(FakeConfig::default()) }
}

fn hive() -> Peer {
    Peer {
        ip: Some("192.0.2.8".into()),
        port: Some(7890),
        node_tier: Some("specialist".into()),
        capabilities: vec!["gpu_inference".into()],
        gpu_name: Some("Test GPU".into()),
        vram_total_mb: 16_368,
        available_models: vec!["m:latest".into(), "big:latest".into()],
        version: Some("0.1.0".into()),
        since: Some(1_763_690_000.0),
        status: Some("busy".into()),
        path: Some("direct".into()),
        latency_ms: Some(0.8),
        running: Some(2),
        slots: Some(4),
        cpu_usage_percent: Some(50.0),
        gpu_tier: Some("high".into()),
        backends: vec!["embedded".into()],
        installed: vec!["claude".into()],
        ..peer(HIVE, "hive")
    }
}

fn old() -> Peer {
    Peer { state: PeerState::Gone, available_models: vec!["lost:latest".into()], ..peer("12D3KooWOld", "old") }
}

fn mesh() -> ScriptedMesh {
    ScriptedMesh { peers: vec![hive(), old()], ..ScriptedMesh::default() }
}

fn happening(id: u64, kind: &str) -> FeedItem {
    let data = json!({ "node_id": HIVE });
    FeedItem::Happening(Happening { id, kind: kind.into(), timestamp: 1_763_700_000.25, data })
}

/// Sends a POST request with a key.
async fn keyed(mesh: &ScriptedMesh, path: &str, body: impl ToString) -> Answer {
    let (services, key) = with_session_key(over(mesh));
    let request = Request::post(path).header("authorization", format!("Bearer {key}"));
    send(&loopback(services), request.body(Body::from(body.to_string())).unwrap()).await
}

#[tokio::test]
async fn peers_have_the_shape_that_swarm_clients_know() {
    assert_snapshot!("peers", get(&loopback(over(&mesh())), "/peers").await.shown());
    let alone = get(&loopback(Services { mesh: None, ..over(&mesh()) }), "/peers").await;
    assert_eq!(alone.json(), json!([]));
}

#[tokio::test]
async fn who_is_gone_counts_no_more() {
    let router = loopback(over(&mesh()));
    assert_eq!(get(&router, "/health").await.json()["peer_count"], 1);
    assert_eq!(get(&router, "/status").await.json()["peers"], 1);
    assert_snapshot!("swarm", get(&router, "/swarm").await.shown());
}

#[tokio::test]
async fn a_port_for_nodes_that_cannot_be_had_shows_in_the_status() {
    let fine = get(&loopback(over(&mesh())), "/status").await.json();
    assert_eq!(fine["p2p"], json!({ "state": "ok", "listen": [], "problem": null }));
    let problem = Some("/ip4/0.0.0.0/tcp/7891: another process listens there".to_owned());
    let listening = Listening { state: ListeningState::Error, listen: Vec::new(), problem: problem.clone() };
    let status = get(&loopback(over(&ScriptedMesh { listening, ..mesh() })), "/status").await.json();
    assert_eq!(status["p2p"], json!({ "state": "error", "listen": [], "problem": problem }));
}

#[tokio::test]
async fn what_was_tried_is_reported() {
    assert_snapshot!("report", get(&loopback(over(&mesh())), "/mesh/report").await.shown());
}

#[tokio::test]
async fn a_ping_finds_its_peer_by_name_id_or_beginning() {
    let mesh = mesh();
    let router = loopback(over(&mesh));
    for path in ["/mesh/ping/hive", "/mesh/ping/HI", &format!("/mesh/ping/{HIVE}")] {
        let answer = get(&router, path).await;
        assert_eq!((answer.status, &answer.json()["path"]), (StatusCode::OK, &json!("direct")), "{path}");
    }
    assert_eq!(*mesh.told.lock().unwrap(), vec![format!("ping {HIVE}"); 3]);
    assert_snapshot!("ping_unknown", get(&router, "/mesh/ping/wasp").await.shown());
}

#[tokio::test]
async fn what_changes_who_is_a_member_needs_a_key_on_loopback_too() {
    let mesh = mesh();
    let router = loopback(over(&mesh));
    for path in ["invite", "join", "leave", "kick", "rekey", "owner"] {
        let body = json!({ "ticket": "t", "peer": "hive", "key": "k" });
        assert_eq!(post(&router, &format!("/mesh/{path}"), body).await.status, 401, "{path}");
    }
    assert!(mesh.told.lock().unwrap().is_empty(), "nothing was done");
    for path in ["/peers", "/swarm", "/mesh/report", "/mesh/ping/hive"] {
        assert_eq!(get(&router, path).await.status, 200, "{path}");
        assert_eq!(get(&build(HttpConfig::default(), over(&mesh), OPEN), path).await.status, 401, "{path}");
    }
}

#[tokio::test]
async fn what_takes_a_machine_from_others_needs_a_key_on_loopback_too() {
    let mesh = mesh();
    let router = loopback(over(&mesh));
    for path in ["pause", "resume", "drain", "undrain"] {
        assert_eq!(post(&router, &format!("/node/{path}"), "").await.status, 401, "{path}");
    }
    assert!(mesh.told.lock().unwrap().is_empty(), "nothing was done");
    assert_eq!(get(&router, "/node/sharing").await.status, 200);
}

#[tokio::test]
async fn a_node_is_paused_and_drained_and_says_so_everywhere() {
    let mesh = mesh();
    {
        let mut state = mesh.sharing.lock().unwrap();
        *state = SharingState { serve: true, running: 2, waiting: 1, max_slots: Some(3), ..SharingState::default() };
        state.manage = Managers::These(vec!["hive".into()]);
    }
    assert_snapshot!("sharing", get(&loopback(over(&mesh)), "/node/sharing").await.shown());
    for (path, paused, draining) in [
        ("pause", true, false),
        ("drain", true, true),
        ("resume", false, true),
        ("undrain", false, false),
        ("pause", true, false),
    ] {
        let state = keyed(&mesh, &format!("/node/{path}"), "").await.json();
        assert_eq!((&state["paused"], &state["draining"]), (&json!(paused), &json!(draining)), "{path}");
    }
    let router = loopback(over(&mesh));
    assert_eq!(get(&router, "/status").await.json()["sharing"]["paused"], true);
    assert_eq!(get(&router, "/swarm").await.json()["paused"], json!(["bee"]));
    let metrics = get(&router, "/metrics").await.body;
    for line in
        ["shared_running{} 2", "shared_waiting{} 1", "shared_slots{} 3", "sharing_paused{} 1", "sharing_draining{} 0"]
    {
        assert!(metrics.contains(&format!("bombus_{line}.0")), "{line}\n{metrics}");
    }
    let away = ScriptedMesh { refusal: Some(MeshError::Unavailable("it stops".into())), ..mesh };
    assert_eq!(keyed(&away, "/node/drain", "").await.status, 503);
}

#[tokio::test]
async fn the_membership_is_changed_with_a_key() {
    let mesh = mesh();
    assert_snapshot!("invite", keyed(&mesh, "/mesh/invite", "").await.shown());
    assert_snapshot!("join", keyed(&mesh, "/mesh/join", json!({ "ticket": "t", "switch": true })).await.shown());
    assert_eq!(keyed(&mesh, "/mesh/join", json!({ "ticket": "t" })).await.status, 200);
    assert_eq!(keyed(&mesh, "/mesh/leave", "").await.status, 200);
    assert_snapshot!("kick", keyed(&mesh, "/mesh/kick", json!({ "peer": "hive" })).await.shown());
    assert_eq!(keyed(&mesh, "/mesh/rekey", "").await.status, 200);
    assert_eq!(keyed(&mesh, "/mesh/owner", json!({ "key": "k" })).await.json(), json!({ "owner": true }));
    let kick = format!("kick {HIVE}");
    let told = ["invite", "join t true", "join t false", "leave", &kick, "rekey", "import k"];
    assert_eq!(*mesh.told.lock().unwrap(), told);
}

#[tokio::test]
async fn a_member_that_nobody_sees_any_more_is_kicked_by_its_id() {
    let mesh = mesh();
    let id = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
    assert_eq!(keyed(&mesh, "/mesh/kick", json!({ "peer": id })).await.status, 200);
    assert_eq!(*mesh.told.lock().unwrap(), [format!("kick {id}")]);
    assert_eq!(keyed(&mesh, "/mesh/kick", json!({ "peer": "wasp" })).await.status, 404);
    assert_eq!(keyed(&mesh, "/mesh/kick", json!({ "peer": "12D3KooWSelf" })).await.status, 404, "itself");
}

#[tokio::test]
async fn every_refusal_has_its_status_and_code() {
    let text = || "so it is".to_owned();
    let mut shown = String::new();
    for error in [
        MeshError::BadTicket(text()),
        MeshError::BadOwnerKey(text()),
        MeshError::NeedsSwitch(text()),
        MeshError::NoOwnerKey(text()),
        MeshError::OpenSwarm(text()),
        MeshError::Refused(text()),
        MeshError::AmbiguousPeer(text()),
        MeshError::UnknownPeer(text()),
        MeshError::Unreachable(text()),
        MeshError::Unavailable(text()),
        MeshError::Failed(text()),
    ] {
        let mesh = ScriptedMesh { refusal: Some(error.clone()), ..mesh() };
        let answer = keyed(&mesh, "/mesh/rekey", "").await;
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        shown += &format!("{} {}\n", answer.status.as_u16(), answer.json()["code"]);
    }
    assert_snapshot!("refusals", shown);
}

#[tokio::test]
async fn no_ticket_reaches_a_log_or_an_error() {
    let (log, _guard) = capture_log();
    let refused = ScriptedMesh { refusal: Some(MeshError::BadTicket("it is no ticket".into())), ..mesh() };
    let ticket = "bombus1s3cret";
    for body in [json!({ "ticket": ticket }), json!(ticket), json!([ticket]), json!({ "ticket": [ticket] })] {
        for path in ["/mesh/join", "/mesh/owner"] {
            let answer = keyed(&refused, path, &body).await;
            assert_eq!(answer.status, 400, "{body}");
            assert!(!answer.body.contains("s3cret"), "{}", answer.body);
        }
    }
    let lines = log.lines();
    assert!(lines.iter().any(|line| line.contains("/mesh/join")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("s3cret")), "{lines:?}");
}

/// The frames of a stream of events, as they come.
async fn frames(router: &Router, path: &str, headers: &[(&str, &str)]) -> impl StreamExt<Item = String> + Unpin {
    let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
    let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let body = response.into_body().into_data_stream();
    body.map(|frame| String::from_utf8(frame.unwrap().to_vec()).unwrap())
}

fn eventful() -> ScriptedMesh {
    let feed = vec![happening(4, "peer:joined"), happening(5, "peer:left"), happening(6, "task:created")];
    ScriptedMesh { feed, ..mesh() }
}

#[tokio::test]
async fn an_event_has_its_id_its_kind_and_its_data() {
    let router = loopback(over(&eventful()));
    let mut frames = frames(&router, "/events", &[]).await;
    assert_eq!(frames.next().await.unwrap(), ": alive\n\n", "the head leaves with it");
    let frame = frames.next().await.unwrap();
    let lines: Vec<&str> = frame.lines().collect();
    let [id, event, data, ""] = lines.as_slice() else { panic!("{frame:?}") };
    assert_eq!((*id, *event), ("id: 4", "event: peer:joined"));
    let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
    let wanted = json!({
        "id": 4, "kind": "peer:joined", "timestamp": 1_763_700_000.25, "data": { "node_id": HIVE },
    });
    assert_eq!(data, wanted);
}

#[tokio::test]
async fn a_stream_is_taken_up_after_the_last_event_that_came() {
    let mesh = eventful();
    let router = loopback(over(&mesh));
    drop(frames(&router, "/events", &[]).await);
    drop(frames(&router, "/events?after=3", &[]).await);
    drop(frames(&router, "/events?after=3", &[("last-event-id", "5")]).await);
    drop(frames(&router, "/events?follow=false", &[]).await);
    drop(frames(&router, "/events?follow=false&after=2", &[]).await);
    assert_eq!(*mesh.read_after.lock().unwrap(), [None, Some(3), Some(5), Some(0), Some(2)]);
    let wrong = Request::get("/events").header("last-event-id", "x").body(Body::empty()).unwrap();
    assert_eq!(send(&router, wrong).await.status, 400);
    assert_eq!(get(&router, "/events?after=x").await.status, 400);
}

#[tokio::test]
async fn only_the_kinds_that_are_wanted_come() {
    let router = loopback(over(&eventful()));
    let all = get(&router, "/events?follow=false&kind=task").await.body;
    assert!(all.contains("task:created") && !all.contains("peer:"), "{all}");
    let two = get(&router, "/events?follow=false&kind=peer:left,task:created").await.body;
    assert_eq!(two.matches("event: ").count(), 2, "{two}");
}

#[tokio::test]
async fn without_following_the_stream_ends_behind_what_is_kept() {
    let feed = (1..=1_024).map(|id| happening(id, "peer:joined")).collect();
    let router = loopback(over(&ScriptedMesh { feed, ..mesh() }));
    let body = timeout(Duration::from_secs(60), get(&router, "/events?follow=false")).await.unwrap().body;
    assert_eq!(body.matches("id: ").count(), 1_024);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_shows_that_it_lives() {
    let router = loopback(over(&mesh()));
    let begun = tokio::time::Instant::now();
    let mut frames = frames(&router, "/events", &[]).await;
    for beats in 0..=3 {
        assert_eq!(frames.next().await.unwrap(), ": alive\n\n");
        assert_eq!(begun.elapsed(), Duration::from_secs(15) * beats);
    }
}

#[tokio::test]
async fn a_reader_that_lags_is_told_and_the_stream_ends() {
    let feed = vec![happening(9, "peer:joined"), FeedItem::Lagged { missed: Some(7) }];
    let router = loopback(over(&ScriptedMesh { feed, ..mesh() }));
    let body = get(&router, "/events").await.body;
    assert!(body.ends_with("event: lagged\ndata: {\"missed\":7}\n\n"), "{body}");
}

#[tokio::test]
async fn a_node_that_stops_ends_the_streams_of_events() {
    let (router, app) = router::build(HttpConfig::default(), over(&mesh()), LOOPBACK.into());
    let mut frames = frames(&router, "/events", &[]).await;
    assert!(frames.next().await.is_some());
    app.stopping.cancel();
    let end = timeout(Duration::from_secs(10), frames.next()).await;
    assert_eq!(end.expect("it ends without being waited for"), None);
}
