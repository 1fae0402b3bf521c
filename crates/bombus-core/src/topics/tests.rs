use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::identity::{BootId, NodeId, NodeKey};

const SAMPLES: [(Topic, &str); 7] = [
    (Topic::Capabilities, include_str!("fixtures/capabilities.json")),
    (Topic::TaskBroadcast, include_str!("fixtures/task_broadcast.json")),
    (Topic::TaskClaim, include_str!("fixtures/task_claim.json")),
    (Topic::TaskResult, include_str!("fixtures/task_result.json")),
    (Topic::PresencePing, include_str!("fixtures/presence_ping.json")),
    (Topic::TaskHelpRequest, include_str!("fixtures/task_help_request.json")),
    (Topic::TaskHelpResponse, include_str!("fixtures/task_help_response.json")),
];

const NOON_MS: i64 = 1_752_321_600_000;

fn node(seed: u8) -> NodeId {
    NodeKey::from_secret(&[seed; 32]).node_id()
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(ms)
}

/// Returns a sample as its sender would sign it: with the sender's id, at a time.
fn signed(sample: &str, signer: &NodeId, time_ms: i64) -> Value {
    let mut value: Value = serde_json::from_str(sample).unwrap();
    for field in ["node_id", "from_node"] {
        if let Some(id) = value.get_mut(field) {
            *id = signer.as_str().into();
        }
    }
    value["timestamp"] = at(time_ms).to_string().into();
    value
}

fn judged(topic: Topic, value: &Value, guard: &mut ReplayGuard, now_ms: i64) -> Judgement {
    judge(topic, &node(1), value.to_string().as_bytes(), at(now_ms), guard)
}

/// Judges with a memory of nothing.
fn first(topic: Topic, value: &Value) -> Judgement {
    judged(topic, value, &mut ReplayGuard::new(), NOON_MS)
}

fn presence(time_ms: i64) -> Value {
    signed(SAMPLES[4].1, &node(1), time_ms)
}

fn ignored(judgement: &Judgement) -> &IgnoreReason {
    let Judgement::Ignore { reason, .. } = judgement else { panic!("this is not ignored: {judgement:?}") };
    reason
}

#[test]
fn the_samples_are_read_and_written_back_to_the_byte() {
    for (topic, sample) in SAMPLES {
        let value: Value = serde_json::from_str(sample).unwrap();
        let message: TopicMessage = serde_json::from_str(sample).unwrap();
        assert_eq!(message.topic(), topic);
        // The objects keep the order of their fields, so equal text means equal order.
        assert_eq!(String::from_utf8(message.encode().unwrap()).unwrap(), value.to_string());
    }
}

#[test]
fn the_samples_are_accepted_from_those_who_signed_them() {
    for (topic, sample) in SAMPLES {
        let value = signed(sample, &node(1), NOON_MS);
        let Judgement::Accept(message) = first(topic, &value) else { panic!("{sample}") };
        assert_eq!((message.topic(), message.timestamp()), (topic, at(NOON_MS)));
        assert_eq!(message.sender().is_none(), topic == Topic::TaskBroadcast, "a task's sender is its signer");
    }
}

#[test]
fn full_names_of_topics_are_read_back_within_their_swarm_alone() {
    for topic in Topic::ALL {
        let full = topic.full_name("k51");
        assert_eq!(full, format!("bombus/k51/{}", topic.name()));
        assert_eq!(Topic::parse(&full, "k51"), Some(topic));
        assert_eq!(Topic::parse(&full, "k5"), None);
        assert_eq!(Topic::of_message_type(topic.message_type()), Some(topic));
    }
    assert_eq!(Topic::parse("bombus/k51/weather", "k51"), None);
    assert_eq!(Topic::parse("k51/capabilities", "k51"), None);
}

#[test]
fn a_message_in_the_name_of_another_node_is_rejected() {
    for (topic, sample) in SAMPLES.into_iter().filter(|(topic, _)| *topic != Topic::TaskBroadcast) {
        let forged = signed(sample, &node(2), NOON_MS);
        let claimed = node(2).to_string();
        assert_eq!(first(topic, &forged), Judgement::Reject(RejectReason::SenderNotSigner { claimed }));
    }
}

