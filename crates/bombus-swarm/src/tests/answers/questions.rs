//! What a node tells others about its models beside the lists.

use bombus_core::chat::ResponseFormat;
use bombus_core::model::{ModelDetails, RunningModel};

use super::*;

/// Has two models, and goes on with answers by the text alone, as servers do that can be told of a beginning only so.
struct Shown;

fn info(name: &str, warm: bool) -> ModelInfo {
    ModelInfo { warm, continues: true, ..ModelInfo::named(ModelName::parse(name).unwrap()) }
}

#[async_trait]
impl Backend for Shown {
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
        Ok(vec![info("shown", true), info("hidden", true)])
    }

    async fn chat(&self, _request: ChatRequest) -> Result<ChatStream, BackendError> {
        std::future::pending().await
    }

    fn can_resume(&self, request: &ChatRequest) -> bool {
        bombus_infer::goes_on_as_text(request)
    }

    async fn embed(&self, _request: EmbedRequest) -> Result<EmbedResponse, BackendError> {
        std::future::pending().await
    }

    async fn health(&self) -> Health {
        Health::Ready
    }

    async fn details(&self, name: &ModelName) -> Result<Option<ModelDetails>, BackendError> {
        let mut details = ModelDetails { template: format!("the template of {name}"), ..ModelDetails::default() };
        details.metadata.insert("llama.embedding_length".into(), 576.into());
        Ok(Some(details))
    }

    async fn running(&self) -> Result<Vec<RunningModel>, BackendError> {
        let running = |name| RunningModel {
            info: info(name, true),
            memory_bytes: 1 << 30,
            gpu_bytes: 0,
            context_tokens: 8_192,
            expires_unix_s: None,
        };
        Ok(vec![running("hidden"), running("shown")])
    }
}

fn name(text: &str) -> ModelName {
    ModelName::parse(text).unwrap()
}

#[tokio::test]
async fn a_peer_tells_all_about_its_models_that_it_shares_and_which_are_in_memory() {
    let share = ShareConfig { models: vec!["shown".to_owned()], ..ShareConfig::default() };
    let (asking, answering) = pair(named(Arc::new(Shown)), sharing(share)).await;
    let peer = asking.peer(&answering.id()).await;
    let details = timeout(LIMIT, peer.details(&name("shown"))).await.unwrap().unwrap().expect("it has that");
    assert_eq!(details.template, "the template of shown:latest");
    assert_eq!(details.metadata["llama.embedding_length"], 576);
    assert_eq!(timeout(LIMIT, peer.details(&name("hidden"))).await.unwrap(), Ok(None));
    let running = timeout(LIMIT, peer.running()).await.unwrap().unwrap();
    let told: Vec<_> = running.iter().map(|model| (model.info.name.as_str(), model.context_tokens)).collect();
    assert_eq!(told, [("shown:latest", 8_192)]);
    // Who keeps its node for itself is asked in vain, and that is no trouble.
    answering.route.pause();
    asking.sees(&answering.id(), |_, now| now.paused).await;
    assert_eq!(timeout(LIMIT, peer.details(&name("shown"))).await.unwrap(), Ok(Some(ModelDetails::default())));
    assert_eq!(timeout(LIMIT, peer.running()).await.unwrap(), Ok(Vec::new()));
    asking.stop().await;
    answering.stop().await;
}

#[tokio::test]
async fn a_peer_that_goes_on_by_text_alone_says_so() {
    let mut backends = named(Arc::new(Shown));
    backends.extend(fake());
    let (asking, answering) = pair(backends, RunConfig::default()).await;
    let peer = asking.peer(&answering.id()).await;
    let can = |model: &str, response_format: ResponseFormat| {
        peer.can_resume(&ChatRequest { response_format, model: model.to_owned(), ..ask("x") })
    };
    assert!(can("shown", ResponseFormat::Text) && !can("shown", ResponseFormat::JsonObject));
    assert!(can("fake", ResponseFormat::Text) && can("fake", ResponseFormat::JsonObject));
    asking.stop().await;
    answering.stop().await;
}
