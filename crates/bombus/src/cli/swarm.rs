//! `bombus swarm`: the swarm at a glance.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::{Global, mesh, output};
use crate::printable::one_line;

/// Arguments of `bombus swarm`.
#[derive(Debug, Args)]
pub(crate) struct SwarmArgs {
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// What the node tells.
#[derive(Debug, Deserialize)]
struct Overview {
    swarm_id: String,
    open: bool,
    generation: u64,
    owner: bool,
    listen: Vec<String>,
    nodes: Counts,
    tiers: BTreeMap<String, usize>,
    models: Vec<Places>,
    running: u32,
    slots: u32,
    cpu_usage_percent: Option<f64>,
    #[serde(default)]
    paused: Vec<String>,
    #[serde(default)]
    draining: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Counts {
    alive: usize,
    suspect: usize,
    gone: usize,
}

#[derive(Debug, Deserialize)]
struct Places {
    name: String,
    nodes: Vec<String>,
}

pub(super) fn run(global: &Global, args: &SwarmArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    let told: Value = super::block_on(async {
        let node = mesh::need_node(&global.data_dir()?).await?;
        if !args.json {
            mesh::tell_left_behind(global, &node).await?;
        }
        node.get("/swarm").await
    })?;
    if args.json {
        output::print_json(&told)?;
    } else {
        let overview: Overview =
            serde_json::from_value(told).context("what the node tells of the swarm is not understood")?;
        output::print(&overview.text(output::width()))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Overview {
    fn text(&self, width: usize) -> String {
        let mut lines: Vec<(&str, String)> = vec![("swarm", self.swarm())];
        let others = [(self.nodes.suspect, "suspect"), (self.nodes.gone, "gone")];
        let others = others.iter().filter(|(count, _)| *count > 0).map(|(count, state)| format!(", {count} {state}"));
        lines.push(("nodes", format!("{} alive{}", self.nodes.alive, others.collect::<String>())));
        let tiers: Vec<String> = self.tiers.iter().map(|(tier, count)| format!("{count} {}", one_line(tier))).collect();
        lines.push(("tiers", tiers.join(", ")));
        let busy = self.cpu_usage_percent.map(|percent| format!(", processors {percent:.0}% busy")).unwrap_or_default();
        let running = match self.slots {
            0 => format!("{} answers are being generated", self.running),
            slots => format!("{} of {slots} answers at a time", self.running),
        };
        lines.push(("load", format!("{running}{busy}")));
        for (name, nodes) in [("paused", &self.paused), ("draining", &self.draining)] {
            if !nodes.is_empty() {
                lines.push((name, one_line(&nodes.join(", "))));
            }
        }
        for (index, model) in self.models.iter().enumerate() {
            let place = one_line(&format!("{} on {}", model.name, model.nodes.join(", ")));
            lines.push((if index == 0 { "models" } else { "" }, place));
        }
        if self.models.is_empty() {
            lines.push(("models", "none yet; bombus models pull NAME".to_owned()));
        }
        for (index, address) in self.listen.iter().enumerate() {
            lines.push((if index == 0 { "listens" } else { "" }, address.clone()));
        }
        lines.iter().map(|(name, value)| output::wrapped(&format!("{name:8} "), value, width)).collect()
    }

    fn swarm(&self) -> String {
        if self.open {
            return "open: anybody who reaches this node may take part".to_owned();
        }
        let owner = if self.owner { ", with the owner key here" } else { "" };
        let key = match self.generation {
            0 => "its first key".to_owned(),
            generation => format!("key changed {generation} times"),
        };
        format!("{}, closed, {key}{owner}", self.swarm_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overview() -> Overview {
        Overview {
            swarm_id: "abcdefghijklmnop".into(),
            open: false,
            generation: 2,
            owner: true,
            listen: vec!["/ip4/192.0.2.7/tcp/7891/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN".into()],
            nodes: Counts { alive: 2, suspect: 0, gone: 1 },
            tiers: BTreeMap::from([("light".into(), 1), ("specialist".into(), 1)]),
            models: vec![
                Places { name: "qwen3:8b".into(), nodes: vec!["bee".into(), "hive".into()] },
                Places { name: "smollm2:135m".into(), nodes: vec!["bee".into()] },
            ],
            running: 2,
            slots: 12,
            cpu_usage_percent: Some(31.25),
            paused: vec!["hive".into()],
            draining: Vec::new(),
        }
    }

    #[test]
    fn the_overview_names_nodes_tiers_models_and_load() {
        let text = overview().text(80);
        for wanted in [
            "swarm    abcdefghijklmnop, closed, key changed 2 times, with the owner key here\n",
            "nodes    2 alive, 1 gone\n",
            "tiers    1 light, 1 specialist\n",
            "load     2 of 12 answers at a time, processors 31% busy\n",
            "paused   hive\n",
            "models   qwen3:8b on bee, hive\n         smollm2:135m on bee\n",
        ] {
            assert!(text.contains(wanted), "{text}\nlacks {wanted:?}");
        }
    }

    #[test]
    fn an_open_swarm_is_called_so() {
        assert!(Overview { open: true, ..overview() }.text(80).contains("open: anybody"));
    }
}
