use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use super::Global;
use crate::config::{BackendConfig, BackendKind};
use crate::node::{self, Ready};
use crate::{platform, telemetry};

/// Arguments of `bombus up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:7890]
    #[arg(long, value_name = "ADDR:PORT")]
    api: Option<String>,
    /// What people call this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Address to listen on for other nodes; may be given several times [default: port 7891 of every interface]
    #[arg(long, value_name = "ADDR:PORT")]
    p2p: Vec<String>,
    /// Another node to connect to, as /ip4/192.0.2.7/tcp/7891; may be given several times
    #[arg(long, value_name = "MULTIADDR")]
    seed: Vec<String>,
    /// Do not look for other nodes on the local network
    #[arg(long)]
    no_mdns: bool,
    /// Run without a swarm key: anybody who reaches this node may take part
    #[arg(long)]
    open: bool,
}

/// Returns how many threads the node's own work gets: half of the cores, since models need them, and threads that wake each other cost
/// each token more than a second thread gains. `TOKIO_WORKER_THREADS` is another number.
fn worker_threads() -> usize {
    let told = std::env::var("TOKIO_WORKER_THREADS").ok().and_then(|count| count.parse().ok());
    let half = || std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2);
    told.unwrap_or_else(half).max(1)
}

pub(super) fn run(global: &Global, args: &UpArgs) -> Result<ExitCode> {
    let several = |values: &[String]| (!values.is_empty()).then(|| values.join("\n"));
    let (p2p, seeds) = (several(&args.p2p), several(&args.seed));
    let settings = global.settings(&[
        ("--api", "api.listen", args.api.as_deref()),
        ("--name", "name", args.name.as_deref()),
        ("--p2p", "p2p.listen", p2p.as_deref()),
        ("--seed", "p2p.seeds", seeds.as_deref()),
        ("--no-mdns", "p2p.mdns", args.no_mdns.then_some("false")),
        ("--open", "p2p.open", args.open.then_some("true")),
    ])?;
    let _telemetry = telemetry::begin(&settings.config.log, &settings.config.log.level)?;
    match platform::raise_open_files_max() {
        Ok(limit) => tracing::debug!(open_files_max = limit, "as many open files as the system allows"),
        Err(error) => tracing::debug!(%error, "the limit of open files stays as it is"),
    }
    if settings.config.p2p.open {
        // Not a notice: --quiet does not silence it.
        eprintln!("{OPEN_WARNING}");
        tracing::warn!("{OPEN_WARNING}");
    }
    if let Some(notice) = without_engine(&settings.config.backends) {
        global.notice(&format!("note: {notice}"));
    }
    let data_dir = global.data_dir()?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(worker_threads()).enable_all();
    let runtime = runtime.build().context("the runtime cannot start")?;
    runtime.block_on(node::run(&settings, &data_dir, |ready| global.notice(&ready_lines(&ready))))?;
    Ok(ExitCode::SUCCESS)
}

const OPEN_WARNING: &str = "WARNING: this node is open: it runs without a swarm key, and anybody who reaches its port for other nodes may \
                            take part. That is for tests, and for networks that nobody else is in.";

/// Says where models come from in a build without the embedded engine, where nobody said it in the configuration.
fn without_engine(backends: &[BackendConfig]) -> Option<String> {
    let is_configured = backends.iter().any(|backend| !matches!(backend.kind, BackendKind::LocalOllama));
    if cfg!(feature = "embedded") || is_configured {
        return None;
    }
    let ollama = if backends.is_empty() { "" } else { "an Ollama on this machine, whenever one runs, and from " };
    Some(format!(
        "this build of bombus has no embedded engine, and no [[backends]] are configured: models come from {ollama}other \
         nodes"
    ))
}

fn ready_lines(ready: &Ready) -> String {
    let models = match ready.models.as_slice() {
        [] if cfg!(not(feature = "embedded")) => "none yet".to_owned(),
        [] => "no models yet (bombus models pull NAME)".to_owned(),
        models => models.join(", "),
    };
    let serves = format!(
        "bombus {} serves on {}, node {}, models: {models}",
        env!("CARGO_PKG_VERSION"),
        ready.api,
        ready.node_id
    );
    let joins = match (ready.open, ready.p2p.is_empty()) {
        (true, _) => "open swarm: another machine takes part with: bombus up --open --seed and an address of this one",
        (false, true) => "other nodes cannot reach this one: p2p.listen is empty",
        (false, false) => {
            "to add another machine: bombus invite here prints a ticket, bombus join TICKET there takes it"
        }
    };
    format!("{serves}\n{joins}")
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    fn ready() -> Ready {
        Ready {
            api: "http://127.0.0.1:7890".into(),
            node_id: NodeKey::from_secret(&[1; 32]).node_id(),
            models: Vec::new(),
            p2p: vec!["/ip4/192.0.2.7/tcp/7891".into()],
            open: false,
        }
    }

    #[test]
    fn how_another_machine_joins_is_one_line_and_no_ticket() {
        let lines = ready_lines(&ready());
        let (serves, joins) = lines.split_once('\n').unwrap();
        assert!(serves.contains("serves on http://127.0.0.1:7890"), "{serves}");
        assert!(joins.contains("bombus invite") && joins.contains("bombus join TICKET"), "{joins}");
        assert!(!joins.contains('\n') && !lines.contains("bombus1"), "{lines}");
        assert!(ready_lines(&Ready { open: true, ..ready() }).contains("--open --seed"));
        assert!(ready_lines(&Ready { p2p: Vec::new(), ..ready() }).contains("cannot reach"));
    }
}
