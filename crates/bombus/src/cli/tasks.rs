//! `bombus tasks`, and what all commands about durable tasks have in common.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::answerer::running_node;
use super::peers::now_unix_s;
use super::{Global, mesh, output};
use crate::data_dir::DataDir;
use crate::failure::{Exit, Failure};
use crate::node_client::{NodeClient, Refusal, encoded};
use crate::printable::one_line;

mod prune;
pub(super) mod show;

use show::{Page, Task};

/// Time between two looks of `--watch`, and between two looks for a node that went away.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the node is asked to wait before it is asked again. A task that has ended by then is taken as it is, settled or not.
const WAIT_S: u32 = 10;
/// How long a task is waited for of which the node has not heard: it was submitted at another one just now.
const UNHEARD_LIMIT: Duration = Duration::from_secs(10);
/// Most tasks that a node lists at a time.
const PAGE_MAX: u64 = 1_000;

/// Arguments of `bombus tasks`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct TasksArgs {
    #[command(subcommand)]
    command: Option<TasksCommand>,
    /// Only those that are so far
    #[arg(long, value_name = "STATUS", ignore_case = true)]
    status: Option<Status>,
    /// Only those that were submitted at this node
    #[arg(long)]
    mine: bool,
    /// Only those of this batch
    #[arg(long, value_name = "ID")]
    batch: Option<String>,
    /// At most so many, the newest
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=PAGE_MAX))]
    amount: u64,
    /// Show them again when something changes, until Ctrl-C
    #[arg(long, short)]
    watch: bool,
    /// As one JSON object; with --watch as one on each line
    #[arg(long)]
    json: bool,
}

