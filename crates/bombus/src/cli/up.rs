use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use super::Global;
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
}

pub(super) fn run(global: &Global, args: &UpArgs) -> Result<ExitCode> {
    let settings =
        global.settings(&[("--api", "api.listen", args.api.as_deref()), ("--name", "name", args.name.as_deref())])?;
    let _telemetry = telemetry::begin(&settings.config.log, &settings.config.log.level)?;
    match platform::raise_open_files_max() {
        Ok(limit) => tracing::debug!(open_files_max = limit, "as many open files as the system allows"),
        Err(error) => tracing::debug!(%error, "the limit of open files stays as it is"),
    }
    let data_dir = global.data_dir()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime cannot start")?;
    runtime.block_on(node::run(&settings.config, &data_dir, |ready| global.notice(&ready_line(&ready))))?;
    Ok(ExitCode::SUCCESS)
}

fn ready_line(ready: &Ready) -> String {
    let models = match ready.models.as_slice() {
        [] => "no models yet (bombus models pull NAME)".to_owned(),
        models => models.join(", "),
    };
    format!("bombus {} serves on {}, node {}, models: {models}", env!("CARGO_PKG_VERSION"), ready.api, ready.node_id)
}
