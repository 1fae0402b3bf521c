//! The node: its parts, put together.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bombus_core::identity::NodeId;
use bombus_http::{KeyStore, Metrics, NodeFacts, Server, Services};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::data_dir::{DataDir, NodeRecord};
use crate::platform::StopSignals;

mod backends;
mod machine;
mod supervised;

use machine::Machine;
use supervised::Supervised;

pub(crate) use backends::{RunningBackends, open_models};

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
}

/// Runs a node until it is told to stop. Its parts start in this order, each on those before it, and stop in reverse.
pub(crate) async fn run(config: &Config, data_dir: &DataDir, ready: impl FnOnce(Ready)) -> Result<()> {
    let started = Instant::now();
    let mut signals = StopSignals::listen().context("signals cannot be listened to")?;
    let lock = data_dir.lock().await?;
    let node_id = data_dir.node_key()?.node_id();
    let backends = RunningBackends::start(config, data_dir)?;
    let refresh = Supervised::start("refresh of the backends", backends.refresh());
    let metrics = Metrics::new();
    metrics.add_source(backends.samples());
    let machine = Machine::watch(data_dir.root());
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
    };
    let server = Server::bind(config.api.clone(), services).await?;
    let record = NodeRecord::of_this_process(server.local_addr(), node_id.clone(), config);
    let announcement = data_dir.announce(&record, &session_key)?;
    tracing::info!(api.url = record.api, node.id = %node_id, node.name = config.name, "serving");

    let stop = CancellationToken::new();
    let mut serving = pin!(server.serve(stop.clone()));
    // It serves already while a slow backend is asked for its models.
    let greeting = async {
        ready(Ready { api: record.api, node_id, models: backends.model_names().await });
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = &mut serving => bail!("the HTTP server ended by itself"),
        signal = signals.next() => tracing::info!(?signal, "stopping; running answers may finish"),
        () = greeting => {}
    }

    stop.cancel();
    drop(announcement);
    let stopped = async {
        serving.await;
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
    Ok(())
}
