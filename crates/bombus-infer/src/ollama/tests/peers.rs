//! Models that come into a server from other nodes.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bombus_core::identity::NodeKey;
use bombus_core::model::ModelName;
use bombus_testkit::sha256;
use bytes::Bytes;
use futures::{TryStreamExt, stream};

use super::*;
use crate::models::{ModelDefaults, PeerCopy, PeerReadError, PeerSource, SharedModel, Wanted};
use crate::{ByteStream, ModelLibrary, Progress, PullRequest};

/// Peers that have one model, each with its bytes; those of the first are what the hash says.
struct Peers {
    model: SharedModel,
    bytes: Vec<Option<Bytes>>,
    asked: Mutex<Vec<usize>>,
}

impl Peers {
    /// `None` stands for a peer that is gone when it is asked for bytes.
    fn new(right: &[u8], bytes: Vec<Option<Vec<u8>>>) -> Arc<Self> {
        let model = SharedModel {
            name: ModelName::parse("qwen3:8b").unwrap(),
            sha256: sha256(right),
            size_bytes: right.len() as u64,
            defaults: ModelDefaults {
                system: Some("Be brief.".into()),
                template: Some("{% for m in messages %}{{ m.content }}{% endfor %}".into()),
                parameters: [("stop".to_owned(), json!(["<end>"]))].into_iter().collect(),
                ..ModelDefaults::default()
            },
            go_template: None,
        };
        let bytes = bytes.into_iter().map(|bytes| bytes.map(Bytes::from)).collect();
        Arc::new(Self { model, bytes, asked: Mutex::default() })
    }
}

#[async_trait]
impl PeerSource for Peers {
    async fn find(&self, wanted: &Wanted) -> Vec<PeerCopy> {
        let is_wanted = *wanted == Wanted::Name(self.model.name.clone());
        let copy = |number: usize| PeerCopy {
            node: NodeKey::from_secret(&[u8::try_from(number).unwrap(); 32]).node_id(),
            node_name: number.to_string(),
            model: self.model.clone(),
        };
        (0..self.bytes.len()).filter(|_| is_wanted).map(copy).collect()
    }

    async fn read(&self, copy: &PeerCopy, range: Range<u64>) -> Result<ByteStream, PeerReadError> {
        let number: usize = copy.node_name.parse().unwrap();
        self.asked.lock().unwrap().push(number);
        let bytes = self.bytes[number].as_ref().ok_or_else(|| PeerReadError::Failed("it is gone".into()))?;
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        let pieces: Vec<_> = bytes[range].chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Ok(stream::iter(pieces).boxed())
    }
}

fn contents() -> Vec<u8> {
    (0..9_000_000_u32).map(|at| (at % 251) as u8).collect()
}

/// A server without the model, that takes it in.
async fn without_it(hash: &str) -> Upstream {
    let upstream = server().await;
    upstream.on(&format!("HEAD /api/blobs/sha256:{hash}"), Script::text(404, ""));
    upstream.on(&format!("POST /api/blobs/sha256:{hash}"), Script::text(201, ""));
    let made = [json!({"status": "writing manifest"}), json!({"status": "success"})];
    upstream.on("POST /api/create", Script::lines(&made));
    upstream
}

async fn pull(upstream: &Upstream, peers: Arc<Peers>) -> Result<Vec<Progress>, BackendError> {
    let backend = backend(upstream);
    backend.use_peers(peers);
    backend.pull(PullRequest::new("qwen3:8b")).await?.try_collect().await
}

#[tokio::test]
async fn a_model_of_peers_goes_in_as_a_blob_and_is_made_of_it() {
    let contents = contents();
    let peers = Peers::new(&contents, vec![Some(contents.clone()), None]);
    let hash = peers.model.sha256.clone();
    let upstream = without_it(&hash).await;
    let steps = pull(&upstream, peers.clone()).await.unwrap();
    let words: Vec<&str> = steps.iter().map(|step| step.status.as_str()).collect();
    assert_eq!((words[0], words[words.len() - 1]), ("pulling manifest", "success"));
    assert!(words.contains(&format!("pulling {} from peer 0, 1", &hash[..12]).as_str()), "{words:?}");
    let sent = requests(&upstream, &format!("POST /api/blobs/sha256:{hash}"));
    assert_eq!((sent.len(), sent[0].body == contents), (1, true), "in order, whoever sent which part");
    assert!(peers.asked.lock().unwrap().contains(&1), "the peer that is gone was asked, and another after it");
    let made = requests(&upstream, "POST /api/create")[0].json();
    assert_eq!(made["model"], "qwen3:8b");
    assert_eq!(made["files"], json!({"model.gguf": format!("sha256:{hash}")}));
    assert_eq!((&made["system"], &made["parameters"]), (&json!("Be brief."), &json!({"stop": ["<end>"]})));
    assert_eq!(made["template"], json!(null), "templates in Jinja are not Ollama's");
    assert!(requests(&upstream, "POST /api/pull").is_empty());
}

#[tokio::test]
async fn where_the_server_finds_the_bytes_wrong_each_peer_is_asked_alone() {
    let contents = contents();
    let mut wrong = contents.clone();
    wrong[8_500_000] ^= 1;
    let peers = Peers::new(&contents, vec![Some(contents.clone()), Some(wrong)]);
    let upstream = without_it(&peers.model.sha256).await;
    let line = format!("POST /api/blobs/sha256:{}", peers.model.sha256);
    upstream.once(&line, Script::json(400, &json!({"error": "digest mismatch"})));
    pull(&upstream, peers).await.unwrap();
    let sent = requests(&upstream, &line);
    assert_eq!((sent.len(), sent[1].body == contents), (2, true));
}

#[tokio::test]
async fn what_peers_cannot_send_the_server_takes_from_its_registry() {
    let contents = contents();
    let peers = Peers::new(&contents, vec![None]);
    let upstream = without_it(&peers.model.sha256).await;
    upstream.on("POST /api/pull", Script::lines(&[json!({"status": "success"})]));
    pull(&upstream, peers).await.unwrap();
    assert_eq!(requests(&upstream, "POST /api/pull").len(), 1);
    assert!(requests(&upstream, "POST /api/create").is_empty());
}

#[tokio::test]
async fn a_blob_that_is_there_is_not_sent_and_a_model_that_is_there_not_asked_for() {
    let contents = contents();
    let peers = Peers::new(&contents, vec![Some(contents.clone())]);
    let upstream = without_it(&peers.model.sha256).await;
    upstream.on(&format!("HEAD /api/blobs/sha256:{}", peers.model.sha256), Script::text(200, ""));
    pull(&upstream, peers.clone()).await.unwrap();
    assert!(peers.asked.lock().unwrap().is_empty());
    assert_eq!(requests(&upstream, "POST /api/create").len(), 1);

    upstream.on("GET /api/tags", Script::json(200, &json!({"models": [listed("qwen3:8b", "d1")]})));
    upstream.on("POST /api/pull", Script::lines(&[json!({"status": "success"})]));
    pull(&upstream, peers).await.unwrap();
    assert_eq!(requests(&upstream, "POST /api/pull").len(), 1, "there may be a newer one");
}
