//! `bombus status`: how a task stands.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::tasks::show::{self, Task};
use super::{Global, mesh, output, tasks};

/// Arguments of `bombus status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The id that bombus submit printed, on any machine of the swarm
    #[arg(value_name = "TASK")]
    id: String,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(global: &Global, args: &StatusArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    let told = super::block_on(async {
        let node = mesh::need_node(&global.data_dir()?).await?;
        tasks::task(&node, &args.id, false).await
    })?;
    if args.json {
        output::print_json(&told)?;
    } else {
        output::print(&show::read::<Task>(told)?.text(output::width()))?;
    }
    Ok(ExitCode::SUCCESS)
}
