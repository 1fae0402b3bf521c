//! Files of requests and batches of them, in a replicated database: any node takes them, answers for them, and looks after those of a node that
//! is gone.
//!
//! Everything that is known of them is a handful of documents in `swarm-files`, each written once ([`bombus_core::batches`] makes of them where
//! a batch stands). What is in a file lies in blocks of its own. Each line of a batch is a durable task, whose id follows from the batch and the
//! line: two nodes that do the same at once make the same tasks. Its results are not copied: who reads the file of answers reads the tasks.
//!
//! ```text
//! files/handle.rs     FilesHandle: what everybody else uses
//!      upload.rs      a file that is being taken;  read.rs: what is in a file, by pieces and by lines
//!      table.rs       the documents
//!      check.rs       the look at a batch's file (pure), and the list of lines that cannot be done
//!      submit.rs      makes tasks of the lines;  drive.rs: what a batch goes through;  watch.rs: whose it is to do so (pure)
//!      results.rs     what came of the lines, one after the other
//!      service.rs     looks after batches, and has the files of others here;  holder.rs: which blocks are needed
//! ```

mod check;
mod drive;
mod error;
mod handle;
mod holder;
mod read;
mod results;
mod service;
mod shared;
mod submit;
mod table;
mod upload;
mod watch;

use std::sync::Arc;

use bombus_core::batches::Endpoint;
use bombus_core::tasks::WholeRequest;
use serde_json::Value;

pub use error::FilesError;
pub use handle::{Content, FileQuery, FilesHandle};
pub use service::FilesService;
pub use upload::Upload;

use self::shared::Shared;
use crate::SwarmHandle;
use crate::db::DbHandle;
use crate::tasks::{TasksConfig, TasksHandle};

/// The database of files and batches.
pub const FILES: &str = "swarm-files";

/// Reads what the lines of batches ask: the dialect of requests is not this crate's affair.
pub trait BodyReader: Send + Sync + 'static {
    /// Reads the JSON of a request to an endpoint.
    ///
    /// # Errors
    ///
    /// Says what a request by itself would have been answered that asks this.
    fn read(&self, endpoint: Endpoint, body: &str) -> Result<WholeRequest, BodyRefusal>;
}

/// Why a line cannot be done.
#[derive(Debug, Clone, PartialEq)]
pub struct BodyRefusal {
    /// The status that a request by itself would have got.
    pub status: u16,
    /// The body that it would have got.
    pub body: Value,
}

/// Makes the two halves: the service, which runs as one task beside the tasks, and the handle for everybody else.
///
/// `db` has the databases of the swarm, `tasks` does the lines. `config` says when others act in the place of a node that is gone.
///
/// Until the service runs, what is asked of the handle waits for it for some seconds.
#[must_use]
pub fn files(
    config: &TasksConfig,
    db: DbHandle,
    swarm: SwarmHandle,
    tasks: TasksHandle,
    reader: Arc<dyn BodyReader>,
) -> (FilesHandle, FilesService) {
    let (shared, orphans) = Shared::new(config, db, swarm, tasks, reader);
    let shared = Arc::new(shared);
    (FilesHandle { shared: Arc::clone(&shared) }, FilesService { shared, orphans })
}