/// What else is done with all tasks.
#[derive(Debug, Subcommand)]
enum TasksCommand {
    /// Let go what need not be kept any longer of tasks that have ended, on this machine; by itself the node does so each hour
    Prune(prune::PruneArgs),
}

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Status {
    /// It waits
    Pending,
    /// A node works on it
    Running,
    /// There is a result
    Completed,
    /// All attempts failed
    Failed,
    /// It was cancelled
    Cancelled,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

pub(super) fn run(global: &Global, args: &TasksArgs) -> Result<ExitCode> {
    if let Some(TasksCommand::Prune(args)) = &args.command {
        return prune::run(global, args);
    }
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    super::block_on(async {
        let node = mesh::need_node(&global.data_dir()?).await?;
        if args.watch { watch(&node, args).await } else { show_once(global, &node, args).await }
    })
}

async fn show_once(global: &Global, node: &NodeClient, args: &TasksArgs) -> Result<ExitCode> {
    let told = listed(node, args).await?;
    if args.json {
        output::print_json(&told)?;
        return Ok(ExitCode::SUCCESS);
    }
    let page: Page = show::read(told)?;
    if page.tasks.is_empty() {
        global.notice("no such tasks; bombus submit makes one");
    }
    output::print(&show::table(&page.tasks, now_unix_s()))?;
    if page.next.is_some() {
        global.notice("there are more; -n N shows more of them");
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows the tasks until nobody reads them any more. A terminal shows the present state, anything else gets what changes.
async fn watch(node: &NodeClient, args: &TasksArgs) -> Result<ExitCode> {
    let on_terminal = std::io::stdout().is_terminal() && !args.json;
    let mut watched = output::Watched::default();
    let mut before: Option<Vec<Task>> = None;
    loop {
        let told = listed(node, args).await?;
        let page: Page = show::read(told.clone())?;
        let steady: Vec<Task> = page.tasks.iter().map(Task::steady).collect();
        let changed = before.as_ref() != Some(&steady);
        let shown = if args.json {
            format!("{told}\n")
        } else {
            let text = show::table(&page.tasks, now_unix_s());
            if text.is_empty() { "no such tasks\n".to_owned() } else { text }
        };
        if (changed || on_terminal) && !watched.show(&shown, on_terminal, !args.json)? {
            return Ok(ExitCode::SUCCESS);
        }
        before = Some(steady);
        sleep(LOOK_INTERVAL).await;
    }
}

/// Asks for as many tasks as are wanted. Where few among many fit, the node tells them in several parts.
async fn listed(node: &NodeClient, args: &TasksArgs) -> Result<Value> {
    let status = args.status.map(|status| format!("&status={}", status.name())).unwrap_or_default();
    let batch = args.batch.as_ref().map(|batch| format!("&batch={}", encoded(batch))).unwrap_or_default();
    let mut found: Vec<Value> = Vec::new();
    let mut after = String::new();
    loop {
        let wanted = args.amount.saturating_sub(found.len() as u64);
        let path = format!("/tasks?limit={wanted}&mine={}{status}{batch}{after}", args.mine);
        let Part { tasks, next } = show::read(node.get(&path).await?)?;
        found.extend(tasks);
        match next {
            Some(next) if (found.len() as u64) < args.amount => after = format!("&cursor={}", encoded(&next)),
            next => return Ok(json!({ "tasks": found, "next": next })),
        }
    }
}

/// A part of the list of tasks as the node tells it.
#[derive(Deserialize)]
struct Part {
    tasks: Vec<Value>,
    next: Option<String>,
}

/// Returns all tasks of a batch, oldest first.
pub(super) async fn of_batch(node: &NodeClient, batch: &str) -> Result<Vec<Task>> {
    let (mut tasks, mut cursor) = (Vec::new(), None);
    loop {
        let after = cursor.map(|cursor: String| format!("&cursor={}", encoded(&cursor))).unwrap_or_default();
        let path = format!("/tasks?limit={PAGE_MAX}&batch={}{after}", encoded(batch));
        let page: Page = show::read(node.get(&path).await?)?;
        tasks.extend(page.tasks);
        cursor = page.next;
        if cursor.is_none() {
            tasks.reverse();
            return Ok(tasks);
        }
    }
}

/// Returns a task as the node tells it, on demand with what came of it.
pub(super) async fn task(node: &NodeClient, id: &str, result: bool) -> Result<Value> {
    node.get(&format!("/task/{}?result={result}", encoded(id))).await
}

/// The running node, asked again when it comes back.
pub(super) struct Asked<'a> {
    global: &'a Global,
    data_dir: &'a DataDir,
    node: NodeClient,
    told: bool,
}

impl<'a> Asked<'a> {
    pub(super) fn new(global: &'a Global, data_dir: &'a DataDir, node: NodeClient) -> Self {
        Self { global, data_dir, node, told: false }
    }

    /// Returns the node.
    pub(super) fn node(&self) -> &NodeClient {
        &self.node
    }

    /// Waits until the node knows all tasks of a batch, as long as they come, and returns those that it knows.
    pub(super) async fn whole_batch(&mut self, batch: &str) -> Result<Vec<Task>> {
        let (mut known, mut since) = (0, Instant::now());
        loop {
            let list = of_batch(&self.node, batch).await?;
            let total = list.iter().filter_map(Task::batch_total).max();
            if list.len() > known {
                (known, since) = (list.len(), Instant::now());
            }
            let is_whole = known > 0 && total.is_none_or(|total| known >= total);
            if is_whole || since.elapsed() >= UNHEARD_LIMIT {
                return if list.is_empty() { Err(no_batch(batch)) } else { Ok(list) };
            }
            sleep(LOOK_INTERVAL / 4).await;
        }
    }

    /// Waits for the end of a task, and returns it with what came of it. A node that goes away meanwhile is waited for.
    pub(super) async fn end_of(&mut self, id: &str) -> Result<Value> {
        let path = format!("/task/{}?wait={WAIT_S}", encoded(id));
        let begun = Instant::now();
        loop {
            match self.node.get::<Value>(&path).await {
                Ok(told) if show::has_ended(&told) => return Ok(told),
                Ok(_) => {}
                Err(error) => {
                    let refusal = error.downcast_ref::<Refusal>();
                    let unheard = refusal.is_some_and(|refusal| refusal.status == 404);
                    let passes = refusal.is_none_or(|refusal| refusal.status == 503);
                    if unheard && begun.elapsed() < UNHEARD_LIMIT {
                        sleep(LOOK_INTERVAL / 4).await;
                    } else if passes {
                        self.come_back().await;
                    } else {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Waits for a node that went away. It may have another address when it comes back.
    async fn come_back(&mut self) {
        loop {
            sleep(LOOK_INTERVAL).await;
            // One that is starting or stopping does not answer for a while, which is no error here.
            if let Ok(Some(node)) = running_node(self.data_dir).await {
                self.node = node;
                return;
            }
            if !std::mem::replace(&mut self.told, true) {
                self.global.notice("the node went away; waiting for it to come back");
            }
        }
    }
}

/// Says that the node knows of no such batch.
pub(super) fn no_batch(batch: &str) -> anyhow::Error {
    let batch = one_line(batch);
    let failure = Failure::new(Exit::NotFound, format!("this node knows of no batch '{batch}'"));
    failure.hint("bombus tasks lists the tasks that it knows").into()
}

/// Says why a task has no result.
pub(super) fn without_result(task: &Task) -> Failure {
    let id = &task.task_id;
    match task.status.as_str() {
        "failed" => {
            let why = task.error.as_deref().unwrap_or("its requester says so");
            Failure::new(Exit::Failure, format!("the task failed: {}", one_line(why)))
                .hint(format!("bombus status {id} shows its attempts"))
        }
        "cancelled" => Failure::new(Exit::Failure, "the task was cancelled"),
        status => {
            let waits = task.waiting.as_ref().map(|why| format!(": {}", one_line(why)));
            let message = format!("the task is {status}, and has no result yet{}", waits.unwrap_or_default());
            Failure::new(Exit::Unavailable, message).hint(format!("bombus result {id} --wait waits for it"))
        }
    }
}
