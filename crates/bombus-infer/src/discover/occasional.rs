use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bombus_core::chat::{ChatRequest, EmbedRequest, EmbedResponse};
use bombus_core::model::{ModelDetails, ModelInfo, ModelName, RunningModel};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::OLLAMA_ADDRESS;
use crate::ollama::answering;
use crate::{Backend, BackendError, ChatStream, Health, LoadRequest, ModelLibrary};

/// Longest wait for a server of this machine to take a connection.
const CONNECT_TIME_MAX: Duration = Duration::from_millis(250);

/// A server of this machine that nobody configured: it is used while it runs, and its absence is no error.
///
/// While nothing listens at its address it has no models. Everything else goes to the server as it is.
pub struct OccasionalBackend {
    address: SocketAddr,
    /// Whether only an Ollama counts as what is looked for.
    only_ollama: bool,
    server: Arc<dyn Backend>,
}

impl OccasionalBackend {
    /// Takes the address to look at, and the backend of what may be there.
    #[must_use]
    pub fn new(address: SocketAddr, server: Arc<dyn Backend>) -> Self {
        Self { address, only_ollama: false, server }
    }

    /// Takes the backend of an Ollama at its usual port. Nodes of Bombus speak its dialect too, and are not taken for one: two nodes
    /// that each saw the other's models would go on showing them when they are gone.
    #[must_use]
    pub fn ollama(server: Arc<dyn Backend>) -> Self {
        Self::ollama_at(OLLAMA_ADDRESS, server)
    }

    fn ollama_at(address: SocketAddr, server: Arc<dyn Backend>) -> Self {
        Self { address, only_ollama: true, server }
    }

    async fn is_there(&self) -> bool {
        if !matches!(timeout(CONNECT_TIME_MAX, TcpStream::connect(self.address)).await, Ok(Ok(_))) {
            return false;
        }
        !self.only_ollama || !answering(vec![format!("http://{}", self.address)]).await.is_empty()
    }
}