#[test]
fn what_is_no_message_is_rejected_with_the_reason() {
    let mut guard = ReplayGuard::new();
    let mut rejected = |bytes: &[u8]| match judge(Topic::TaskClaim, &node(1), bytes, at(NOON_MS), &mut guard) {
        Judgement::Reject(reason) => reason,
        other => panic!("{other:?}"),
    };
    for bytes in [&b""[..], b"hello", b"[1]", b"{\"type\":\"task_claim\"", b"\xff\xfe", b"null"] {
        assert_eq!(rejected(bytes), RejectReason::NotJson);
    }
    assert_eq!(rejected(b"{}"), RejectReason::NoType);
    assert_eq!(rejected(b"{\"type\":7}"), RejectReason::NoType);
    let deep = format!("{}1{}", "[".repeat(50_000), "]".repeat(10_000));
    assert_eq!(rejected(deep.as_bytes()), RejectReason::NotJson);
    let wrong = RejectReason::WrongTopic { topic: Topic::TaskClaim, found: Topic::PresencePing };
    assert_eq!(rejected(presence(NOON_MS).to_string().as_bytes()), wrong);

    let claim = signed(SAMPLES[2].1, &node(1), NOON_MS);
    for (field, bad) in [("task_id", json!(42)), ("timestamp", json!("yesterday")), ("node_id", Value::Null)] {
        let mut value = claim.clone();
        value[field] = bad;
        assert!(matches!(rejected(value.to_string().as_bytes()), RejectReason::Schema(_)), "{field}");
        value.as_object_mut().unwrap().remove(field);
        let reason = rejected(value.to_string().as_bytes());
        assert!(matches!(&reason, RejectReason::Schema(why) if why.contains(field)), "{reason:?}");
    }
}

#[test]
fn every_field_has_a_bound_and_so_has_the_whole() {
    let long = |length: usize| Value::String("x".repeat(length));
    let many = |length: usize| Value::Array(vec![json!("x"); length]);
    let cases = [
        (0, "models", many(513)),
        (0, "models", json!([long(257)])),
        (0, "installed", many(65)),
        (0, "name", long(129)),
        (0, "capabilities", many(65)),
        (0, "cpu", json!(-1)),
        (0, "gpu", json!(1e9)),
        (1, "task_id", long(129)),
        (1, "repo", long(257)),
        (1, "issue_url", long(2_049)),
        (1, "input", long(48 * 1024 + 1)),
        (2, "task_id", long(129)),
        (3, "result_url", long(2_049)),
        (4, "name", long(129)),
        (5, "reason", long(2_049)),
        (6, "capabilities", many(65)),
    ];
    for (index, name, value) in cases {
        let (topic, sample) = SAMPLES[index];
        let mut message = signed(sample, &node(1), NOON_MS);
        message[name] = value;
        let judgement = first(topic, &message);
        assert!(
            matches!(&judgement, Judgement::Reject(RejectReason::Bounds(error)) if error.field == name),
            "{name}: {judgement:?}"
        );
        let own: TopicMessage = serde_json::from_value(message).unwrap();
        assert_eq!(own.encode().unwrap_err().field, name, "a node does not publish what others reject");
    }
    let mut padded = presence(NOON_MS).to_string();
    padded.push_str(&" ".repeat(MESSAGE_BYTES_MAX - padded.len()));
    let judge_text =
        |text: &str| judge(Topic::PresencePing, &node(1), text.as_bytes(), at(NOON_MS), &mut ReplayGuard::new());
    assert!(matches!(judge_text(&padded), Judgement::Accept(_)));
    padded.push(' ');
    let whole = judge_text(&padded);
    assert!(matches!(whole, Judgement::Reject(RejectReason::Bounds(error)) if error.field == "message"));
}

