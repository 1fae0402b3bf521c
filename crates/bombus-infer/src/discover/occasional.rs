use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bombus_core::chat::{ChatRequest, EmbedRequest, EmbedResponse, KeepAlive};
use bombus_core::model::{ModelDetails, ModelInfo, ModelName, RunningModel};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::OLLAMA_ADDRESS;
use crate::ollama::find_local;
use crate::{Backend, BackendError, ChatStream, Health, ModelLibrary};

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
        Self { address: OLLAMA_ADDRESS, only_ollama: true, server }
    }

    async fn is_there(&self) -> bool {
        if !matches!(timeout(CONNECT_TIME_MAX, TcpStream::connect(self.address)).await, Ok(Ok(_))) {
            return false;
        }
        !self.only_ollama || find_local().await.contains(&format!("http://{}", self.address))
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

    async fn load(&self, model: &str, keep_alive: Option<KeepAlive>) -> Result<(), BackendError> {
        self.server.load(model, keep_alive).await
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
    use tokio::net::TcpListener;

    use super::*;
    use crate::fake::{FakeBackend, FakeConfig};

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
