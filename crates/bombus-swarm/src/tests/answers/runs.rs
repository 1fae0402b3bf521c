use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bombus_core::chat::{ChatEvent, ChatRequest, EmbedInput, EmbedRequest, EmbedResponse, Message, Part, Prompt, Role};
use bombus_core::identity::NodeId;
use bombus_core::model::{ModelCapability, ModelInfo, ModelName};
use bombus_core::placement::{Need, Scope};
use bombus_infer::fake::{FakeBackend, FakeConfig};
use bombus_infer::{Backend, BackendError, ChatStream, Health, NamedBackend};
use futures::{FutureExt, StreamExt};
use tokio::time::{sleep, timeout};

use super::{Answering, LIMIT, Script, Scripted, ask, collect, fake, named, pair, text_of, until};
use crate::route::{REQUEST_BYTES_MAX, RunConfig, ShareConfig};
use crate::tests::hasty;

fn completion() -> Need {
    Need::of([ModelCapability::Completion])
}

#[tokio::test]
async fn a_node_without_models_answers_by_a_peer() {
    let (asking, answering) = pair(fake(), RunConfig::default()).await;
    let peer = asking.peer(&answering.id()).await;
    let route = asking.backends.route("fake", &completion()).await.unwrap();
    let routed = route.chat(ask("two  words, ümläut")).await.unwrap();
    assert_eq!(routed.node.as_ref(), Some(&answering.id()));
    assert_eq!(routed.backend, "fake");
    let events: Vec<ChatEvent> = collect(routed.value).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(text_of(&events), "two  words, ümläut");
    assert!(matches!(events.last(), Some(ChatEvent::Done { .. })));

    let first = collect(peer.chat(ask("x")).await.unwrap()).await.into_iter().next().unwrap().unwrap();
    let ChatEvent::AnsweredBy(by) = first else { panic!("{first:?}") };
    assert_eq!((by.node, by.backend.as_str(), by.model.as_str()), (Some(answering.id()), "fake", "fake:latest"));
    asking.stop().await;
    answering.stop().await;
}

#[tokio::test]
async fn vectors_come_as_the_peer_makes_them() {
    let (asking, answering) = pair(fake(), RunConfig::default()).await;
    let peer = asking.peer(&answering.id()).await;
    let inputs: Vec<EmbedInput> = (0..500).map(|number| EmbedInput::Text(format!("text {number}"))).collect();
    let request = EmbedRequest::new("fake", inputs);
    let there = FakeBackend::new(FakeConfig::default()).embed(request.clone()).await.unwrap();
    let made = timeout(LIMIT, peer.embed(request.clone())).await.unwrap().unwrap();
    assert_eq!((made.vectors, made.prompt_tokens), (there.vectors, there.prompt_tokens));
    let by = made.by.expect("a peer says who made them");
    assert_eq!((by.node, by.backend.as_str(), by.model.as_str()), (Some(answering.id()), "fake", "fake:latest"));
    let route = asking.backends.route("fake", &Need::of([ModelCapability::Embedding])).await.unwrap();
    let routed = route.embed(request).await.unwrap();
    let told = (routed.node, routed.backend.as_str(), routed.model.as_str());
    assert_eq!(told, (Some(answering.id()), "fake", "fake:latest"));
}

/// Makes vectors by a model of which it says only that it generates text, as Ollama does.
struct Generating;

#[async_trait]
impl Backend for Generating {
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
        let info = ModelInfo::named(ModelName::parse("fake").unwrap());
        Ok(vec![ModelInfo { capabilities: vec![ModelCapability::Completion], ..info }])
    }

    async fn chat(&self, _request: ChatRequest) -> Result<ChatStream, BackendError> {
        std::future::pending().await
    }

    async fn embed(&self, request: EmbedRequest) -> Result<EmbedResponse, BackendError> {
        Ok(EmbedResponse::new(vec![vec![1.0]; request.inputs.len()], 1))
    }

    async fn health(&self) -> Health {
        Health::Ready
    }
}

