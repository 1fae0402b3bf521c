//! The models of the store, as the backend's library.

use std::sync::Arc;

use async_trait::async_trait;
use bombus_core::model::ModelName;
use bombus_infer::models::PeerSource;
use bombus_infer::{BackendError, ByteStream, CreateRequest, ModelLibrary, ProgressStream, PullRequest};

use super::EmbeddedBackend;

#[async_trait]
impl ModelLibrary for EmbeddedBackend {
    async fn pull(&self, request: PullRequest) -> Result<ProgressStream, BackendError> {
        self.library.pull(request).await
    }

    async fn delete(&self, name: &ModelName) -> Result<bool, BackendError> {
        let model = self.get(name.clone()).await.ok().flatten();
        let deleted = self.library.delete(name).await?;
        // Other names may stand for the same weights.
        if let Some(model) = model.filter(|model| deleted && !model.path.exists()) {
            self.pool.unload(model.path).await?;
        }
        Ok(deleted)
    }

    async fn copy(&self, from: &ModelName, to: &ModelName) -> Result<bool, BackendError> {
        self.library.copy(from, to).await
    }

    async fn create(&self, request: CreateRequest) -> Result<ProgressStream, BackendError> {
        self.library.create(request).await
    }

    async fn has_blob(&self, sha256: &str) -> Result<bool, BackendError> {
        self.library.has_blob(sha256).await
    }

    async fn put_blob(&self, sha256: &str, bytes: ByteStream) -> Result<(), BackendError> {
        self.library.put_blob(sha256, bytes).await
    }

    fn use_peers(&self, peers: Arc<dyn PeerSource>) {
        self.library.use_peers(peers);
    }
}
