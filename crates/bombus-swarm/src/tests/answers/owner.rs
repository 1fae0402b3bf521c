use std::sync::Arc;

use bombus_core::chat::ChatRequest;
use bombus_core::model::ModelName;
use bombus_infer::fake::{FakeBackend, FakeConfig};
use bombus_infer::{BackendError, NamedBackend};
use tokio::time::timeout;

use super::{Answering, LIMIT, Script, Scripted, ask, collect, fake, named, pair, sharing, until};
use crate::route::{RunConfig, ShareConfig};

async fn refusal_of(asking: &Answering, answering: &Answering) -> BackendError {
    let peer = asking.backends.named(answering.id().as_str()).expect("it is listed").backend.clone();
    match timeout(LIMIT, peer.chat(ask("x"))).await.unwrap() {
        Ok(_) => panic!("it was taken"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_pause_is_told_and_holds_until_it_ends() {
    let backend = Scripted::new(Script::Hang);
    let (asking, answering) = pair(named(backend.clone()), RunConfig::default()).await;
    let peer = asking.peer(&answering.id()).await;
    let before = peer.chat(ask("before")).await.unwrap();
    answering.route.pause();
    asking.sees(&answering.id(), |_, now| now.paused && !now.draining).await;
    let error = refusal_of(&asking, &answering).await;
    assert!(
        matches!(&error, BackendError::Rejected { reason } if reason.contains("node-2") && reason.contains("himself"))
    );
    assert_eq!(answering.route.state().borrow().running, 1, "what ran goes on");
    drop(before);
    answering.route.resume();
    asking.sees(&answering.id(), |_, now| !now.paused).await;
    drop(peer.chat(ask("after")).await.unwrap());
}

#[tokio::test]
async fn a_node_that_drains_tells_it_finishes_and_is_idle_then() {
    let backend = Scripted::new(Script::Hang);
    let (asking, answering) = pair(named(backend.clone()), RunConfig::default()).await;
    let peer = asking.peer(&answering.id()).await;
    let before = peer.chat(ask("before")).await.unwrap();
    answering.route.drain();
    asking.sees(&answering.id(), |_, now| now.draining).await;
    let error = refusal_of(&asking, &answering).await;
    assert!(matches!(&error, BackendError::Rejected { reason } if reason.contains("about to go")), "{error}");
    let idle = tokio::spawn({
        let route = answering.route.clone();
        async move { route.idle().await }
    });
    assert!(!idle.is_finished());
    drop(before);
    timeout(LIMIT, idle).await.unwrap().unwrap();
    answering.route.undrain();
    asking.sees(&answering.id(), |_, now| !now.draining).await;
    drop(peer.chat(ask("after")).await.unwrap());
    let id = answering.id();
    answering.stop().await;
    until(|| asking.state_of(&id).is_none()).await;
}

#[tokio::test]
async fn who_serves_nobody_offers_nothing_and_declines() {
    let (asking, answering) = pair(fake(), sharing(ShareConfig { serve: false, ..ShareConfig::default() })).await;
    asking.sees(&answering.id(), |state, now| state.models == 0 && now.reachable).await;
    let error = refusal_of(&asking, &answering).await;
    assert!(matches!(&error, BackendError::Rejected { reason } if reason.contains("no other node")), "{error}");
}

#[tokio::test]
async fn only_the_peers_that_are_named_are_answered() {
    let share = |name: &str| ShareConfig { peers: vec![name.to_owned()], ..ShareConfig::default() };
    let (asking, answering) = pair(fake(), sharing(share("NODE-1"))).await;
    let peer = asking.peer(&answering.id()).await;
    collect(peer.chat(ask("x")).await.unwrap()).await;
    let other = Answering::start(3, &[answering.mesh()], Vec::new(), RunConfig::default()).await;
    other.sees(&answering.id(), |state, now| state.models == 0 && now.reachable).await;
    let error = refusal_of(&other, &answering).await;
    assert!(matches!(&error, BackendError::Rejected { reason } if reason.contains("other nodes only")), "{error}");
}

#[tokio::test]
async fn only_shared_models_are_offered_and_answered() {
    let script = FakeConfig {
        models: ["fake", "open"].map(|name| ModelName::parse(name).unwrap()).to_vec(),
        ..FakeConfig::default()
    };
    let mut backend = NamedBackend::new("fake", "fake", Arc::new(FakeBackend::new(script)));
    backend.options.aliases.insert("best".to_owned(), "open".to_owned());
    let share = ShareConfig { models: vec!["open".to_owned()], ..ShareConfig::default() };
    let (asking, answering) = pair(vec![backend], sharing(share)).await;
    let peer = asking.peer(&answering.id()).await;
    let mut offered: Vec<_> = peer.models().await.unwrap().into_iter().map(|info| info.name.to_string()).collect();
    offered.sort();
    assert_eq!(offered, ["best:latest", "open:latest"]);
    assert!(matches!(refusal_of(&asking, &answering).await, BackendError::ModelNotFound { .. }));
    let mut request = ask("x");
    request.model = "best".to_owned();
    collect(peer.chat(request).await.unwrap()).await;
    let told = answering.backends.known();
    let for_all: Vec<_> = told.iter().filter(|listed| answering.route.is_for_all(listed)).collect();
    assert_eq!(for_all.len(), 2);
}

#[tokio::test]
async fn a_model_that_is_not_shared_answers_by_no_shared_name_that_is_like_its_own() {
    let models = ["fake", "Q"].map(|name| ModelName::parse(name).unwrap()).to_vec();
    let script = FakeConfig { models, ..FakeConfig::default() };
    let backend = NamedBackend::new("fake", "fake", Arc::new(FakeBackend::new(script)));
    let share = ShareConfig { models: ["fake", "q"].map(str::to_owned).to_vec(), ..ShareConfig::default() };
    let (asking, answering) = pair(vec![backend], sharing(share)).await;
    let peer = asking.peer(&answering.id()).await;
    let request = ChatRequest { model: "q".to_owned(), ..ask("x") };
    let refused = match timeout(LIMIT, peer.chat(request)).await.unwrap() {
        Ok(events) => collect(events).await.remove(0),
        Err(error) => Err(error),
    };
    assert!(matches!(refused, Err(BackendError::ModelNotFound { .. })), "{refused:?}");
    let answered = collect(peer.chat(ask("x")).await.unwrap()).await;
    assert!(answered.iter().all(Result::is_ok), "{answered:?}");
}
