use std::time::Duration;

use bombus_testkit::gguf::tiny_model;
use bombus_testkit::registry::Registry;
use bombus_testkit::sha256;
use bytes::Bytes;
use futures::TryStreamExt;
use tempfile::TempDir;

use super::*;

struct Place {
    _directory: TempDir,
    library: StoreLibrary,
}

impl Place {
    fn at(registry_url: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let sources = PullConfig {
            registry_url: registry_url.to_owned(),
            retries: 0,
            retry_after: Duration::from_millis(1),
            ..PullConfig::default()
        };
        let library = StoreLibrary::new(ModelStore::open(directory.path()).unwrap(), sources);
        Self { _directory: directory, library }
    }

    async fn put(&self, hash: &str, pieces: Vec<&[u8]>) -> Result<(), BackendError> {
        let pieces: Vec<_> = pieces.into_iter().map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        self.library.put_blob(hash, Box::pin(stream::iter(pieces))).await
    }
}

fn name(text: &str) -> ModelName {
    ModelName::parse(text).unwrap()
}

async fn statuses(steps: ProgressStream) -> Vec<String> {
    let steps: Vec<Progress> = steps.try_collect().await.unwrap();
    let mut statuses: Vec<String> = steps.into_iter().map(|step| step.status).collect();
    statuses.dedup();
    statuses
}

#[tokio::test]
async fn a_pull_tells_its_steps_in_the_words_that_clients_know() {
    let registry = Registry::start().await.unwrap();
    let contents = tiny_model("Qwen", 1_000);
    registry.put("library/qwen3", "8b", &contents, |blob| blob);
    let place = Place::at(registry.site.url());
    let steps: Vec<Progress> =
        place.library.pull(PullRequest::new("qwen3:8b")).await.unwrap().try_collect().await.unwrap();
    let hash = sha256(&contents);
    let pulling = format!("pulling {}", &hash[..12]);
    let words: Vec<&str> = steps.iter().map(|step| step.status.as_str()).collect();
    assert_eq!((words[0], words[words.len() - 1]), ("pulling manifest", "success"));
    let layer = steps.iter().rfind(|step| step.status == pulling).unwrap();
    assert_eq!(layer.sha256.as_deref(), Some(hash.as_str()));
    assert_eq!((layer.total_bytes, layer.completed_bytes), (Some(contents.len() as u64), Some(contents.len() as u64)));

    let missing =
        place.library.pull(PullRequest::new("nobody")).await.unwrap().try_collect::<Vec<_>>().await.unwrap_err();
    assert!(matches!(missing, BackendError::ModelNotFound { .. }), "{missing}");
}

#[tokio::test]
async fn a_model_that_others_are_made_of_is_fetched_first() {
    let registry = Registry::start().await.unwrap();
    registry.put("library/qwen3", "8b", &tiny_model("Qwen", 1_000), |blob| blob);
    let place = Place::at(registry.site.url());
    let request = || CreateRequest {
        name: "mine".into(),
        from: Some("qwen3:8b".into()),
        system: Some("Be brief.".into()),
        ..CreateRequest::default()
    };
    let first = statuses(place.library.create(request()).await.unwrap()).await;
    assert_eq!((first[0].as_str(), first[first.len() - 1].as_str()), ("pulling manifest", "success"));
    let again = statuses(place.library.create(request()).await.unwrap()).await;
    assert!(again[0].starts_with("using existing layer sha256:"), "{again:?}");
    assert_eq!(again[1..], ["writing manifest", "success"]);
    let parsed = CreateRequest { from: Some("nobody".into()), parser: Some("qwen3".into()), ..request() };
    let refused = place.library.create(parsed).await.err();
    assert!(matches!(refused, Some(BackendError::Unsupported { .. })), "nothing is fetched for it: {refused:?}");
    assert!(place.library.copy(&name("mine"), &name("other")).await.unwrap());
    assert!(!place.library.copy(&name("nobody"), &name("other")).await.unwrap());
    assert!(place.library.delete(&name("mine")).await.unwrap());
    assert!(!place.library.delete(&name("mine")).await.unwrap());
}

#[tokio::test]
async fn files_arrive_in_pieces_and_are_checked() {
    let place = Place::at("http://127.0.0.1:1");
    let contents = tiny_model("Tiny", 3_000_000);
    let hash = sha256(&contents);
    let error = place.put(&hash, vec![&contents[1..]]).await.unwrap_err();
    assert!(matches!(&error, BackendError::InvalidRequest { message, .. } if message.contains("digest")), "{error}");
    assert!(!place.library.has_blob(&hash).await.unwrap());
    place.put(&hash, contents.chunks(100_000).collect()).await.unwrap();
    assert!(place.library.has_blob(&hash).await.unwrap());
    let broken = stream::iter([Ok(Bytes::from_static(b"x")), Err(std::io::Error::other("gone"))]);
    let error = place.library.put_blob(&hash, Box::pin(broken)).await.unwrap_err();
    assert!(error.to_string().contains("broke off: gone"), "{error}");
    let request = CreateRequest { name: "m".into(), from: Some("../x".into()), ..CreateRequest::default() };
    let refused = place.library.create(request).await.err();
    assert!(matches!(refused, Some(BackendError::InvalidRequest { .. })), "{refused:?}");
}
