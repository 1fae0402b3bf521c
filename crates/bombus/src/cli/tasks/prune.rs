//! `bombus tasks prune`: what need not be kept any longer of tasks goes at once.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::show;
use crate::cli::{Global, mesh, output};
use crate::printable::one_line;

/// Arguments of `bombus tasks prune`.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Tasks that ended so long ago may go, for example 7d, 12h, 30m or 0s [default: tasks.retain_s of the configuration]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    older_than: Option<u64>,
    /// Of more tasks than these the oldest may go, too [default: tasks.keep of the configuration]
    #[arg(long, value_name = "N")]
    keep: Option<u64>,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// What the node tells.
#[derive(Debug, Deserialize)]
struct Pruned {
    dry_run: bool,
    tasks: u64,
    bytes: u64,
    begun: Option<u64>,
    dropped: Vec<Dropped>,
    kept: Vec<Kept>,
}

#[derive(Debug, Deserialize)]
struct Dropped {
    generation: u64,
    tasks: u64,
    bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Kept {
    generation: u64,
    tasks: u64,
    why: String,
    unfinished: u64,
    task_ids: Vec<String>,
}

pub(super) fn run(global: &Global, args: &PruneArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    let wanted = json!({ "older_than_seconds": args.older_than, "keep": args.keep, "dry_run": args.dry_run });
    let told: Value = crate::cli::block_on(async {
        let node = mesh::need_node(&global.data_dir()?).await?;
        node.post("/tasks/prune", &wanted).await
    })?;
    if args.json {
        output::print_json(&told)?;
    } else {
        output::print(&show::read::<Pruned>(told)?.text(output::width()))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Pruned {
    fn text(&self, width: usize) -> String {
        let (goes, is_free) = if self.dry_run { ("would go", "would be free") } else { ("went", "are free") };
        let mut text = String::new();
        if self.dropped.is_empty() {
            text += if self.dry_run { "nothing would go\n" } else { "nothing went\n" };
        } else {
            text += &format!("{} {goes}, {} {is_free}\n", tasks(self.tasks), output::size(self.bytes));
        }
        let mut line = |generation: u64, words: &str| {
            text += &output::wrapped(&format!("  generation {generation}: "), &one_line(words), width);
        };
        for Dropped { generation, tasks: count, bytes } in &self.dropped {
            line(*generation, &format!("{goes}, {}, {}", tasks(*count), output::size(*bytes)));
        }
        for kept in &self.kept {
            line(kept.generation, &kept.words());
        }
        if let Some(begun) = self.begun {
            line(begun, if self.dry_run { "would begin" } else { "has begun; new tasks go to it" });
        }
        text
    }
}

impl Kept {
    fn words(&self) -> String {
        let why = match self.why.as_str() {
            "newest" => "new tasks go to it".to_owned(),
            "unfinished" => {
                let named = self.task_ids.join(", ");
                let more = if self.unfinished > self.task_ids.len() as u64 { ", and others" } else { "" };
                format!("{} of them not settled or still needed: {named}{more}", self.unfinished)
            }
            "young" => "the last one ended not long enough ago".to_owned(),
            "just_opened" => "it came here a short time ago, and more of it may come".to_owned(),
            "busy" => "not all nodes have the next one yet; the node tries again within the hour".to_owned(),
            other => other.to_owned(),
        };
        format!("stays, {}; {why}", tasks(self.tasks))
    }
}

fn tasks(count: u64) -> String {
    if count == 1 { "1 task".to_owned() } else { format!("{count} tasks") }
}

/// Reads a time such as `7d`, in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let unit_at = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit_s = match unit {
        "d" => 86_400,
        "h" => 3_600,
        "m" => 60,
        "s" => 1,
        _ => return Err("a time is a number with d, h, m or s behind it, as in 7d".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| format!("{number:?} is no number of a time such as 7d"))?;
    number.checked_mul(unit_s).ok_or_else(|| "nothing is that old".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        let read = ["7d", "12h", "30m", "0s"].map(|text| seconds(text).unwrap());
        assert_eq!(read, [604_800, 43_200, 1_800, 0]);
        for wrong in ["", "7", "d", "-1d", "7 d", "1w", "1d2h", "99999999999999999999d", "9999999999999999999d"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn it_says_what_went_and_why_the_rest_stays() {
        let kept = |generation, why: &str, unfinished, task_ids: &[&str]| Kept {
            generation,
            tasks: 3,
            why: why.into(),
            unfinished,
            task_ids: task_ids.iter().map(|id| (*id).to_owned()).collect(),
        };
        let mut pruned = Pruned {
            dry_run: false,
            tasks: 7,
            bytes: 3 << 20,
            begun: Some(4),
            dropped: vec![Dropped { generation: 1, tasks: 7, bytes: 3 << 20 }],
            kept: vec![kept(2, "unfinished", 3, &["a", "b"]), kept(3, "young", 0, &[])],
        };
        let text = pruned.text(200);
        for wanted in [
            "7 tasks went, 3.00 MiB are free\n",
            "generation 1: went, 7 tasks, 3.00 MiB\n",
            "generation 2: stays, 3 tasks; 3 of them not settled or still needed: a, b, and others\n",
            "generation 3: stays, 3 tasks; the last one ended not long enough ago\n",
            "generation 4: has begun; new tasks go to it\n",
        ] {
            assert!(text.contains(wanted), "{text}\nlacks {wanted:?}");
        }
        (pruned.dry_run, pruned.dropped) = (true, Vec::new());
        assert!(pruned.text(200).starts_with("nothing would go\n"));
    }
}
