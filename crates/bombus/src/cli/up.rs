use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use super::Global;
use crate::node::{self, Ready};
use crate::telemetry;

/// Arguments of `bombus up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:7890]
    #[arg(long, value_name = "ADDR:PORT")]
    api: Option<SocketAddr>,
    /// What people call this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

pub(super) fn run(global: &Global, args: &UpArgs) -> Result<ExitCode> {
    let api = args.api.map(|address| address.to_string());
    let settings =
        global.settings(&[("--api", "api.listen", api.as_deref()), ("--name", "name", args.name.as_deref())])?;
    let _telemetry = telemetry::begin(&settings.config.log, &settings.config.log.level)?;
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
