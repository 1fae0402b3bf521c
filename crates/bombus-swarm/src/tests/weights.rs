//! Models between nodes, over real connections on the loopback address.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bombus_core::chat::{ChatRequest, EmbedRequest, EmbedResponse};
use bombus_core::identity::NodeId;
use bombus_core::model::{ModelInfo, ModelName};
use bombus_infer::models::{
    LocalModel, ModelDefaults, ModelStore, PeerReadError, PeerSource, PullConfig, PullProgress, StoreLibrary, Wanted,
    pull,
};
use bombus_infer::{
    Backend, BackendError, Backends, ChatStream, CreateRequest, Health, ModelLibrary, NamedBackend, Progress,
};
use bombus_testkit::gguf::tiny_model;
use bombus_testkit::registry::{TEMPLATE, lay_into_ollama_directory};
use bombus_testkit::sha256;
use futures::{StreamExt, TryStreamExt};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::harness::{LIMIT, Mesh, Node, until_it_shows};
use crate::weights::{Access, MANAGE_PROTOCOL, ManageError, WEIGHTS_PROTOCOL, WeightsConfig, WeightsHandle, weights};

/// What the owner of a machine allows.
#[derive(Default)]
struct Owner {
    /// The models that others may have; `None`: all.
    models: Option<Vec<&'static str>>,
    manage: bool,
}

impl Access for Owner {
    fn may_fetch(&self, _peer: &NodeId, model: &ModelName) -> Result<(), String> {
        let is_shared = |shared: &&str| ModelName::parse(shared).as_ref() == Ok(model);
        match &self.models {
            Some(shared) if !shared.iter().any(is_shared) => Err("that one is private".to_owned()),
            _ => Ok(()),
        }
    }

    fn may_manage(&self, _peer: &NodeId) -> Result<(), String> {
        if self.manage { Ok(()) } else { Err("its owner says no".to_owned()) }
    }
}

/// The store of a node as a backend that runs nothing.
struct Shelf {
    store: ModelStore,
    library: StoreLibrary,
}

#[async_trait]
impl Backend for Shelf {
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
        Ok(self.store.list()?.iter().map(LocalModel::to_model_info).collect())
    }

    async fn chat(&self, _request: ChatRequest) -> Result<ChatStream, BackendError> {
        Err(BackendError::Unavailable { reason: "it runs nothing".to_owned() })
    }

    async fn embed(&self, _request: EmbedRequest) -> Result<EmbedResponse, BackendError> {
        Err(BackendError::Unavailable { reason: "it runs nothing".to_owned() })
    }

    async fn health(&self) -> Health {
        Health::Ready
    }

    fn library(&self) -> Option<&dyn ModelLibrary> {
        Some(&self.library)
    }
}

