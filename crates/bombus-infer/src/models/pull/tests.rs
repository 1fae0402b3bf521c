mod faults;
mod packages;
mod texts;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bombus_testkit::gguf::tiny_model;
use bombus_testkit::hugging_face::{HuggingFace, RepositoryFile};
use bombus_testkit::registry::{Registry, manifest};
use bombus_testkit::sha256;
use tempfile::TempDir;

use super::{PullConfig, PullError, PullStage, Secret, pull};
use crate::models::{LocalModel, ModelStore};

/// A store with the settings that point to doubles.
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
            connect_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(10),
            retries: 2,
            retry_after: Duration::from_millis(1),
            ..PullConfig::default()
        };
        Self { _directory: directory, store, config }
    }

    fn at_registry(registry: &Registry) -> Self {
        let mut place = Self::new();
        place.config.registry_url = registry.site.url().to_owned();
        place
    }

    fn at_hugging_face(hub: &HuggingFace) -> Self {
        let mut place = Self::new();
        place.config.hugging_face_url = hub.site.url().to_owned();
        place
    }

    async fn pull(&self, reference: &str) -> Result<LocalModel, PullError> {
        pull(&self.store, &self.config, reference, |_| {}).await
    }

    fn partial(&self, contents: &[u8]) -> PathBuf {
        self.store.directory().join("blobs").join(format!("sha256-{}.partial", sha256(contents)))
    }

    fn files_in(&self, part: &str) -> Vec<PathBuf> {
        fs::read_dir(self.store.directory().join(part)).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

#[tokio::test]
async fn a_model_comes_from_the_registry() {
    let registry = Registry::start().await.unwrap();
    let contents = tiny_model("Qwen", 5_000_000);
    registry.put("library/qwen3", "8b", &contents, |blob| blob);
    let place = Place::at_registry(&registry);
    let mut progress = Vec::new();
    let model = pull(&place.store, &place.config, "qwen3:8b", |step| progress.push(step)).await.unwrap();
    assert_eq!((model.name.as_str(), &model.sha256), ("qwen3:8b", &sha256(&contents)));
    assert_eq!(fs::read(&model.path).unwrap(), contents);
    assert_eq!(place.store.list().unwrap(), [model]);
    assert_eq!(place.files_in("blobs").len(), 1);
    assert!(
        place.files_in("staging").is_empty()
            && !place.files_in("locks").iter().any(|path| path.ends_with(sha256(&contents)))
    );
    let size = contents.len() as u64;
    assert_eq!(progress.first().unwrap().stage, PullStage::Resolving);
    let last = progress.last().unwrap();
    assert_eq!((last.stage, last.done_bytes, last.total_bytes), (PullStage::Downloading, size, Some(size)));
    assert_eq!(last.sha256.map(hex::encode), Some(sha256(&contents)));
}

#[tokio::test]
async fn a_model_that_is_here_is_not_fetched_again_under_any_name() {
    let registry = Registry::start().await.unwrap();
    let contents = tiny_model("Qwen", 1_000);
    for tag in ["8b", "latest"] {
        registry.put("someone/qwen3", tag, &contents, |blob| blob);
    }
    let place = Place::at_registry(&registry);
    let first = place.pull("someone/qwen3:8b").await.unwrap();
    assert_eq!(place.pull("someone/qwen3:8b").await.unwrap(), first);
    assert_eq!(place.pull("someone/qwen3").await.unwrap().path, first.path);
    assert_eq!(registry.storage.requests().len(), 1);
    assert_eq!(place.store.list().unwrap().len(), 2);
}

#[tokio::test]
async fn two_pulls_of_one_file_fetch_it_once() {
    let registry = Registry::start().await.unwrap();
    let contents = tiny_model("Qwen", 3_000_000);
    registry.put("library/qwen3", "8b", &contents, |blob| blob);
    let place = Place::at_registry(&registry);
    // A second store on the directory stands for a second process: it shares nothing with the first but the files.
    let other = ModelStore::open(place.store.directory()).unwrap();
    let (first, second) = tokio::join!(place.pull("qwen3:8b"), pull(&other, &place.config, "qwen3:8b", |_| {}));
    assert_eq!(first.unwrap().sha256, second.unwrap().sha256);
    assert_eq!(registry.storage.requests().len(), 1);
}

#[tokio::test]
async fn a_model_that_the_registry_lacks_is_told() {
    let registry = Registry::start().await.unwrap();
    let error = Place::at_registry(&registry).pull("nope:1b").await.unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }));
    assert!(error.to_string().contains("library/nope:1b"), "{error}");
}