#[test]
fn frames_of_an_earlier_and_of_a_later_version_are_read() {
    let earlier = signed(include_str!("fixtures/earlier_capabilities.json"), &node(1), NOON_MS);
    let Judgement::Accept(TopicMessage::Capabilities(told)) = first(Topic::Capabilities, &earlier) else { panic!() };
    let expected = Capabilities { status: NodeStatus::Unknown, ..Capabilities::new(node(1).to_string(), at(NOON_MS)) };
    assert_eq!(told, expected);

    let later = signed(include_str!("fixtures/later_capabilities.json"), &node(1), NOON_MS);
    let Judgement::Accept(TopicMessage::Capabilities(told)) = first(Topic::Capabilities, &later) else { panic!() };
    let expected = Capabilities {
        cpu: Some(43.5),
        models: vec!["llama3".to_owned()],
        status: NodeStatus::Unknown,
        name: Some("kitchen".to_owned()),
        version: Some("9.1.0".to_owned()),
        gpu_tier: Some(crate::capability::GpuTier::Ultra),
        capabilities: vec!["gpu_inference".to_owned(), "telepathy".to_owned()],
        running: Some(2),
        slots: Some(8),
        boot: Some(BootId::new(255)),
        ..Capabilities::new(node(1).to_string(), at(NOON_MS))
    };
    assert_eq!(told, expected, "what a later version says otherwise counts as not said");
}

#[test]
fn unknown_kinds_and_newer_schemas_are_ignored_and_not_held_against_anybody() {
    let kind: Value = serde_json::from_str(include_str!("fixtures/later_kind.json")).unwrap();
    let reason = IgnoreReason::UnknownType("weather_report".to_owned());
    assert_eq!(first(Topic::Capabilities, &kind), Judgement::Ignore { reason, message: None });
    let schema: Value = serde_json::from_str(include_str!("fixtures/later_schema.json")).unwrap();
    let reason = IgnoreReason::NewerSchema(2);
    assert_eq!(first(Topic::Capabilities, &schema), Judgement::Ignore { reason, message: None });
}

#[test]
fn a_clock_that_is_off_is_told_and_the_message_still_read() {
    for skew_ms in [-3_600_000, -300_001, 300_001, 3_600_000] {
        let judgement = first(Topic::PresencePing, &presence(NOON_MS + skew_ms));
        let Judgement::Ignore { reason, message: Some(message) } = judgement else { panic!("{judgement:?}") };
        assert_eq!(reason, IgnoreReason::ClockSkew { skew_ms });
        assert_eq!(message.sender(), Some(node(1).as_str()));
    }
    for skew_ms in [-300_000, 0, 300_000] {
        assert!(matches!(first(Topic::PresencePing, &presence(NOON_MS + skew_ms)), Judgement::Accept(_)));
    }
    let reason = IgnoreReason::ClockSkew { skew_ms: -3_600_000 };
    assert_eq!(reason.to_string(), "the sender's clock is 3600 s behind ours");
}

#[test]
fn a_node_whose_clock_is_an_hour_off_is_heard_each_time() {
    for skew_ms in [-3_600_000, 3_600_000] {
        let mut guard = ReplayGuard::new();
        for minute in 0..20 {
            let now_ms = NOON_MS + minute * 60_000;
            let judgement = judged(Topic::PresencePing, &presence(now_ms + skew_ms), &mut guard, now_ms);
            assert!(matches!(judgement, Judgement::Ignore { message: Some(_), .. }), "{judgement:?}");
        }
        // Once the clock is set right, all is well at once.
        let now_ms = NOON_MS + 20 * 60_000;
        assert!(matches!(judged(Topic::PresencePing, &presence(now_ms), &mut guard, now_ms), Judgement::Accept(_)));
    }
}

#[test]
fn a_message_is_accepted_once_however_late_it_comes_again() {
    let mut guard = ReplayGuard::new();
    let message = presence(NOON_MS);
    assert!(matches!(judged(Topic::PresencePing, &message, &mut guard, NOON_MS), Judgement::Accept(_)));
    for later_ms in [0, 1_000, 299_000, 301_000, 3_600_000, 86_400_000] {
        let again = judged(Topic::PresencePing, &message, &mut guard, NOON_MS + later_ms);
        assert_eq!(*ignored(&again), IgnoreReason::Replayed, "{later_ms}: an old message slanders no clock");
    }
    // The same message of another node, or on another topic, is another message.
    let other = signed(SAMPLES[4].1, &node(2), NOON_MS).to_string();
    let judgement = judge(Topic::PresencePing, &node(2), other.as_bytes(), at(NOON_MS), &mut guard);
    assert!(matches!(judgement, Judgement::Accept(_)));
}

