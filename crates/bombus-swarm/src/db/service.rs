//! The databases' service: its parts, kept going.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use orbitdb::Output;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::shared::Shared;

/// How long databases may take to write what is waiting at the end.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// Runs the databases of this node; made by [`super::db`].
pub struct DbService {
    shared: Arc<Shared>,
    outputs: mpsc::Receiver<Output>,
}

impl fmt::Debug for DbService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DbService").finish_non_exhaustive()
    }
}

impl DbService {
    pub(super) fn new(shared: Arc<Shared>, outputs: mpsc::Receiver<Output>) -> Self {
        Self { shared, outputs }
    }

    /// Runs until `stop`; then all databases are closed, with everything in them safe. The mesh has to run until this has returned.
    pub async fn run(mut self, stop: CancellationToken) {
        let shared = &self.shared;
        let parts = async {
            tokio::join!(shared.open_again(), async { while self.outputs.recv().await.is_some() {} });
        };
        stop.run_until_cancelled(parts).await;
        match timeout(CLOSE_LIMIT, shared.close_all()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "a database could not be closed in order"),
            Err(_) => tracing::error!("the databases took too long to close"),
        }
    }
}
