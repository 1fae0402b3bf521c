use std::fs;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bombus_core::identity::NodeKey;
use bombus_core::model::ModelName;
use bombus_testkit::gguf::tiny_model;
use bombus_testkit::registry::Registry;
use bombus_testkit::sha256;
use futures::stream;
use tempfile::TempDir;

use super::super::super::catalogue::{CatalogueEntry, CatalogueSource};
use super::super::super::defaults::ModelDefaults;
use super::super::super::local::{LocalModel, ModelSource};
use super::super::super::peers::{SharedModel, Wanted};
use super::super::{PullError, pull};
use super::*;
use crate::ByteStream;

const KIB: u64 = 1 << 10;

/// What a peer does wrong.
#[derive(Debug, Clone, Copy, Default)]
struct Fault {
    /// It dies after so many bytes.
    dies_after: Option<u64>,
    /// It says nothing more after so many bytes, and lives.
    silent_after: Option<u64>,
    /// It sends another byte at this place.
    lies_at: Option<u64>,
    /// It is busy so many times first.
    busy: u32,
    refuses: bool,
}

struct FakePeer {
    model: SharedModel,
    bytes: Bytes,
    fault: Fault,
    asked: AtomicU32,
    sent: AtomicU64,
}

/// Other nodes without a network between.
#[derive(Default)]
struct FakePeers {
    peers: Vec<FakePeer>,
    found: AtomicU32,
}

impl FakePeers {
    fn with(mut self, name: &str, bytes: &[u8], fault: Fault) -> Self {
        let model = SharedModel {
            name: ModelName::parse(name).unwrap(),
            sha256: sha256(bytes),
            size_bytes: bytes.len() as u64,
            defaults: ModelDefaults::default(),
            go_template: None,
        };
        let mut bytes = bytes.to_vec();
        if let Some(at) = fault.lies_at {
            bytes[usize::try_from(at).unwrap()] ^= 1;
        }
        let (asked, sent) = (AtomicU32::new(0), AtomicU64::new(0));
        self.peers.push(FakePeer { model, bytes: bytes.into(), fault, asked, sent });
        self
    }

    fn sent(&self) -> Vec<u64> {
        self.peers.iter().map(|peer| peer.sent.load(Ordering::SeqCst)).collect()
    }
}

#[async_trait]
impl PeerSource for FakePeers {
    async fn find(&self, wanted: &Wanted) -> Vec<PeerCopy> {
        self.found.fetch_add(1, Ordering::SeqCst);
        let is_wanted = |peer: &FakePeer| match wanted {
            Wanted::Name(name) => peer.model.name == *name,
            Wanted::Weights(sha256) => peer.model.sha256 == *sha256,
        };
        let copy = |(number, peer): (usize, &FakePeer)| PeerCopy {
            node: NodeKey::from_secret(&[u8::try_from(number).unwrap(); 32]).node_id(),
            node_name: number.to_string(),
            model: peer.model.clone(),
        };
        self.peers.iter().enumerate().filter(|(_, peer)| is_wanted(peer)).map(copy).collect()
    }

    async fn read(&self, copy: &PeerCopy, range: Range<u64>) -> Result<ByteStream, PeerReadError> {
        assert!(range.start < range.end && range.end <= copy.model.size_bytes, "{range:?}");
        let peer = &self.peers[copy.node_name.parse::<usize>().unwrap()];
        if peer.asked.fetch_add(1, Ordering::SeqCst) < peer.fault.busy {
            return Err(PeerReadError::Busy { retry_after: Duration::ZERO });
        }
        if peer.fault.refuses {
            return Err(PeerReadError::Refused("as the test wants".to_owned()));
        }
        let mut left = peer.bytes.slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap());
        let mut pieces = Vec::new();
        while !left.is_empty() {
            let piece = left.split_to(left.len().min(64 << 10));
            let sent = peer.sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
            if peer.fault.silent_after.is_some_and(|bytes| sent >= bytes) {
                return Ok(stream::iter(pieces).chain(stream::pending()).boxed());
            }
            if peer.fault.dies_after.is_some_and(|bytes| sent >= bytes) {
                peer.sent.fetch_sub(piece.len() as u64, Ordering::SeqCst);
                pieces.push(Err(std::io::Error::other("it died")));
                break;
            }
            pieces.push(Ok(piece));
        }
        // Others get their turn between the pieces, as they do where bytes travel.
        let paced = stream::iter(pieces).then(async |piece| {
            tokio::task::yield_now().await;
            piece
        });
        Ok(paced.boxed())
    }
}