#[tokio::test]
async fn a_peer_is_asked_for_vectors_of_models_that_generate_text() {
    let (asking, answering) = pair(named(Arc::new(Generating)), RunConfig::default()).await;
    let peer = asking.peer(&answering.id()).await;
    let request = EmbedRequest::new("fake", vec![EmbedInput::Text("a".into())]);
    let made = timeout(LIMIT, peer.embed(request)).await.unwrap().unwrap();
    assert_eq!(made.vectors, [[1.0]]);
    asking.stop().await;
    answering.stop().await;
}

#[tokio::test]
async fn one_backend_of_a_peer_makes_all_vectors_and_is_waited_for_as_long_as_pieces_come() {
    let config = RunConfig { alive_every: Duration::from_millis(20), ..RunConfig::default() };
    let makers = ["one", "two"].map(|name| (name, Scripted::new(Script::Hang)));
    let backends = makers.iter().map(|(name, maker)| NamedBackend::new(*name, "fake", maker.clone())).collect();
    let (asking, answering) = pair(backends, config).await;
    asking.peer(&answering.id()).await;
    let route = asking.backends.route("fake", &Need::of([ModelCapability::Embedding])).await.unwrap();
    let made = route.embed(EmbedRequest::new("fake", vec![EmbedInput::Text("x".into()); 600]));
    let told = async {
        until(|| route.last_sign().is_some()).await;
        let sign = route.last_sign();
        until(|| route.last_sign() > sign).await;
        makers.iter().for_each(|(_, maker)| maker.last.notify_one());
    };
    let (made, ()) = timeout(LIMIT, async { tokio::join!(made, told) }).await.unwrap();
    assert_eq!(made.unwrap().value.vectors.len(), 600);
    let inputs: Vec<usize> = makers.iter().flat_map(|(_, maker)| maker.inputs.lock().unwrap().clone()).collect();
    assert_eq!(inputs, [600]);
}

#[tokio::test]
async fn requests_are_not_passed_on_further() {
    let hidden = Answering::start(3, &[], fake(), RunConfig::default()).await;
    let between = Answering::start(2, &[hidden.mesh()], Vec::new(), RunConfig::default()).await;
    between.peer(&hidden.id()).await;
    let asking = Answering::start(1, &[between.mesh()], Vec::new(), RunConfig::default()).await;
    asking.sees(&between.id(), |_, now| now.reachable).await;
    let peer = asking.backends.named(between.id().as_str()).unwrap().backend.clone();
    let events = collect(peer.chat(ask("x")).await.unwrap()).await;
    assert!(matches!(events.as_slice(), [Err(BackendError::ModelNotFound { .. })]), "{events:?}");
}

fn drop_events(_: ChatStream) {}