/// A node with models.
struct Keeper {
    node: Node,
    store: ModelStore,
    exchange: WeightsHandle,
    others: Arc<dyn PeerSource>,
    _directory: TempDir,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Keeper {
    async fn start(number: u8, seeds: &[&Keeper], owner: Owner) -> Self {
        let directory = TempDir::new().unwrap();
        let store = ModelStore::open_with_ollama(directory.path(), vec![directory.path().join("ollama")]).unwrap();
        Self::start_with(number, seeds, owner, directory, store).await
    }

    async fn start_with(number: u8, seeds: &[&Keeper], owner: Owner, directory: TempDir, store: ModelStore) -> Self {
        let seeds: Vec<&Mesh> = seeds.iter().map(|seed| &seed.node.mesh).collect();
        let node = Node::start(number, &seeds).await;
        let library = StoreLibrary::new(store.clone(), without_internet());
        let shelf = Shelf { store: store.clone(), library };
        let backends = Backends::new(vec![NamedBackend::new("shelf", "fake", Arc::new(shelf))]);
        let config = WeightsConfig { find_limit: Duration::from_secs(60), ..WeightsConfig::default() };
        let (net, swarm) = (node.mesh.net.clone(), node.swarm.clone());
        let (exchange, service) = weights(config, net, swarm, store.clone(), backends.clone(), Arc::new(owner));
        exchange.feed(&backends);
        let stop = CancellationToken::new();
        let task = tokio::spawn(service.run(stop.clone()));
        let others = exchange.source();
        Self { node, store, exchange, others, _directory: directory, stop, task }
    }

    fn keep(&self, name: &str, contents: &[u8]) {
        let file = self._directory.path().join("model.gguf");
        fs::write(&file, contents).unwrap();
        self.store.import(&file, &ModelName::parse(name).unwrap(), |_, _| {}).unwrap();
    }

    /// Waits until it is connected to a peer, and each knows the other.
    async fn meets(&self, other: &Keeper) {
        self.node.sees_whole(&other.node.id()).await;
        other.node.sees_whole(&self.node.id()).await;
    }

    async fn pull(&self, name: &str, progress: impl FnMut(PullProgress) + Send) -> Result<Vec<u8>, String> {
        let config = without_internet();
        assert!(config.peers.set(self.others.clone()));
        let pulled = timeout(LIMIT * 3, pull(&self.store, &config, name, progress)).await.expect("it ends");
        pulled.map(|model| fs::read(model.path).unwrap()).map_err(|error| error.to_string())
    }

    async fn crash(self) {
        self.task.abort();
        drop(self.task.await);
        self.node.crash().await;
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(LIMIT, self.task).await.expect("it stops").unwrap();
        self.node.stop().await;
    }
}

/// Where there is no internet, and little is asked of peers at once, so that several get something to send.
fn without_internet() -> PullConfig {
    PullConfig {
        registry_url: "http://127.0.0.1:1".to_owned(),
        hugging_face_url: "http://127.0.0.1:1".to_owned(),
        retries: 0,
        retry_after: Duration::from_millis(10),
        peer_range_bytes: 512 << 10,
        peer_stall_timeout: Duration::from_secs(2),
        ..PullConfig::default()
    }
}

#[tokio::test]
async fn a_model_comes_from_two_peers_at_once_and_then_there_are_three() {
    let contents = tiny_model("Qwen", 20_000_000);
    let a = Keeper::start(1, &[], Owner::default()).await;
    let b = Keeper::start(2, &[&a], Owner::default()).await;
    let c = Keeper::start(3, &[&a, &b], Owner::default()).await;
    a.keep("qwen3:8b", &contents);
    b.keep("qwen3:8b", &contents);
    c.meets(&a).await;
    c.meets(&b).await;
    let mut from = None;
    let got = c.pull("qwen3:8b", |step| from = step.peers.or(from.take())).await.unwrap();
    assert_eq!(got, contents);
    let mut names: Vec<String> = from.unwrap().split(", ").map(str::to_owned).collect();
    names.sort();
    assert_eq!(names, ["node-1", "node-2"]);
    let copies = a.others.find(&Wanted::Weights(sha256(&contents))).await;
    assert_eq!(copies.iter().map(|copy| copy.node.clone()).filter(|node| *node == c.node.id()).count(), 1);
    c.stop().await;
}

#[tokio::test]
async fn a_peer_that_dies_while_it_sends_is_replaced_by_the_other() {
    let contents = tiny_model("Qwen", 60_000_000);
    let a = Keeper::start(1, &[], Owner::default()).await;
    let b = Keeper::start(2, &[&a], Owner::default()).await;
    let c = Keeper::start(3, &[&a, &b], Owner::default()).await;
    a.keep("m", &contents);
    b.keep("m", &contents);
    c.meets(&a).await;
    c.meets(&b).await;
    let begun = Notify::new();
    let seen = Mutex::new(0);
    let pulled = c.pull("m", |step| {
        *seen.lock().unwrap() = step.done_bytes;
        if step.sha256.is_some() && step.done_bytes > 0 {
            begun.notify_one();
        }
    });
    let kill = async {
        begun.notified().await;
        a.crash().await;
        *seen.lock().unwrap()
    };
    let (pulled, at) = tokio::join!(pulled, kill);
    assert_eq!(pulled.unwrap(), contents, "it was at {at} bytes");
}

#[tokio::test]
async fn what_an_ollama_on_a_peer_has_is_handed_on_with_what_its_name_adds() {
    let contents = tiny_model("Qwen", 2_000_000);
    let a = Keeper::start(1, &[], Owner::default()).await;
    let ollama = a._directory.path().join("ollama");
    lay_into_ollama_directory(&ollama, "registry.ollama.ai/library/qwen3", "8b", &contents).unwrap();
    a.keep("derived-from", &tiny_model("Other", 1_000));
    let derived = CreateRequest {
        name: "brief".to_owned(),
        from: Some("derived-from".to_owned()),
        system: Some("Be brief.".to_owned()),
        ..CreateRequest::default()
    };
    a.store.create(&derived).unwrap();
    let b = Keeper::start(2, &[&a], Owner::default()).await;
    b.meets(&a).await;
    assert_eq!(b.pull("qwen3:8b", |_| {}).await.unwrap(), contents);
    let copies = b.others.find(&Wanted::Name(ModelName::parse("qwen3:8b").unwrap())).await;
    let template = copies.iter().find(|copy| copy.node == a.node.id()).unwrap().model.go_template.clone();
    assert_eq!(template.as_deref(), Some(TEMPLATE), "another Ollama needs it");
    b.pull("brief", |_| {}).await.unwrap();
    let brief = b.store.get(&ModelName::parse("brief").unwrap()).unwrap().unwrap();
    let expected = ModelDefaults {
        parent: Some(ModelName::parse("derived-from").unwrap()),
        system: Some("Be brief.".to_owned()),
        ..ModelDefaults::default()
    };
    assert_eq!(brief.defaults, expected);
}

#[tokio::test]
async fn what_the_owner_does_not_share_is_neither_told_of_nor_sent() {
    let (private, shared) = (tiny_model("Private", 100_000), tiny_model("Shared", 100_000));
    let a = Keeper::start(1, &[], Owner { models: Some(vec!["shared"]), manage: false }).await;
    a.keep("private", &private);
    a.keep("shared", &shared);
    let b = Keeper::start(2, &[&a], Owner::default()).await;
    b.meets(&a).await;
    let found = async |wanted: Wanted| b.others.find(&wanted).await.len();
    assert_eq!(found(Wanted::Name(ModelName::parse("private").unwrap())).await, 0);
    assert_eq!(found(Wanted::Weights(sha256(&private))).await, 0);
    assert_eq!(found(Wanted::Weights(sha256(&shared))).await, 1);
    let mut copy = b.others.find(&Wanted::Weights(sha256(&shared))).await.remove(0);
    copy.model.sha256 = sha256(&private);
    let refused = b.others.read(&copy, 0..10).await.err();
    assert_eq!(refused, Some(PeerReadError::Refused("that one is private".to_owned())));
    let error = b.pull("private", |_| {}).await.unwrap_err();
    assert!(error.contains("127.0.0.1:1"), "then the internet is asked: {error}");
    // One of the names is enough: the weights are the same.
    a.store.copy(&ModelName::parse("private").unwrap(), &ModelName::parse("shared").unwrap()).unwrap();
    assert!(b.others.read(&copy, 0..10).await.is_ok());
}

#[tokio::test]
async fn a_peer_gets_two_transfers_at_a_time_and_is_told_to_come_back_for_more() {
    let contents = tiny_model("Qwen", 50_000_000);
    let a = Keeper::start(1, &[], Owner::default()).await;
    a.keep("m", &contents);
    let b = Keeper::start(2, &[&a], Owner::default()).await;
    b.meets(&a).await;
    let copy = b.others.find(&Wanted::Weights(sha256(&contents))).await.remove(0);
    let read = || b.others.read(&copy, 0..40_000_000);
    let mut first = read().await.unwrap();
    let second = read().await.unwrap();
    first.next().await.unwrap().unwrap();
    assert!(matches!(read().await.err(), Some(PeerReadError::Busy { .. })));
    drop(second);
    let freed = async {
        loop {
            match read().await {
                Ok(bytes) => return bytes,
                Err(error) => assert!(matches!(error, PeerReadError::Busy { .. }), "{error}"),
            }
            tokio::task::yield_now().await;
        }
    };
    let third = timeout(LIMIT, freed).await.expect("who drops a transfer makes room");
    drop(first);
    let bytes: Vec<_> = timeout(LIMIT, third.try_collect()).await.unwrap().unwrap();
    let whole: Vec<u8> = bytes.concat();
    assert!(whole == contents[..40_000_000]);
}

#[tokio::test]
async fn what_is_on_its_way_is_waited_for() {
    let contents = tiny_model("Qwen", 50_000_000);
    let a = Keeper::start(1, &[], Owner::default()).await;
    a.keep("m", &contents);
    timeout(LIMIT, a.exchange.idle()).await.expect("nothing is sent yet");
    let b = Keeper::start(2, &[&a], Owner::default()).await;
    b.meets(&a).await;
    let copy = b.others.find(&Wanted::Weights(sha256(&contents))).await.remove(0);
    let mut bytes = b.others.read(&copy, 0..40_000_000).await.unwrap();
    bytes.next().await.unwrap().unwrap();
    // Nobody reads on, so that it cannot have ended.
    assert!(futures::FutureExt::now_or_never(a.exchange.idle()).is_none());
    let rest = async { bytes.try_fold(0, async |sum, piece| Ok(sum + piece.len())).await.unwrap() };
    let (rest, ()) = timeout(LIMIT, async { tokio::join!(rest, a.exchange.idle()) }).await.expect("it ends");
    assert!(rest > 30_000_000, "{rest}");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_harms_nobody() {
    let contents = tiny_model("Qwen", 1_000_000);
    let a = Keeper::start(1, &[], Owner::default()).await;
    a.keep("m", &contents);
    let b = Keeper::start(2, &[&a], Owner::default()).await;
    b.meets(&a).await;
    let copy = b.others.find(&Wanted::Weights(sha256(&contents))).await.remove(0);
    let size = copy.model.size_bytes;
    for range in [size - 1..size + 1, u64::MAX - 1..u64::MAX] {
        assert!(matches!(b.others.read(&copy, range).await.err(), Some(PeerReadError::Refused(_))));
    }
    for (protocol, garbage) in [
        (WEIGHTS_PROTOCOL, &b"\0\0\0\x04what"[..]),
        (WEIGHTS_PROTOCOL, b"\xff\xff\xff\xff"),
        (MANAGE_PROTOCOL, b"\0\0\0\x04what"),
    ] {
        let mut stream = timeout(LIMIT, b.node.mesh.net.open_stream(&a.node.id(), protocol)).await.unwrap().unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = Vec::new();
        timeout(LIMIT, stream.read_to_end(&mut answer)).await.expect("the stream ends").unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("does not understand"), "{answer:?}");
    }
    assert_eq!(b.pull("m", |_| {}).await.unwrap(), contents);
}

#[tokio::test]
async fn a_node_manages_the_models_of_another_that_allows_it() {
    let contents = tiny_model("Qwen", 3_000_000);
    let a = Keeper::start(1, &[], Owner::default()).await;
    a.keep("m", &contents);
    let b = Keeper::start(2, &[&a], Owner { manage: true, ..Owner::default() }).await;
    a.meets(&b).await;
    let done =
        async |steps: crate::weights::RemoteSteps| timeout(LIMIT, steps.try_collect::<Vec<Progress>>()).await.unwrap();

    let steps = done(a.exchange.pull_at(&b.node.id(), "m")).await.unwrap();
    let words: Vec<&str> = steps.iter().map(|step| step.status.as_str()).collect();
    assert_eq!((words[0], words[words.len() - 1]), ("pulling manifest", "success"));
    assert!(words.iter().any(|word| word.ends_with("from peer node-1")), "{words:?}");
    let name = ModelName::parse("m").unwrap();
    assert_eq!(b.store.get(&name).unwrap().unwrap().sha256, sha256(&contents));

    done(a.exchange.remove_at(&b.node.id(), "m")).await.unwrap();
    assert_eq!(b.store.get(&name).unwrap(), None);
    let missing = done(a.exchange.remove_at(&b.node.id(), "m")).await.unwrap_err();
    assert!(matches!(missing, ManageError::NotFound(_)), "{missing}");
    let failed = done(a.exchange.pull_at(&b.node.id(), "nobody-has-it")).await.unwrap_err();
    assert!(matches!(failed, ManageError::Failed(_)), "{failed}");

    for steps in [b.exchange.pull_at(&a.node.id(), "other"), b.exchange.remove_at(&a.node.id(), "m")] {
        let refused = done(steps).await.unwrap_err();
        assert!(matches!(&refused, ManageError::Refused(why) if why == "its owner says no"), "{refused}");
    }
    assert!(a.store.get(&name).unwrap().is_some());
    done(a.exchange.remove_at(&a.node.id(), "m")).await.unwrap();
    assert_eq!(a.store.get(&name).unwrap(), None, "one's own node needs nobody's leave");
}

#[tokio::test]
async fn who_drops_a_work_on_models_ends_it_there() {
    let contents = tiny_model("Qwen", 60_000_000);
    let a = Keeper::start(1, &[], Owner::default()).await;
    a.keep("m", &contents);
    let b = Keeper::start(2, &[&a], Owner { manage: true, ..Owner::default() }).await;
    a.meets(&b).await;
    let mut steps = a.exchange.pull_at(&b.node.id(), "m");
    timeout(LIMIT, steps.next()).await.unwrap().unwrap().unwrap();
    let mut second = a.exchange.pull_at(&b.node.id(), "m");
    let busy = timeout(LIMIT, second.next()).await.unwrap().unwrap();
    assert!(matches!(busy, Err(ManageError::Busy(_))), "{busy:?}");
    drop(steps);
    let again = Mutex::new(None);
    let try_again = || async {
        let mut steps = a.exchange.remove_at(&b.node.id(), "m");
        *again.lock().unwrap() = steps.next().await;
    };
    let is_free = || !matches!(*again.lock().unwrap(), None | Some(Err(ManageError::Busy(_))));
    until_it_shows(try_again, is_free).await;
    let last = again.lock().unwrap().take();
    assert!(matches!(last, Some(Err(ManageError::NotFound(_)))), "the pull ended before its end: {last:?}");
}
