//! Which databases are open, and what they ask for: each has a replication of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bombus_core::identity::NodeId;
use orbitdb::Output;
use orbitdb::manifest::Address;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::replication::{Order, replicate, replication};
use super::shared::Shared;
use crate::supervised::{PartEnded, keep_going};

/// Replicates all databases that are open, until `stop`.
pub(super) async fn dispatch(
    shared: &Arc<Shared>,
    outputs: &Mutex<mpsc::Receiver<Output>>,
    stop: &CancellationToken,
) -> Result<(), PartEnded> {
    let outputs = &mut *outputs.lock().await;
    let mut addresses = shared.orbit.addresses();
    addresses.mark_changed();
    // Dropping it ends what runs.
    let mut open = Open { shared, stop, running: JoinSet::new(), stops: BTreeMap::new() };
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            Ok(()) = addresses.changed() => {
                addresses.mark_unchanged();
                open.follow();
            }
            Some(ended) = open.running.join_next(), if !open.running.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the replication of a database failed");
                }
            }
            output = outputs.recv() => open.on_output(output.ok_or(PartEnded::MeshEnded)?),
        }
    }
}

struct Open<'a> {
    shared: &'a Arc<Shared>,
    stop: &'a CancellationToken,
    running: JoinSet<()>,
    stops: BTreeMap<Address, CancellationToken>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.shared.replications().clear();
    }
}

impl Open<'_> {
    /// Begins with databases that were opened, and ends with those that were closed.
    fn follow(&mut self) {
        let now = self.shared.orbit.addresses().borrow().clone();
        self.stops.retain(|address, stop| {
            let is_open = now.contains(address);
            if !is_open {
                stop.cancel();
                self.shared.replications().remove(address);
            }
            is_open
        });
        for address in now {
            if !self.stops.contains_key(&address) {
                self.begin(address);
            }
        }
    }

    fn begin(&mut self, address: Address) {
        let stop = self.stop.child_token();
        let (replication, ends) = replication(address, &self.shared.config.queues);
        self.shared.replications().insert(address, replication);
        self.stops.insert(address, stop.clone());
        let (shared, ends) = (Arc::clone(self.shared), Arc::new(Mutex::new(ends)));
        // One that fails or panics is logged and started anew, after a pause that doubles up to 30 s.
        self.running.spawn(async move {
            keep_going("replication of a database", stop.clone(), || replicate(&shared, &ends, &stop)).await;
        });
    }

    fn on_output(&mut self, output: Output) {
        let address = match &output {
            Output::Publish { address, .. } | Output::OpenHeads { address, .. } | Output::Want { address, .. } => {
                *address
            }
        };
        if !self.stops.contains_key(&address) {
            self.follow();
        }
        // Of one that was closed meanwhile nothing is asked any more.
        let Some(replication) = self.shared.replications().get(&address).cloned() else { return };
        match output {
            Output::Publish { block, .. } => {
                if replication.publications.try_send(block).is_err() {
                    replication.behind.store(true, Ordering::Relaxed);
                }
            }
            // Where too much waits, all peers are asked a little later.
            Output::OpenHeads { peer, .. } => {
                if let Ok(peer) = NodeId::parse(peer.as_str())
                    && replication.orders.try_send(Order::Exchange(peer)).is_err()
                {
                    replication.behind.store(true, Ordering::Relaxed);
                }
            }
            Output::Want { peer, hashes, .. } => {
                if let Ok(peer) = NodeId::parse(peer.as_str()) {
                    self.shared.want(address, &peer, &hashes);
                }
            }
        }
    }
}