#[tokio::test]
async fn who_goes_away_frees_the_slot_at_once() {
    let backend = Scripted::new(Script::Hang);
    let (asking, answering) = pair(named(backend.clone()), RunConfig::default()).await;
    let peer = asking.peer(&answering.id()).await;
    let mut times = Vec::new();
    for _ in 0..10 {
        let mut events = peer.chat(ask("x")).await.unwrap();
        while !matches!(timeout(LIMIT, events.next()).await.unwrap(), Some(Ok(ChatEvent::Delta(_)))) {}
        assert_eq!((backend.running(), answering.route.state().borrow().running), (1, 1));
        let begun = Instant::now();
        drop(events);
        until(|| backend.running() == 0 && answering.route.state().borrow().running == 0).await;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    // A busy machine is late now and then; by itself the run never ends.
    assert!(times[0] < Duration::from_millis(100) && times[9] < Duration::from_secs(10), "{times:?}");
}

#[tokio::test]
async fn who_gives_up_before_the_first_word_frees_the_slot_too() {
    let slow = FakeConfig { first_token_ms: 600_000, ..FakeConfig::default() };
    let slow = NamedBackend::new("slow", "fake", Arc::new(FakeBackend::new(slow)));
    let (asking, answering) = pair(vec![slow], RunConfig::default()).await;
    let peer = asking.peer(&answering.id()).await;
    let mut events = peer.chat(ask("x")).await.unwrap();
    assert!(events.next().now_or_never().is_none());
    assert_eq!(answering.route.state().borrow().running, 1);
    drop(events);
    until(|| answering.route.state().borrow().running == 0).await;
}

#[tokio::test]
async fn what_waits_for_others_at_a_peer_is_waited_for_and_no_failure_of_it() {
    let config = RunConfig { alive_every: Duration::from_millis(20), ..RunConfig::default() };
    for words in [0, 1] {
        let (asking, answering) = pair(named(Scripted::new(Script::Wait(words))), config.clone()).await;
        asking.peer(&answering.id()).await;
        let route = asking.backends.route("fake", &completion()).await.unwrap();
        let answer = async {
            let mut events = route.chat(ask("x")).await.unwrap().value;
            while let Some(event) = events.next().await {
                assert!(matches!(event, Ok(ChatEvent::Delta(_))), "{event:?}");
            }
        };
        let told = async {
            until(|| route.waits()).await;
            let sign = route.last_sign();
            until(|| route.last_sign() > sign).await;
            route.give_up(LIMIT)
        };
        tokio::select! {
            () = answer => panic!("it has no end"),
            given_up = told => assert!(matches!(given_up, BackendError::Overloaded { .. }), "{given_up:?}"),
        }
        assert_eq!(asking.state_of(&answering.id()).unwrap().error, None);
    }
}

#[tokio::test]
async fn a_slow_reader_holds_the_run_back() {
    let backend = Scripted::new(Script::Endless);
    let (asking, answering) = pair(named(backend.clone()), RunConfig::default()).await;
    let peer = asking.peer(&answering.id()).await;
    let mut events = peer.chat(ask("x")).await.unwrap();
    timeout(LIMIT, events.next()).await.unwrap().unwrap().unwrap();
    let stands = async {
        let mut before = 0;
        loop {
            sleep(Duration::from_millis(50)).await;
            match backend.produced() {
                now if now == before => return before,
                now => before = now,
            }
        }
    };
    let before = timeout(LIMIT, stands).await.expect("it stops");
    assert!(before < 4_000, "{before} KB wait for a reader that reads nothing");
    for _ in 0..2_000 {
        timeout(LIMIT, events.next()).await.unwrap().unwrap().unwrap();
    }
    until(|| backend.produced() > before).await;
}

#[tokio::test]
async fn a_reader_that_never_reads_on_loses_its_answer() {
    let backend = Scripted::new(Script::Endless);
    let config = RunConfig { progress_limit: Duration::from_millis(300), ..RunConfig::default() };
    let (asking, answering) = pair(named(backend.clone()), config).await;
    let peer = asking.peer(&answering.id()).await;
    let events = peer.chat(ask("x")).await.unwrap();
    until(|| backend.produced() > 0 && backend.running() == 0).await;
    let Some(Err(error)) = collect(events).await.pop() else { panic!("it ended well") };
    assert!(matches!(error, BackendError::Interrupted { .. }), "{error}");
}

#[tokio::test]
async fn what_is_beyond_slots_and_queue_is_declined() {
    let backend = Scripted::new(Script::Hang);
    let share = ShareConfig { max_slots: Some(1), ..ShareConfig::default() };
    let config = RunConfig { share, queue_per_slot: 1, ..RunConfig::default() };
    let (asking, answering) = pair(named(backend.clone()), config).await;
    let peer = asking.peer(&answering.id()).await;
    let first = peer.chat(ask("first")).await.unwrap();
    let second = tokio::spawn({
        let peer = peer.clone();
        async move { peer.chat(ask("second")).await }
    });
    until(|| answering.route.state().borrow().waiting == 1).await;
    asking.sees(&answering.id(), |_, now| (now.running, now.waiting, now.ours, now.slots) == (1, 1, 2, Some(1))).await;
    let Err(error) = peer.chat(ask("third")).await.map(drop_events) else { panic!("it was taken") };
    assert!(matches!(error, BackendError::Overloaded { .. }), "{error}");
    drop(first);
    let second = timeout(LIMIT, second).await.unwrap().unwrap().unwrap();
    assert_eq!(answering.route.state().borrow().waiting, 0);
    drop(second);
    timeout(LIMIT, answering.route.idle()).await.unwrap();
}

#[tokio::test]
async fn who_waits_too_long_is_declined() {
    let backend = Scripted::new(Script::Hang);
    let share = ShareConfig { max_slots: Some(1), ..ShareConfig::default() };
    let config = RunConfig { share, queue_limit: Duration::from_millis(200), ..RunConfig::default() };
    let (asking, answering) = pair(named(backend), config).await;
    let peer = asking.peer(&answering.id()).await;
    let _first = peer.chat(ask("first")).await.unwrap();
    let Err(error) = timeout(LIMIT, peer.chat(ask("second"))).await.unwrap().map(drop_events) else {
        panic!("there was no slot")
    };
    assert!(matches!(error, BackendError::Overloaded { .. }), "{error}");
}

#[tokio::test]
async fn a_request_of_32_mib_passes_and_one_of_33_is_refused() {
    let backend = Scripted::new(Script::Short);
    let (asking, answering) = pair(named(backend), RunConfig::default()).await;
    let peer = asking.peer(&answering.id()).await;
    let large = |bytes: usize| {
        let content = vec![Part::Text("x".repeat(bytes))];
        let message = Message { content, ..Message::text(Role::User, "") };
        let mut request = ask("");
        request.prompt = Prompt::Chat(vec![message]);
        request
    };
    let answer = timeout(LIMIT, peer.chat(large(32 * 1024 * 1024))).await.unwrap().unwrap();
    let events: Vec<ChatEvent> = collect(answer).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(text_of(&events), "short");
    let Err(error) = peer.chat(large(33 * 1024 * 1024)).await.map(drop_events) else { panic!("it was sent") };
    // It is no fault of the request: a backend of the node's own may take it.
    assert!(matches!(&error, BackendError::Unsupported { message, .. }
        if message.contains(&REQUEST_BYTES_MAX.to_string())));
}

#[tokio::test]
async fn many_requests_at_once_find_their_way_to_one_peer() {
    let (asking, answering) = pair(fake(), RunConfig::default()).await;
    asking.peer(&answering.id()).await;
    let answers = (0..100).map(|number| {
        let backends = asking.backends.clone();
        tokio::spawn(async move {
            let route = backends.route("fake", &completion().within(Scope::Remote)).await.unwrap();
            let routed = route.chat(ask(&format!("number {number}"))).await.unwrap();
            let events: Vec<ChatEvent> = collect(routed.value).await.into_iter().map(Result::unwrap).collect();
            assert_eq!(text_of(&events), format!("number {number}"));
        })
    });
    for answer in answers.collect::<Vec<_>>() {
        timeout(LIMIT, answer).await.unwrap().unwrap();
    }
    timeout(LIMIT, answering.route.idle()).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_is_gone_ends_its_answers_at_once() {
    let asking = Answering::start_with(1, &[], Vec::new(), RunConfig::default(), hasty()).await;
    let backend = Scripted::new(Script::Hang);
    let config = RunConfig::default();
    let answering = Answering::start_with(2, &[asking.mesh()], named(backend), config, hasty()).await;
    let id: NodeId = answering.id();
    let peer = asking.peer(&id).await;
    let mut events = peer.chat(ask("x")).await.unwrap();
    while !matches!(timeout(LIMIT, events.next()).await.unwrap(), Some(Ok(ChatEvent::Delta(_)))) {}
    answering.task.abort();
    answering.node.crash().await;
    let error = timeout(LIMIT, events.next()).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, BackendError::Interrupted { .. }), "{error}");
    until(|| asking.state_of(&id).is_none()).await;
}
