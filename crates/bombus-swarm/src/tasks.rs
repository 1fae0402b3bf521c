//! Durable tasks: submitted on one node, run by any, readable on all, whatever dies between.
//!
//! What a node does about a task is decided by [`bombus_core::tasks::dispatch::Dispatcher`], which knows neither disk nor network; what is
//! known of tasks stands in the replicated [`crate::store`]. Here is what joins them: documents are written, grants are offered over
//! streams, models run.
//!
//! ```text
//! tasks/config.rs      TasksConfig, the section [tasks];  error.rs: TasksError;  clock.rs: the clock of leases
//!       handle.rs      TasksHandle;  submission.rs: what is submitted;  news.rs: what is told
//!       orchestrate.rs submissions, answers, lists: plan.rs makes documents of a submission (pure)
//!       generations.rs the generations of the databases: those of peers are followed, and what is old goes
//!       service.rs     TasksService: the parts, kept going;  shared.rs: what they share
//!       driver.rs      hands the dispatcher what happens and has done what it says;  facts.rs: what it knows of a task (pure)
//!       rank.rs        who could run a task: the registry's ranking
//!       wire.rs        the messages of `/bombus/task/1`;  talk.rs: a stream with them
//!       offer.rs       the requester's side of an offer;  serve.rs: what peers open, the worker's side among it
//!       ask.rs         the questions to peers: who sees whom
//!       sealed.rs      who can read a sealed task, and its answer
//!       run.rs         runs a task over this node's backends;  live.rs: the answers that are being written;  counts.rs: how often
//!       cancel.rs      has tasks end;  follow.rs: what happens to a task, on any node
//!       tell.rs        the log of events and the topics for those who only watch
//! ```
//!
//! # `/bombus/task/1`
//!
//! One stream for each offer, in both directions: it begins with the task and the grant's hash, and lives as long as the attempt. It is a
//! protocol of its own beside `/bombus/run/1`: that one answers a client who waits, its reset means that nobody does, and its slots and its
//! queue are for such clients. The end of an offer's stream means nothing of the kind: the run goes on, and the lease decides. Short
//! questions (follow an answer, cancel, who sees whom) are streams of the same protocol with one request each.

mod ask;
mod cancel;
mod config;
mod counts;
mod driver;
mod error;
mod facts;
mod follow;
pub(crate) mod fuzzing;
mod generations;
mod handle;
mod live;
mod news;
mod offer;
mod orchestrate;
mod plan;
mod rank;
mod run;
mod sealed;
mod serve;
mod service;
mod shared;
mod submission;
mod talk;
mod tell;
mod wire;

use std::sync::Arc;

use bombus_core::identity::NodeKey;
use bombus_infer::Backends;
use bombus_net::NetHandle;

pub use config::{TasksConfig, TasksConfigError};
pub use counts::{TaskRunCounts, TaskRuns};
pub use error::TasksError;
pub use handle::TasksHandle;
pub use news::{PartResult, TaskFilter, TaskNews, TaskPage, TaskResultReport};
pub use sealed::{SEAL_TO_MAX, SealChoice};
pub use service::TasksService;
pub use submission::{BatchItem, Input, Submission, Work};

use self::shared::Shared;
use crate::SwarmHandle;
use crate::db::DbHandle;
use crate::route::RouteHandle;
use crate::seal::SealKey;

/// The protocol by which tasks are offered, followed and cancelled.
pub const TASK_PROTOCOL: &str = "/bombus/task/1";

/// Makes the two halves of the tasks: the service, which runs as one task beside the databases, and the handle for everybody else.
///
/// `db` has the databases of the swarm in which the tasks are kept: a node that moves to another swarm makes both halves anew. `backends`
/// run what is run here, and rank who else could. `route` says what peers may use. `key` is the node's own, `seal_key` the one that
/// texts for it are sealed to. `runs` counts what is run here.
///
/// Until the service runs, what is asked of the handle waits for it for some seconds.
#[must_use]
#[expect(clippy::too_many_arguments, reason = "each is a part of the node that tasks stand on")]
pub fn tasks(
    config: TasksConfig,
    net: NetHandle,
    swarm: SwarmHandle,
    backends: Backends,
    route: RouteHandle,
    db: DbHandle,
    key: Arc<NodeKey>,
    seal_key: SealKey,
    runs: TaskRuns,
) -> (TasksHandle, TasksService) {
    let shared = Arc::new(Shared::new(config, net, swarm, backends, route, db, key, seal_key, runs));
    (TasksHandle { shared: Arc::clone(&shared) }, TasksService { shared })
}
