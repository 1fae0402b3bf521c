//! The node: its parts, put together.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bombus_core::identity::NodeId;
use bombus_http::{KeyStore, Metrics, NodeFacts, Server, Services};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::data_dir::{Announcement, DataDir, NodeRecord};
use crate::platform::StopSignals;

mod addresses;
mod backends;
mod databases;
mod facts;
mod files;
mod machine;
mod mesh;
mod supervised;
mod tasks;

use machine::Machine;
use mesh::Mesh;
use supervised::Supervised;

pub(crate) use addresses::own_addresses;
pub(crate) use backends::{RunningBackends, open_models};
pub(crate) use mesh::missed_members;

/// How long the backends may take to end after the last answer.
const BACKENDS_STOP_LIMIT: Duration = Duration::from_secs(5);

/// What a node says about itself when it serves.
pub(crate) struct Ready {
    /// Base address of the API.
    pub(crate) api: String,
    /// The node's id.
    pub(crate) node_id: NodeId,
    /// The models that it can run.
    pub(crate) models: Vec<String>,
    /// Where other nodes reach it.
    pub(crate) p2p: Vec<String>,
    /// Whether it runs without a swarm key.
    pub(crate) open: bool,
}

/// Runs a node until it is told to stop. Its parts start in this order, each on those before it, and stop in reverse.
pub(crate) async fn run(settings: &Settings, data_dir: &DataDir, ready: impl FnOnce(Ready)) -> Result<()> {
    let started = Instant::now();
    let config = &settings.config;
    let mut signals = StopSignals::listen().context("signals cannot be listened to")?;
    let lock = data_dir.lock().await?;
    let key = data_dir.node_key()?;
    let node_id = key.node_id();
    let backends = RunningBackends::start(config, data_dir)?;
    let refresh = Supervised::start("refresh of the backends", backends.refresh());
    let metrics = Metrics::new();
    metrics.add_source(backends.samples());
    let machine = Machine::watch(data_dir.root());
    let models = open_models(data_dir)?;
    let mesh = Mesh::open(settings, data_dir, key, backends.backends(), models, machine.sample())?;
    metrics.add_source(mesh.samples());
    let (keys, session_key) = KeyStore::open(data_dir.keys()).with_session_key()?;
    let services = Services {
        backends: backends.backends().clone(),
        node: NodeFacts {
            node_id: node_id.clone(),
            name: config.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started,
            sample: machine.sample(),
        },
        keys,
        metrics,
        default_model: Some(config.default_model.to_string()),
        mesh: Some(mesh.surface()),
        databases: mesh.databases(),
        tasks: mesh.tasks(),
        files: mesh.files(),
    };
    let server = Server::bind(config.api.clone(), services).await?;
    let mut mesh = mesh.start(server.local_addr().port());
    mesh.listening().await?;
    let mut listens = mesh.listen_addrs();
    let p2p = listens.borrow_and_update().clone();
    let mut record = NodeRecord::of_this_process(server.local_addr(), node_id.clone(), config);
    record.p2p.clone_from(&p2p);
    let announcement = data_dir.announce(&record, &session_key)?;
    tracing::info!(api.url = record.api, node.id = %node_id, node.name = config.name, p2p.listen = ?p2p, "serving");

    let stop = CancellationToken::new();
    let mut serving = pin!(server.serve(stop.clone()));
    // It serves already while a slow backend is asked for its models.
    let greeting = async {
        let models = backends.model_names().await;
        ready(Ready { api: record.api.clone(), node_id, models, p2p, open: config.p2p.open });
        std::future::pending::<()>().await;
    };
    let broken = tokio::select! {
        () = &mut serving => bail!("the HTTP server ended by itself"),
        error = mesh.ended() => Some(error),
        signal = signals.next() => {
            tracing::info!(?signal, "stopping; running answers may finish");
            None
        }
        () = greeting => None,
        () = follow(&announcement, record.clone(), listens) => None,
    };
    if let Some(error) = &broken {
        tracing::error!(error = format!("{error:#}"), "the node cannot go on; running answers may finish");
    }

    stop.cancel();
    drop(announcement);
    let stopped = async {
        // Own clients and other nodes have the same time for their answers; then the others hear the goodbye.
        tokio::join!(serving, mesh.drain(Duration::from_millis(config.api.limits.grace_ms)));
        mesh.stop().await;
        refresh.stop().await;
        if timeout(BACKENDS_STOP_LIMIT, backends.stop()).await.is_err() {
            tracing::warn!(limit_s = BACKENDS_STOP_LIMIT.as_secs(), "a backend did not stop in time");
        }
        machine.stop().await;
        drop(lock);
    };
    tokio::select! {
        () = stopped => tracing::info!("stopped"),
        second = signals.next() => {
            eprintln!("stopped at once");
            std::process::exit(second.exit_code().into());
        }
    }
    broken.map_or(Ok(()), Err)
}

/// Keeps what is told of this node true when the addresses that it listens on change: interfaces come and go. Never ends.
async fn follow(announcement: &Announcement, mut record: NodeRecord, mut listens: watch::Receiver<Vec<String>>) {
    while listens.changed().await.is_ok() {
        record.p2p = listens.borrow_and_update().clone();
        if let Err(error) = announcement.update(&record) {
            tracing::warn!(%error, "where this node listens for others could not be written down");
        }
    }
    std::future::pending::<()>().await;
}
