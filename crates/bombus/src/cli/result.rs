//! `bombus result` and `bombus results`: what came of tasks.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use futures::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::tasks::show::{self, Task};
use super::tasks::{self, Asked};
use super::{Global, mesh, output};
use crate::failure::{Exit, Failure};
use crate::printable::one_line;

/// Results that are asked for at a time.
const AT_ONCE: usize = 16;

/// Arguments of `bombus result`.
#[derive(Debug, Args)]
pub(crate) struct ResultArgs {
    /// The id that bombus submit printed, on any machine of the swarm
    #[arg(value_name = "TASK", value_parser = NonEmptyStringValueParser::new())]
    id: String,
    /// Wait for the end of the task
    #[arg(long, short)]
    wait: bool,
    /// The task with its result as one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `bombus results`.
#[derive(Debug, Args)]
pub(crate) struct ResultsArgs {
    /// The id that bombus submit --file printed, on any machine of the swarm
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    batch: String,
    /// Wait for the end of all of its tasks
    #[arg(long, short)]
    wait: bool,
}

pub(super) fn run(global: &Global, args: &ResultArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    super::block_on(async {
        let data_dir = global.data_dir()?;
        let node = mesh::need_node(&data_dir).await?;
        let told = if args.wait {
            Asked::new(global, &data_dir, node).end_of(&args.id).await?
        } else {
            tasks::task(&node, &args.id, true).await?
        };
        tell(global, &told, args.json)
    })
}

/// Prints what came of a task: the answer on stdout, who gave it on stderr. A task without a result is an error.
pub(super) fn tell(global: &Global, told: &Value, as_json: bool) -> Result<ExitCode> {
    let task: Task = show::read(told.clone())?;
    if as_json {
        output::print_json(told)?;
    }
    if task.status != "completed" {
        return Err(tasks::without_result(&task).into());
    }
    if let Some(node) = task.sealed_to() {
        let message =
            format!("the answer is sealed: only the node that submitted the task, {}, can read it", one_line(node));
        return Err(Failure::new(Exit::Failure, message).hint("ask for it on that machine").into());
    }
    if !as_json {
        output::print(&task.answer())?;
        global.notice(&task.summary());
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn run_all(global: &Global, args: &ResultsArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    super::block_on(async {
        let data_dir = global.data_dir()?;
        let mut asked = Asked::new(global, &data_dir, mesh::need_node(&data_dir).await?);
        if args.wait {
            let list = asked.whole_batch(&args.batch).await?;
            let ids: Vec<&str> = list.iter().map(|task| task.task_id.as_str()).collect();
            wait_for(global, &mut asked, &ids).await?;
        }
        of_batch(global, &asked, &args.batch).await
    })
}

async fn known(asked: &Asked<'_>, batch: &str) -> Result<Vec<Task>> {
    let list = tasks::of_batch(asked.node(), batch).await?;
    if list.is_empty() { Err(tasks::no_batch(batch)) } else { Ok(list) }
}

/// Waits for the end of tasks, and shows how many have ended.
pub(super) async fn wait_for(global: &Global, asked: &mut Asked<'_>, ids: &[&str]) -> Result<()> {
    let bar = bar(global, ids.len(), "done");
    for id in ids {
        asked.end_of(id).await?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Makes a bar for people at a terminal; nobody else sees it.
pub(super) fn bar(global: &Global, length: usize, what: &'static str) -> ProgressBar {
    if global.quiet {
        return ProgressBar::hidden();
    }
    let style = "{msg} {wide_bar} {pos}/{len} {eta}";
    let style = ProgressStyle::with_template(style).expect("a constant that indicatif accepts");
    ProgressBar::new(length as u64).with_message(what).with_style(style)
}

/// Prints a line for each task of a batch, oldest first.
pub(super) async fn of_batch(global: &Global, asked: &Asked<'_>, batch: &str) -> Result<ExitCode> {
    let list = known(asked, batch).await?;
    let told = stream::iter(&list).map(|task| tasks::task(asked.node(), &task.task_id, true)).buffered(AT_ONCE);
    let mut told = std::pin::pin!(told);
    let (mut unfinished, mut failed, mut sealed) = (0, 0, None);
    while let Some(told) = told.next().await {
        let task: Task = show::read(told?)?;
        match task.status.as_str() {
            "completed" => {
                if let Some(node) = task.sealed_to() {
                    let (count, _) = sealed.get_or_insert_with(|| (0, one_line(node)));
                    *count += 1;
                }
            }
            "failed" | "cancelled" => failed += 1,
            _ => unfinished += 1,
        }
        if !output::print_piece(&task.line())? {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let count = list.len();
    let unheard = list.iter().filter_map(Task::batch_total).max().unwrap_or(0).saturating_sub(count);
    if let Some((sealed, node)) = &sealed {
        global.notice(&format!(
            "{sealed} of {count} answers are sealed; only the node that submitted them, {node}, can read them"
        ));
    }
    if failed > 0 {
        global.notice(&format!("{failed} of {count} tasks have no result; their lines say why"));
    }
    if unfinished > 0 {
        global.notice(&format!("{unfinished} of {count} tasks have not ended; --wait waits for them"));
    }
    if unheard > 0 {
        let total = count + unheard;
        global.notice(&format!(
            "this node knows {count} of the {total} tasks of the batch; the others have not come here yet"
        ));
    }
    if unfinished + unheard > 0 {
        return Ok(Exit::Unavailable.into());
    }
    Ok(if failed > 0 || sealed.is_some() { Exit::Failure.into() } else { ExitCode::SUCCESS })
}
