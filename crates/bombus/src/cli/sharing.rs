//! `bombus pause`, `resume`, `drain` and `undrain`: whether the running node works for the others.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Global, mesh, output};
use crate::node_client::NodeClient;

/// Time between two looks of `drain --wait`.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Arguments of `bombus pause`, `resume` and `undrain`.
#[derive(Debug, Args)]
pub(crate) struct SharingArgs {
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `bombus drain`.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// Come back only when nothing runs for other nodes any more
    #[arg(long)]
    wait: bool,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// How the node stands to the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    paused: bool,
    draining: bool,
    running: u32,
    waiting: u32,
    serve: bool,
    /// What else the node tells.
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

pub(super) fn pause(global: &Global, args: &SharingArgs) -> Result<ExitCode> {
    change(global, "pause", args.json, false)
}

pub(super) fn resume(global: &Global, args: &SharingArgs) -> Result<ExitCode> {
    change(global, "resume", args.json, false)
}

pub(super) fn drain(global: &Global, args: &DrainArgs) -> Result<ExitCode> {
    change(global, "drain", args.json, args.wait)
}

pub(super) fn undrain(global: &Global, args: &SharingArgs) -> Result<ExitCode> {
    change(global, "undrain", args.json, false)
}

fn change(global: &Global, what: &str, as_json: bool, wait: bool) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    let state = super::block_on(async {
        let node = mesh::need_node(&global.data_dir()?).await?;
        let state: State = node.post(&format!("/node/{what}"), &json!({})).await?;
        if wait { until_idle(global, &node, state).await } else { Ok(state) }
    })?;
    if as_json {
        output::print_json(&state)?;
    } else {
        output::print(&format!("{}\n", state.line()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until nothing runs for others, or the drain is ended.
async fn until_idle(global: &Global, node: &NodeClient, mut state: State) -> Result<State> {
    if state.work() > 0 {
        global.notice(&format!("{}; Ctrl-C stops waiting, not the drain", state.line()));
    }
    while state.draining && state.work() > 0 {
        tokio::time::sleep(LOOK_INTERVAL).await;
        state = node.get("/node/sharing").await?;
    }
    Ok(state)
}

impl State {
    /// Counts the requests of others that are not answered yet.
    fn work(&self) -> u32 {
        self.running.saturating_add(self.waiting)
    }

    /// Says in a line how it stands.
    fn line(&self) -> String {
        let stands = match (self.draining, self.paused, self.serve) {
            (true, ..) => "draining: it takes no more requests of other nodes; bombus undrain ends that",
            (false, true, _) => "paused: it takes no more requests of other nodes; bombus resume ends that",
            (false, false, true) => "it answers for the other nodes",
            (false, false, false) => "it answers for no other node, as 'share.serve' says",
        };
        match self.work() {
            0 => stands.to_owned(),
            1 => format!("{stands} (1 request of theirs is not finished)"),
            work => format!("{stands} ({work} requests of theirs are not finished)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(draining: bool, paused: bool, running: u32) -> State {
        State { paused, draining, running, waiting: 0, serve: true, rest: serde_json::Map::new() }
    }

    #[test]
    fn how_it_stands_is_said_in_a_line() {
        for (state, wanted) in [
            (state(false, false, 0), "it answers for the other nodes"),
            (state(false, true, 0), "paused: it takes no more requests of other nodes; bombus resume ends that"),
            (
                state(true, true, 1),
                "draining: it takes no more requests of other nodes; bombus undrain ends that (1 request of theirs is not finished)",
            ),
            (State { serve: false, ..state(false, false, 0) }, "it answers for no other node, as 'share.serve' says"),
        ] {
            assert_eq!(state.line(), wanted);
        }
    }

    #[test]
    fn what_this_version_does_not_know_is_shown_too() {
        let told = json!({
            "paused": true, "draining": false, "running": 0, "waiting": 0, "serve": true, "models": [], "later": 7,
        });
        let state: State = serde_json::from_value(told.clone()).unwrap();
        assert_eq!(serde_json::to_value(&state).unwrap(), told);
    }
}
