//! `bombus status`: how a task stands, and without one, how the node does.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use serde::Deserialize;
use serde_json::Value;

use super::tasks::show::{self, Task};
use super::{Global, mesh, output, tasks};
use crate::printable::one_line;

/// Arguments of `bombus status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The id that bombus submit printed, on any machine of the swarm; without one this node is shown
    #[arg(value_name = "TASK", value_parser = NonEmptyStringValueParser::new())]
    id: Option<String>,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(global: &Global, args: &StatusArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    let told: Value = super::block_on(async {
        let node = mesh::need_node(&global.data_dir()?).await?;
        match &args.id {
            Some(id) => tasks::task(&node, id, false).await,
            None => node.get("/status").await,
        }
    })?;
    if args.json {
        output::print_json(&told)?;
    } else if args.id.is_some() {
        output::print(&show::read::<Task>(told)?.text(output::width()))?;
    } else {
        output::print(&show::read::<Node>(told)?.text(output::width()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The node as it tells of itself.
#[derive(Debug, Deserialize)]
struct Node {
    node_id: String,
    hostname: String,
    version: String,
    uptime_seconds: f64,
    peers: usize,
    tasks_pending: u64,
    tasks_active: u64,
    task_store: Store,
    #[serde(default)]
    p2p: Listening,
}

/// Whether other nodes reach it.
#[derive(Debug, Default, Deserialize)]
struct Listening {
    problem: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Store {
    tasks: u64,
    entries: u64,
    stored_bytes: u64,
    #[serde(default)]
    refused: BTreeMap<String, u64>,
    #[serde(default)]
    history_lost: u64,
    generations: Vec<Generation>,
    database: Option<String>,
    address: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Generation {
    generation: u64,
    tasks: u64,
    unfinished: u64,
    stored_bytes: u64,
}

impl Node {
    fn text(&self, width: usize) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            text.push_str(&output::wrapped(&format!("{name:10} "), &one_line(value), width));
        };
        line("node", &format!("{}, {}, version {}", self.hostname, self.node_id, self.version));
        let up = Duration::from_secs_f64(self.uptime_seconds.clamp(0.0, 1e12));
        line("up", &format!("for {}, with {} other nodes", indicatif::HumanDuration(up), self.peers));
        if let Some(problem) = &self.p2p.problem {
            line("error", &format!("other nodes are not listened for at {problem}; that is tried again"));
        }
        line("work", &format!("{} tasks wait, {} answers and tasks run here", self.tasks_pending, self.tasks_active));
        let Store { tasks, entries, stored_bytes, refused, history_lost, generations, database, address } =
            &self.task_store;
        line("tasks", &format!("{tasks} kept, {entries} entries, {} on disk", output::size(*stored_bytes)));
        if !refused.is_empty() {
            let reasons: Vec<String> = refused.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            line("", &format!("entries that do not count: {}", reasons.join(", ")));
        }
        if *history_lost > 0 {
            line("", &format!("{history_lost} events are missing in the history: too many came at once"));
        }
        for (index, of) in generations.iter().enumerate() {
            let Generation { generation, tasks, unfinished, stored_bytes } = of;
            let open = if *unfinished > 0 { format!(" ({unfinished} not ended)") } else { String::new() };
            let words = format!("generation {generation}: {tasks} tasks{open}, {}", output::size(*stored_bytes));
            line(if index == 0 { "kept in" } else { "" }, &words);
        }
        if let (Some(database), Some(address)) = (database, address) {
            line("new go to", &format!("{database}, {address}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_shown_with_what_it_keeps() {
        let generation =
            |generation, unfinished| Generation { generation, tasks: 40, unfinished, stored_bytes: 3 << 20 };
        let node = Node {
            node_id: "12D3KooWSelf".into(),
            hostname: "bee\u{1b}".into(),
            version: "0.1.0".into(),
            uptime_seconds: 7_300.0,
            peers: 3,
            tasks_pending: 2,
            tasks_active: 1,
            task_store: Store {
                tasks: 80,
                entries: 300,
                stored_bytes: 7 << 20,
                refused: [("proof".to_owned(), 2), ("superseded".to_owned(), 1)].into(),
                history_lost: 4,
                generations: vec![generation(4, 2), generation(5, 0)],
                database: Some("swarm-tasks.5".into()),
                address: Some("/orbitdb/zdpu".into()),
            },
            p2p: Listening { problem: Some("/ip4/0.0.0.0/tcp/7891: another process listens there".into()) },
        };
        let text = node.text(200);
        for wanted in [
            "up         for 2 hours, with 3 other nodes\n",
            "error      other nodes are not listened for at /ip4/0.0.0.0/tcp/7891: another process listens there; that is tried again\n",
            "work       2 tasks wait, 1 answers and tasks run here\n",
            "tasks      80 kept, 300 entries, 7.00 MiB on disk\n           entries that do not count: 2 proof, 1 superseded\n",
            "           4 events are missing in the history: too many came at once\n",
            "kept in    generation 4: 40 tasks (2 not ended), 3.00 MiB\n           generation 5: 40 tasks, 3.00 MiB\n",
            "new go to  swarm-tasks.5, /orbitdb/zdpu\n",
        ] {
            assert!(text.contains(wanted), "{text}\nlacks {wanted:?}");
        }
        assert!(!text.contains('\u{1b}'));
    }
}