#[test]
fn what_is_older_than_the_memory_counts_as_seen() {
    let mut guard = ReplayGuard::new();
    let claim = |index: i64| signed(SAMPLES[2].1, &node(1), NOON_MS + index * 200);
    for index in 1..=200 {
        let judgement = judged(Topic::TaskClaim, &claim(index), &mut guard, NOON_MS + index * 200);
        assert!(matches!(judgement, Judgement::Accept(_)), "{index}");
    }
    for index in 1..=200 {
        let again = judged(Topic::TaskClaim, &claim(index), &mut guard, NOON_MS + 41_000);
        assert_eq!(*ignored(&again), IgnoreReason::Replayed, "{index}");
    }
    let unseen = judged(Topic::TaskClaim, &claim(0), &mut guard, NOON_MS + 41_000);
    assert_eq!(*ignored(&unseen), IgnoreReason::Replayed, "it cannot be told from one that was seen");
}

#[test]
fn a_flood_is_ignored_beyond_the_documented_rate_and_does_not_touch_others() {
    for topic in Topic::ALL {
        let limit = RateLimit::of(topic);
        let sample = SAMPLES.iter().find(|(of, _)| *of == topic).unwrap().1;
        let mut guard = ReplayGuard::new();
        let mut accepted = 0;
        for index in 0..2_000 {
            let now_ms = NOON_MS + index * 30;
            let judgement = judged(topic, &signed(sample, &node(1), now_ms), &mut guard, now_ms);
            match judgement {
                Judgement::Accept(_) => accepted += 1,
                other => assert_eq!(*ignored(&other), IgnoreReason::TooOften),
            }
        }
        let expected = limit.per_minute + limit.burst;
        assert!((expected - 1..=expected).contains(&accepted), "{topic:?}: {accepted} in a minute");
        let other = signed(sample, &node(2), NOON_MS + 60_000).to_string();
        let judgement = judge(topic, &node(2), other.as_bytes(), at(NOON_MS + 60_000), &mut guard);
        assert!(matches!(judgement, Judgement::Accept(_)), "another peer is heard");
    }
}

#[test]
fn replaying_what_a_peer_said_does_not_use_up_what_it_may_say() {
    let mut guard = ReplayGuard::new();
    let message = presence(NOON_MS);
    judged(Topic::PresencePing, &message, &mut guard, NOON_MS);
    for _ in 0..1_000 {
        let again = judged(Topic::PresencePing, &message, &mut guard, NOON_MS + 1_000);
        assert_eq!(*ignored(&again), IgnoreReason::Replayed);
    }
    let next = judged(Topic::PresencePing, &presence(NOON_MS + 1_000), &mut guard, NOON_MS + 1_000);
    assert!(matches!(next, Judgement::Accept(_)));
}

#[test]
fn a_local_clock_set_back_locks_nobody_out() {
    let mut guard = ReplayGuard::new();
    for index in 0..100 {
        judged(Topic::PresencePing, &presence(NOON_MS + index), &mut guard, NOON_MS + index);
    }
    let earlier_ms = NOON_MS - 3_600_000;
    judged(Topic::PresencePing, &presence(earlier_ms), &mut guard, earlier_ms);
    let later_ms = earlier_ms + 10_000;
    let judgement = judged(Topic::PresencePing, &presence(later_ms), &mut guard, later_ms);
    assert_ne!(judgement, Judgement::Ignore { reason: IgnoreReason::TooOften, message: None });
}

#[test]
fn a_help_request_finds_those_who_have_it_the_least_loaded_first() {
    let make = |name: &str, change: &dyn Fn(&mut Capabilities)| {
        let mut node = Capabilities::new(name.to_owned(), at(NOON_MS));
        change(&mut node);
        node
    };
    let nodes = [
        make("asker", &|node| node.installed = vec!["claude".to_owned()]),
        make("busy", &|node| {
            node.installed = vec!["claude".to_owned()];
            node.status = NodeStatus::Busy;
        }),
        make("warm", &|node| {
            node.capabilities = vec!["Claude-CLI".to_owned()];
            node.cpu = Some(80.0);
        }),
        make("cool", &|node| {
            node.installed = vec!["gemini".to_owned(), "claude".to_owned()];
            node.cpu = Some(3.0);
        }),
        make("leaving", &|node| {
            node.installed = vec!["claude".to_owned()];
            node.status = NodeStatus::Draining;
        }),
        make("without", &|node| node.installed = vec!["claudette".to_owned()]),
    ];
    let mut request = TaskHelpRequest {
        task_id: "#42".to_owned(),
        from_node: "asker".to_owned(),
        reason: "missing capability".to_owned(),
        requested_capability: "claude-cli".to_owned(),
        timestamp: at(NOON_MS),
    };
    let found = |request: &TaskHelpRequest| -> Vec<(String, Vec<String>)> {
        let helpers = eligible_helpers(request, &nodes);
        let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        helpers.into_iter().map(|helper| (helper.node.node_id.clone(), owned(helper.provides))).collect()
    };
    let claude = |node: &str, name: &str| (node.to_owned(), vec![name.to_owned()]);
    assert_eq!(found(&request), [claude("cool", "claude"), claude("warm", "Claude-CLI"), claude("busy", "claude")]);
    request.requested_capability = String::new();
    assert_eq!(found(&request), []);
}

