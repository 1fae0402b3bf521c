//! The task store: durable tasks, their results and the log of what happened to them, in replicated databases.
//!
//! Every node appends documents to `swarm-tasks` and `swarm-results`; what they come to is decided by
//! [`bombus_core::tasks::resolve()`] alone, out of the set of a task's entries, so that all nodes see the same in whatever order entries
//! come. These databases are a series of generations, so that old tasks can go: everything about a task stands in the one in which it was
//! submitted. The store keeps that in memory, evaluated anew with every entry, and says when it changes. `swarm-events` is the audit log.
//! [`TaskStore::open`] makes the two halves: the service runs as one task beside the databases, and everybody else holds a [`TaskStore`].
//!
//! ```text
//! store/handle.rs     TaskStore: what is known of tasks
//!      write.rs       what this node writes: the methods that move a task from one state to the next
//!      table.rs       the sets of entries and what they come to;  catalogue.rs: all tasks in order, to be listed (pure)
//!      shown.rs       what the databases show for each key (pure);  documents.rs: documents as values of the databases (pure)
//!      contents.rs    prompts and answers that are too large for an entry, as blocks of their own;  text.rs: their form (pure)
//!      audit.rs       the audit log;  recall.rs: what a crash kept from it;  updates.rs: what changes, as a stream
//!      series.rs      the names of the databases;  generations.rs: those that are open;  ledger.rs: the file that says which these are
//!      retention.rs   how long tasks are kept, as rules (pure);  prune.rs: generations begin and go;  sweep.rs: texts that go with them
//!      failure.rs     what becomes of it when the storage fails
//!      service.rs     what goes on beside: the audit log is written, large texts are fetched from those who have them
//! ```

mod audit;
mod catalogue;
mod contents;
mod documents;
mod error;
mod failure;
mod generations;
mod handle;
mod ledger;
mod limits;
mod prune;
mod recall;
mod retention;
mod series;
mod service;
mod shown;
mod sweep;
mod table;
pub(crate) mod text;
mod updates;
mod write;

pub use audit::{AuditEvent, AuditKind};
pub(crate) use catalogue::is_cursor;
pub use catalogue::{ListFilter, ListPage, TaskSummary};
pub use error::StoreError;
pub use handle::{GenerationSize, StoreSize, TaskStore};
pub use limits::{StoreLimits, TEXT_BYTES_MAX};
pub use prune::{DroppedGeneration, KeptGeneration, Pruned};
pub use retention::{Retention, WhyKept};
pub use series::{EVENTS, RESULTS, TASKS, generation_of, names};
pub use service::TaskStoreService;
pub use updates::{TaskUpdate, TaskUpdates};
pub use write::{Claim, Settlement};