struct Place {
    _directory: TempDir,
    store: ModelStore,
    config: PullConfig,
}

impl Place {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let store = ModelStore::open(directory.path()).unwrap();
        let config = PullConfig {
            hugging_face_url: "http://127.0.0.1:1".to_owned(),
            registry_url: "http://127.0.0.1:1".to_owned(),
            retries: 0,
            retry_after: Duration::from_millis(1),
            peer_range_bytes: 256 * KIB,
            ..PullConfig::default()
        };
        Self { _directory: directory, store, config }
    }

    fn among(&mut self, peers: FakePeers) -> Arc<FakePeers> {
        let peers = Arc::new(peers);
        self.config.peers = Default::default();
        assert!(self.config.peers.set(peers.clone()));
        peers
    }

    async fn pull(&self, reference: &str) -> Result<LocalModel, PullError> {
        pull(&self.store, &self.config, reference, |_| {}).await
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.store.directory().join("blobs")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

#[tokio::test]
async fn a_model_comes_from_several_peers_at_once_and_the_internet_is_not_asked() {
    let contents = tiny_model("Qwen", 5_000_000);
    let mut place = Place::new();
    let fine = Fault::default();
    let peers = place.among(FakePeers::default().with("qwen3:8b", &contents, fine).with("qwen3:8b", &contents, fine));
    let mut steps = Vec::new();
    let model = pull(&place.store, &place.config, "qwen3:8b", |step| steps.push(step)).await.unwrap();
    assert_eq!(fs::read(&model.path).unwrap(), contents);
    assert_eq!((model.name.as_str(), &model.sha256), ("qwen3:8b", &sha256(&contents)));
    assert_eq!(model.source, ModelSource::Pulled { from: "peer: 0, 1".to_owned() });
    assert_eq!(place.store.list().unwrap(), [model]);
    assert_eq!(place.files(), [format!("sha256-{}", sha256(&contents))], "nothing is left beside it");
    let sent = peers.sent();
    assert!(sent.iter().all(|bytes| *bytes > 500_000), "both send: {sent:?}");
    let last = steps.last().unwrap();
    assert_eq!((last.stage, last.done_bytes), (PullStage::Downloading, contents.len() as u64));
    assert_eq!(last.peers.as_deref(), Some("0, 1"));
}

#[tokio::test(start_paused = true)]
async fn what_a_peer_that_dies_or_falls_silent_does_not_send_others_do() {
    let contents = tiny_model("Qwen", 5_000_000);
    let dies = Fault { dies_after: Some(700_000), ..Fault::default() };
    let falls_silent = Fault { silent_after: Some(700_000), ..Fault::default() };
    for fault in [dies, falls_silent] {
        let mut place = Place::new();
        let peers = FakePeers::default().with("m", &contents, fault).with(
            "m",
            &contents,
            Fault { busy: 3, ..Fault::default() },
        );
        let peers = place.among(peers);
        let model = place.pull("m").await.unwrap();
        assert_eq!(fs::read(&model.path).unwrap(), contents, "{fault:?}");
        let sent = peers.sent()[1];
        assert!((4_000_000..5_100_000).contains(&sent), "what came is not asked for again: {sent} after {fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pull_goes_on_with_what_is_missing_and_nothing_else() {
    let contents = tiny_model("Qwen", 5_000_000);
    let mut place = Place::new();
    let first = place.among(FakePeers::default().with(
        "m",
        &contents,
        Fault { dies_after: Some(2_000_000), ..Fault::default() },
    ));
    let error = place.pull("m").await.unwrap_err();
    assert!(matches!(error, PullError::Network { .. }), "then the internet is asked, which is not there: {error}");
    let kept = first.sent()[0];
    assert!(super::super::goes_on_later(&place.store, &place.config, "m"));
    let second = place.among(FakePeers::default().with("m", &contents, Fault::default()));
    let mut steps = Vec::new();
    let model = pull(&place.store, &place.config, "m", |step| steps.push(step)).await.unwrap();
    assert_eq!(fs::read(&model.path).unwrap(), contents);
    assert_eq!(second.sent()[0], contents.len() as u64 - kept, "only what is missing is sent");
    assert!(kept >= 1_900_000, "{kept}");
    let begun = steps.iter().find(|step| step.stage == PullStage::Downloading).unwrap();
    assert_eq!(begun.done_bytes, kept);
}

#[tokio::test]
async fn bytes_that_a_crash_took_back_are_found_and_fetched_again() {
    let contents = tiny_model("Qwen", 2_000_000);
    let mut place = Place::new();
    let hash = sha256(&contents);
    let mut half = contents[..1_000_000].to_vec();
    half[400_000..].fill(0);
    fs::write(partial_path(&place.store, &hash), &half).unwrap();
    let mut have = ranges::RangeSet::default();
    have.add(0..1_000_000);
    write_map(&place.store, &map_path(&place.store, &hash), &have).unwrap();
    place.among(FakePeers::default().with("m", &contents, Fault::default()));
    assert_eq!(fs::read(place.pull("m").await.unwrap().path).unwrap(), contents);
}

#[tokio::test]
async fn one_peer_that_lies_spoils_nothing() {
    let contents = tiny_model("Qwen", 3_000_000);
    let lies = Fault { lies_at: Some(1_234_567), ..Fault::default() };
    for liar in 0..3 {
        let mut place = Place::new();
        let mut peers = FakePeers::default();
        for number in 0..3 {
            peers = peers.with("m", &contents, if number == liar { lies } else { Fault::default() });
        }
        place.among(peers);
        assert_eq!(fs::read(place.pull("m").await.unwrap().path).unwrap(), contents, "peer {liar} lies");
    }
}

#[tokio::test]
async fn where_all_peers_lie_the_internet_is_asked() {
    let contents = tiny_model("Qwen", 3_000_000);
    let registry = Registry::start().await.unwrap();
    registry.put("library/m", "latest", &contents, |blob| blob);
    let mut place = Place::new();
    place.config.registry_url = registry.site.url().to_owned();
    let lies = |lies_at| Fault { lies_at: Some(lies_at), ..Fault::default() };
    let peers = FakePeers::default().with("m", &contents, lies(5_000)).with("m", &contents, lies(2_000_000));
    let peers = place.among(peers);
    let model = place.pull("m").await.unwrap();
    assert_eq!(fs::read(&model.path).unwrap(), contents);
    assert!(matches!(model.source, ModelSource::Pulled { from } if from.starts_with("http")));
    assert_eq!(peers.sent().iter().filter(|sent| **sent > 0).count(), 2);
}

#[tokio::test]
async fn what_peers_sent_from_the_first_byte_on_the_internet_need_not_send_again() {
    let contents = tiny_model("Qwen", 4_000_000);
    let registry = Registry::start().await.unwrap();
    registry.put("library/m", "latest", &contents, |blob| blob);
    let mut place = Place::new();
    place.config.registry_url = registry.site.url().to_owned();
    let dies = Fault { dies_after: Some(2_000_000), ..Fault::default() };
    place.among(FakePeers::default().with("m", &contents, dies));
    assert_eq!(fs::read(place.pull("m").await.unwrap().path).unwrap(), contents);
    let asked = registry.storage.requests();
    let range = asked.last().unwrap().header("range").unwrap_or_default().to_owned();
    let from: u64 = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
    assert!(from >= 1_000_000, "{range}");
}

#[tokio::test]
async fn a_name_brings_with_it_what_it_adds_to_its_weights() {
    let contents = tiny_model("Qwen", 100_000);
    let mut place = Place::new();
    let mut peers = FakePeers::default().with("brief", &contents, Fault::default());
    peers.peers[0].model.defaults.system = Some("Be brief.".to_owned());
    place.among(peers);
    let model = place.pull("brief").await.unwrap();
    assert_eq!(model.defaults.system.as_deref(), Some("Be brief."));
    assert_eq!(place.store.get(&model.name).unwrap(), Some(model));
}

#[tokio::test]
async fn a_model_of_the_catalogue_is_known_by_its_hash_alone() {
    let (right, wrong) = (tiny_model("Qwen", 300_000), tiny_model("Other", 300_000));
    let mut place = Place::new();
    place.config.catalogue = vec![CatalogueEntry {
        name: "short:1b".to_owned(),
        aliases: vec!["short".to_owned()],
        description: "a model".to_owned(),
        license: "MIT".to_owned(),
        sha256: sha256(&right),
        size_bytes: right.len() as u64,
        ram_mb: 1,
        sources: vec![CatalogueSource::Pip { parts: Vec::new() }],
    }];
    let fine = Fault::default();
    let mut peers = FakePeers::default().with("short:1b", &wrong, fine).with("my-own", &right, fine);
    peers.peers[1].model.defaults.system = Some("I am somebody's own.".to_owned());
    let peers = place.among(peers);
    let model = place.pull("short").await.unwrap();
    assert_eq!((model.name.as_str(), fs::read(&model.path).unwrap()), ("short:1b", right));
    assert_eq!((model.defaults, peers.sent()[0]), (ModelDefaults::default(), 0));
}

#[tokio::test]
async fn for_a_name_that_is_here_the_registry_says_what_it_stands_for_and_peers_send_it() {
    let (old, new) = (tiny_model("Old", 200_000), tiny_model("New", 300_000));
    let registry = Registry::start().await.unwrap();
    registry.put("library/m", "latest", &new, |blob| blob);
    let mut place = Place::new();
    let fine = Fault::default();
    place.among(FakePeers::default().with("m", &old, fine).with("elsewhere", &new, fine));
    assert_eq!(place.pull("m").await.unwrap().sha256, sha256(&old));
    let error_free = place.pull("m").await.unwrap();
    assert_eq!(error_free.sha256, sha256(&old), "without the internet it stays what it is");
    place.config.registry_url = registry.site.url().to_owned();
    assert_eq!(place.pull("m").await.unwrap().sha256, sha256(&new));
    assert_eq!(registry.storage.requests().len(), 0, "the weights come from the peer that calls them otherwise");
}

#[tokio::test]
async fn a_name_that_only_the_swarm_knows_can_be_pulled_again() {
    let registry = Registry::start().await.unwrap();
    let contents = tiny_model("Own", 200_000);
    let mut place = Place::new();
    place.config.registry_url = registry.site.url().to_owned();
    place.among(FakePeers::default().with("our-own", &contents, Fault::default()));
    let first = place.pull("our-own").await.unwrap();
    assert_eq!(place.pull("our-own").await.unwrap(), first);
    place.among(FakePeers::default());
    assert_eq!(place.pull("our-own").await.unwrap(), first, "nobody knows a newer one");
    let error = place.pull("nobodys").await.unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn a_peer_that_refuses_is_not_asked_again() {
    let contents = tiny_model("Qwen", 1_000_000);
    let mut place = Place::new();
    let refuses = Fault { refuses: true, ..Fault::default() };
    let peers = place.among(FakePeers::default().with("m", &contents, refuses).with("m", &contents, Fault::default()));
    place.pull("m").await.unwrap();
    assert!(peers.peers[0].asked.load(Ordering::SeqCst) <= 2, "each of its two streams asks once");
    let alone = place.among(FakePeers::default().with("other", &tiny_model("Other", 1_000), refuses));
    let error = place.pull("other").await.unwrap_err();
    assert!(matches!(error, PullError::Network { .. }), "{error}");
    assert_eq!(alone.found.load(Ordering::SeqCst), 1);
}
