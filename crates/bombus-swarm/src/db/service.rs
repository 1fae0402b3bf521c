//! The databases' service: its parts, kept going.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bombus_net::bitswap::{BitswapEvents, BitswapService};
use orbitdb::Output;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::shared::Shared;
use super::{blocks, direct, dispatch, oplog};
use crate::supervised::keep_going;

/// How long databases may take to write what is waiting at the end.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// Runs the databases of this node; made by [`super::db`].
pub struct DbService {
    pub(super) shared: Arc<Shared>,
    pub(super) outputs: mpsc::Receiver<Output>,
    pub(super) blocks: BitswapEvents,
    pub(super) bitswap: BitswapService,
}

impl fmt::Debug for DbService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DbService").finish_non_exhaustive()
    }
}

impl DbService {
    /// Opens what was open before and runs until `stop`; then all databases are closed, with everything in them safe. The mesh has to run
    /// until this has returned.
    ///
    /// A part that fails or panics is logged and started anew, after a pause of half a second that doubles up to 30 s.
    pub async fn run(self, stop: CancellationToken) {
        let Self { shared, outputs, blocks, bitswap } = self;
        let (outputs, blocks) = (Mutex::new(outputs), Mutex::new(blocks));
        {
            let (shared, stop) = (&shared, &stop);
            tokio::join!(
                async {
                    // What is open is replicated while the others are opened.
                    stop.run_until_cancelled(shared.open_again()).await;
                },
                bitswap.run(stop.clone()),
                keep_going("databases", stop.clone(), || dispatch::dispatch(shared, &outputs, stop)),
                keep_going("blocks of databases", stop.clone(), || blocks::hand_on(shared, &blocks, stop)),
                keep_going("databases to be opened", stop.clone(), || blocks::find_all(shared, stop)),
                keep_going("entries of peers", stop.clone(), || direct::serve_all(shared, stop)),
                keep_going("peers that catch up", stop.clone(), || oplog::serve_all(shared, stop)),
            );
        }
        match timeout(CLOSE_LIMIT, shared.close_all()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "a database could not be closed in order"),
            Err(_) => tracing::error!("the databases took too long to close"),
        }
    }
}