#[async_trait]
impl Backend for OccasionalBackend {
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
        if self.is_there().await { self.server.models().await } else { Ok(Vec::new()) }
    }

    async fn model(&self, name: &ModelName) -> Result<Option<ModelInfo>, BackendError> {
        if self.is_there().await { self.server.model(name).await } else { Ok(None) }
    }

    async fn chat(&self, request: ChatRequest) -> Result<ChatStream, BackendError> {
        self.server.chat(request).await
    }

    fn can_resume(&self, request: &ChatRequest) -> bool {
        self.server.can_resume(request)
    }

    fn without_retries(&self) -> Option<Arc<dyn Backend>> {
        self.server.without_retries()
    }

    async fn embed(&self, request: EmbedRequest) -> Result<EmbedResponse, BackendError> {
        self.server.embed(request).await
    }

    async fn health(&self) -> Health {
        if self.is_there().await {
            return self.server.health().await;
        }
        Health::Unavailable(format!("nothing listens at {}; it is used as soon as something does", self.address))
    }

    async fn details(&self, name: &ModelName) -> Result<Option<ModelDetails>, BackendError> {
        if self.is_there().await { self.server.details(name).await } else { Ok(None) }
    }

    async fn running(&self) -> Result<Vec<RunningModel>, BackendError> {
        if self.is_there().await { self.server.running().await } else { Ok(Vec::new()) }
    }

    async fn load(&self, request: LoadRequest) -> Result<(), BackendError> {
        self.server.load(request).await
    }

    async fn unload(&self, model: &str) -> Result<(), BackendError> {
        self.server.unload(model).await
    }

    fn library(&self) -> Option<&dyn ModelLibrary> {
        self.server.library()
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::chat::{ChatEvent, Prompt};
    use bombus_core::model::ModelCapability;
    use bombus_core::placement::Need;
    use bombus_testkit::upstream::{Script, Upstream};
    use futures::StreamExt;
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;
    use crate::fake::{FakeBackend, FakeConfig};
    use crate::{Backends, NamedBackend, OllamaBackend, OllamaConfig};

    /// A server with the model `small` that greets as Ollama does.
    async fn ollama() -> Upstream {
        let upstream = Upstream::start().await.unwrap();
        upstream.on("GET /", Script::text(200, "Ollama is running"));
        upstream.on("GET /api/tags", Script::json(200, &json!({"models": [{"name": "small:latest", "digest": "d1"}]})));
        upstream.on("GET /api/ps", Script::json(200, &json!({"models": []})));
        upstream.on("POST /api/show", Script::json(200, &json!({"capabilities": ["completion"]})));
        let pieces = [json!({"response": "Hi", "done": false}), json!({"response": "", "done": true})];
        upstream.on("POST /api/generate", Script::lines(&pieces));
        upstream
    }

    /// A node's backends with what may be at the server's address as the only one.
    fn beside(upstream: &Upstream) -> Backends {
        let url = upstream.url();
        let address = url.trim_start_matches("http://").parse().unwrap();
        let config = OllamaConfig { url, retries: 0, ..OllamaConfig::default() };
        let server = Arc::new(OllamaBackend::new("ollama", config).unwrap());
        let found = Arc::new(OccasionalBackend::ollama_at(address, server));
        Backends::new(vec![NamedBackend::new("ollama", "ollama", found)])
    }

    async fn ask(backends: &Backends) -> Result<String, BackendError> {
        let route = backends.route("small", &Need::of([ModelCapability::Completion])).await?;
        let routed = route.chat(ChatRequest::new("small", Prompt::Raw("Hi".into()))).await?;
        let texts = routed.value.map(|event| match event.unwrap() {
            ChatEvent::Delta(delta) => delta.text,
            _ => String::new(),
        });
        Ok(texts.collect().await)
    }

    /// Looks at the server as the node does every few seconds, and returns how many models it has.
    async fn models(backends: &Backends) -> usize {
        backends.refresh("ollama").await;
        backends.known().len()
    }

    #[tokio::test]
    async fn an_ollama_that_comes_goes_and_comes_back_is_used_while_it_is_there() {
        let upstream = ollama().await;
        upstream.stop();
        let backends = beside(&upstream);
        let missing = Err(BackendError::ModelNotFound { model: "small".into() });
        assert_eq!((models(&backends).await, ask(&backends).await), (0, missing.clone()));
        assert_eq!(backends.states()[0].error, None, "its absence is no error");

        for _ in 0..2 {
            upstream.restart().await.unwrap();
            assert_eq!((models(&backends).await, ask(&backends).await), (1, Ok("Hi".into())));
            upstream.stop();
            assert_eq!((models(&backends).await, ask(&backends).await), (0, missing.clone()));
        }
    }

    #[tokio::test]
    async fn a_request_for_a_model_of_an_ollama_that_has_just_started_finds_it() {
        let upstream = ollama().await;
        let backends = beside(&upstream);
        assert_eq!(ask(&backends).await, Ok("Hi".into()));
    }

    #[tokio::test]
    async fn a_node_at_its_port_is_not_taken_for_an_ollama() {
        let upstream = ollama().await;
        upstream.on("GET /health", Script::json(200, &json!({"status": "ok", "node_id": "n"})));
        let backends = beside(&upstream);
        let missing = BackendError::ModelNotFound { model: "small".into() };
        assert_eq!((models(&backends).await, ask(&backends).await), (0, Err(missing)));
    }

    #[tokio::test]
    async fn it_has_models_while_something_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let backend = OccasionalBackend::new(address, Arc::new(FakeBackend::new(FakeConfig::default())));
        let name = ModelName::parse("fake").unwrap();
        assert_eq!(backend.models().await.unwrap().len(), 1);
        assert!(backend.model(&name).await.unwrap().is_some());
        assert_eq!(backend.health().await, Health::Ready);

        drop(listener);
        assert_eq!(backend.models().await, Ok(Vec::new()));
        assert_eq!(backend.model(&name).await, Ok(None));
        assert!(matches!(backend.health().await, Health::Unavailable(reason) if reason.contains(&address.to_string())));
    }
}