#[test]
fn models_and_slots_count_for_help_too() {
    let mut own = Capabilities::new("me".to_owned(), at(NOON_MS));
    own.models = vec!["llama3:latest".to_owned()];
    (own.slots, own.running, own.status) = (Some(2), Some(2), NodeStatus::Busy);
    let request = TaskHelpRequest {
        task_id: "#42".to_owned(),
        from_node: "asker".to_owned(),
        reason: String::new(),
        requested_capability: "llama3".to_owned(),
        timestamp: at(NOON_MS),
    };
    let answer = answer_help(&request, &own, at(NOON_MS));
    assert_eq!((answer.can_help, answer.eta_seconds), (true, Some(30)));
    assert_eq!(answer.capabilities, ["llama3:latest"]);
    own.running = Some(1);
    assert_eq!(answer_help(&request, &own, at(NOON_MS)).eta_seconds, Some(0));
    (own.slots, own.running) = (None, None);
    assert_eq!(answer_help(&request, &own, at(NOON_MS)).eta_seconds, Some(30), "busy, and without numbers");
    own.models.clear();
    let answer = answer_help(&request, &own, at(NOON_MS));
    assert_eq!((answer.can_help, answer.eta_seconds, answer.capabilities.len()), (false, None, 0));
}

proptest! {
    #[test]
    fn no_bytes_make_the_judge_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), topic in 0..7_usize) {
        let _ = judge(Topic::ALL[topic], &node(1), &bytes, at(NOON_MS), &mut ReplayGuard::new());
    }

    #[test]
    fn a_message_with_a_field_of_any_kind_is_judged_and_what_is_accepted_can_be_written(
        topic in 0..7_usize,
        field in any::<prop::sample::Index>(),
        kind in 0..6_usize,
    ) {
        let (topic, sample) = SAMPLES[topic];
        let mut value = signed(sample, &node(1), NOON_MS);
        let names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        value[&names[field.index(names.len())]] =
            [Value::Null, json!(-1.5), json!("x"), json!([1]), json!({"a": 1}), json!(true)][kind].clone();
        if let Judgement::Accept(message) = first(topic, &value) {
            prop_assert!(message.encode().is_ok());
        }
    }

    #[test]
    fn whatever_comes_the_memory_of_a_peer_is_bounded(times in prop::collection::vec(-400_000..400_000_i64, 1..300)) {
        let mut guard = ReplayGuard::new();
        let mut now_ms = NOON_MS;
        for skew_ms in times {
            now_ms += 3_000;
            judged(Topic::TaskClaim, &signed(SAMPLES[2].1, &node(1), now_ms + skew_ms), &mut guard, now_ms);
        }
        prop_assert!(guard.messages_held() <= 64);
    }
}

#[test]
fn the_number_of_peers_remembered_is_bounded() {
    let mut guard = ReplayGuard::new();
    for index in 0..1_100_u32 {
        let mut secret = [0; 32];
        secret[..4].copy_from_slice(&index.to_le_bytes());
        let signer = NodeKey::from_secret(&secret).node_id();
        let now_ms = NOON_MS + i64::from(index);
        let message = signed(SAMPLES[4].1, &signer, now_ms).to_string();
        let judgement = judge(Topic::PresencePing, &signer, message.as_bytes(), at(now_ms), &mut guard);
        assert!(matches!(judgement, Judgement::Accept(_)), "{index}");
    }
    assert_eq!(guard.messages_held(), 1_024);
}
