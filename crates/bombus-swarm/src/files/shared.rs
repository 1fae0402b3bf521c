//! What the service and the handles share.

use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use orbitdb::cid::Hash;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::BodyReader;
use super::error::FilesError;
use super::table::Table;
use crate::SwarmHandle;
use crate::clock::WallClock;
use crate::db::DbHandle;
use crate::room;
use crate::store::TaskStore;
use crate::tasks::{SealChoice, TasksConfig, TasksHandle};

/// Longest wait for the database that is being opened.
const OPENING_WAIT_MAX: Duration = Duration::from_secs(10);
/// How many lists of blocks of uploads that broke off wait to be removed. Those of further ones stay on the disk.
const ORPHANS_MAX: usize = 64;

pub(super) struct Shared {
    pub(super) db: DbHandle,
    pub(super) swarm: SwarmHandle,
    pub(super) tasks: TasksHandle,
    pub(super) reader: Arc<dyn BodyReader>,
    pub(super) me: NodeId,
    /// How long a node has to be gone before others act in its place.
    pub(super) grace: Duration,
    /// How much longer each next one waits.
    pub(super) rank_step: Duration,
    /// Whether this node stores nothing that everybody can read.
    pub(super) seals_all: bool,
    pub(super) clock: WallClock,
    pub(super) orphans: mpsc::Sender<Vec<Hash>>,
    table: watch::Sender<Option<Table>>,
}

impl Shared {
    pub(super) fn new(
        config: &TasksConfig,
        db: DbHandle,
        swarm: SwarmHandle,
        tasks: TasksHandle,
        reader: Arc<dyn BodyReader>,
    ) -> (Self, mpsc::Receiver<Vec<Hash>>) {
        let (orphans, receiver) = mpsc::channel(ORPHANS_MAX);
        let shared = Self {
            me: swarm.node_id().clone(),
            grace: Duration::from_millis(config.grace_ms),
            rank_step: Duration::from_millis(config.rank_step_ms),
            seals_all: config.seal == SealChoice::Always,
            db,
            swarm,
            tasks,
            reader,
            clock: WallClock::default(),
            orphans,
            table: watch::Sender::new(None),
        };
        (shared, receiver)
    }

    pub(super) fn set_table(&self, table: Option<Table>) {
        self.table.send_replace(table);
    }

    /// Returns the documents, once they can be read.
    pub(super) async fn table(&self) -> Result<Table, FilesError> {
        let mut opened = self.table.subscribe();
        let opened = timeout(OPENING_WAIT_MAX, opened.wait_for(Option::is_some)).await;
        match opened {
            Ok(Ok(table)) => table.clone().ok_or(FilesError::Unavailable),
            _ => Err(FilesError::Unavailable),
        }
    }

    /// Returns what is known of tasks. While it is not known, nothing can be said of lines.
    pub(super) fn known_tasks(&self) -> Result<TaskStore, FilesError> {
        self.tasks.known().ok_or(FilesError::Unavailable)
    }

    /// Says of an error of the databases that the disk is full, where it is.
    pub(super) fn explained(&self, error: FilesError) -> FilesError {
        match error {
            FilesError::Db(_) | FilesError::Unavailable if room::is_full(self.db.directory()) => {
                FilesError::NoRoom(self.db.directory().to_owned())
            }
            error => error,
        }
    }

    /// Returns the time of day in milliseconds since 1970.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.now().unix_ms()).unwrap_or(0)
    }
}