#[tokio::test]
async fn registry_models_that_cannot_be_used_say_why() {
    let registry = Registry::start().await.unwrap();
    let place = Place::at_registry(&registry);
    let mut adapted = manifest(&"a".repeat(64), 100);
    adapted["layers"][1]["mediaType"] = "application/vnd.ollama.image.adapter".into();
    registry.put_manifest("library/adapted", "latest", &adapted);
    let mut cloud = manifest(&"a".repeat(64), 100);
    cloud["layers"].as_array_mut().unwrap().remove(0);
    registry.put_manifest("library/cloud", "latest", &cloud);
    let mut evil = manifest(&"a".repeat(64), 100);
    evil["layers"][0]["digest"] = "sha256:../../../etc/passwd".into();
    registry.put_manifest("library/evil", "latest", &evil);
    for (model, word) in [("adapted", "adapter"), ("cloud", "no GGUF"), ("evil", "not a SHA-256")] {
        let error = place.pull(model).await.unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
    registry.site.put("/v2/library/html/manifests/latest", bombus_testkit::origin::Resource::of("<html>"));
    assert!(matches!(place.pull("html").await, Err(PullError::Protocol { .. })));
}

#[tokio::test]
async fn a_quantisation_comes_from_hugging_face_and_the_token_goes_nowhere_else() {
    let hub = HuggingFace::start().await.unwrap();
    let (small, large) = (tiny_model("small", 1_000), tiny_model("large", 9_000));
    hub.put(
        "owner/Repo-GGUF",
        vec![
            RepositoryFile::new("README.md", b"# Repo"),
            RepositoryFile::new("repo-Q8_0.gguf", &large),
            RepositoryFile::new("repo-Q4_K_M.gguf", &small),
        ],
    );
    let mut place = Place::at_hugging_face(&hub);
    place.config.hugging_face_token = Some(Secret::new("hf_secret"));
    assert!(!format!("{:?}", place.config).contains("hf_secret"));

    let model = place.pull("hf.co/owner/Repo-GGUF").await.unwrap();
    assert_eq!((model.name.as_str(), model.sha256), ("hf.co/owner/Repo-GGUF:latest", sha256(&small)));
    let model = place.pull("hf.co/owner/Repo-GGUF:q8_0").await.unwrap();
    assert_eq!((model.name.as_str(), model.sha256), ("hf.co/owner/Repo-GGUF:q8_0", sha256(&large)));

    assert!(hub.site.requests().iter().all(|request| request.header("authorization") == Some("Bearer hf_secret")));
    assert!(hub.storage.requests().iter().all(|request| request.header("authorization").is_none()));
    assert_eq!(hub.storage.requests().len(), 2);
}

#[tokio::test]
async fn a_gated_repository_says_what_to_do() {
    let hub = HuggingFace::start().await.unwrap();
    let resource = bombus_testkit::origin::Resource::of("").always(bombus_testkit::origin::Fault::Status(401));
    hub.site.put("/api/models/meta/gated/revision/main?blobs=true", resource);
    let error = Place::at_hugging_face(&hub).pull("hf.co/meta/gated").await.unwrap_err();
    assert!(matches!(error, PullError::Refused { status: 401, .. }));
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");
}

#[tokio::test]
async fn weights_that_were_damaged_here_are_fetched_again() {
    let registry = Registry::start().await.unwrap();
    let contents = tiny_model("Qwen", 1_000_000);
    registry.put("library/qwen3", "8b", &contents, |blob| blob);
    let place = Place::at_registry(&registry);
    let model = place.pull("qwen3:8b").await.unwrap();
    fs::write(&model.path, bombus_testkit::gguf::with_a_flipped_bit(contents.clone())).unwrap();

    let mut stages = Vec::new();
    let again = pull(&place.store, &place.config, "qwen3:8b", |step| stages.push(step.stage)).await.unwrap();
    assert_eq!(fs::read(&again.path).unwrap(), contents);
    stages.dedup();
    assert_eq!(stages, [PullStage::Resolving, PullStage::Verifying, PullStage::Downloading]);

    stages.clear();
    pull(&place.store, &place.config, "qwen3:8b", |step| stages.push(step.stage)).await.unwrap();
    stages.dedup();
    assert_eq!(stages, [PullStage::Resolving, PullStage::Verifying], "what is whole is looked at, and kept");
}

#[tokio::test]
async fn only_what_comes_over_http_goes_on_later() {
    let place = Place::new();
    let goes_on = |reference| super::goes_on_later(&place.store, &place.config, reference);
    assert!(!goes_on("qwen3:8b"), "nothing came yet");
    fs::write(place.partial(b"any"), b"begun").unwrap();
    assert!(goes_on("qwen3:8b") && goes_on("hf.co/owner/repo"));
    assert!(!goes_on("smollm2:135m") && !goes_on(""));
}

/// A listener that takes no connection any more: its queue is full, so that the system does not answer further ones.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_host_that_accepts_no_connection_is_left_within_the_limit() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    let connect = || tokio::time::timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(address));
    while let Ok(stream) = connect().await {
        queued.push(stream.unwrap());
        assert!(queued.len() < 100, "the queue does not fill");
    }

    let mut place = Place::new();
    place.config.registry_url = format!("http://{address}");
    place.config.connect_timeout = Duration::from_millis(300);
    let begun = std::time::Instant::now();
    let error = place.pull("qwen3").await.unwrap_err();
    let took = begun.elapsed();
    assert!(error.to_string().contains("no connection in time"), "{error}");
    assert!((Duration::from_millis(300)..Duration::from_secs(5)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_told_at_once() {
    let error = Place::new().pull("qwen3").await.unwrap_err();
    assert!(matches!(error, PullError::Network { kept_bytes: 0, .. }), "{error:?}");
}
