//! `bombus cancel`: the end of a task, wherever it runs.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use reqwest::Method;
use serde_json::Value;

use super::tasks::show::{self, Task};
use super::{Global, mesh, output};
use crate::failure::{Exit, Failure};
use crate::node_client::encoded;

/// Arguments of `bombus cancel`.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// The id that bombus submit printed, on any machine of the swarm
    #[arg(value_name = "TASK", value_parser = NonEmptyStringValueParser::new())]
    id: String,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(global: &Global, args: &CancelArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    let told: Value = super::block_on(async {
        let node = mesh::need_node(&global.data_dir()?).await?;
        let response = node.send(Method::DELETE, &format!("/task/{}", encoded(&args.id)), None).await?;
        response.json().await.map_err(|error| {
            Failure::new(Exit::Unavailable, format!("the node broke off: {error}"))
                .hint("bombus status TASK says how it stands")
                .into()
        })
    })?;
    if args.json {
        output::print_json(&told)?;
        return Ok(ExitCode::SUCCESS);
    }
    let task: Task = show::read(told)?;
    global.notice(&match task.status.as_str() {
        "cancelled" => format!("{} is cancelled", args.id),
        "completed" | "failed" => format!("{} has ended already: it is {}", args.id, task.status),
        _ => format!("{} is being cancelled; its requester says so when it is back", args.id),
    });
    Ok(ExitCode::SUCCESS)
}
