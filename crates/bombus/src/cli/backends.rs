use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::answerer::{Answerer, NO_BACKEND};
use super::{Global, output};
use crate::node::RunningBackends;
use crate::node_client::NodeClient;

/// Arguments of `bombus backends`.
#[derive(Debug, Args)]
pub(crate) struct BackendsArgs {
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// The backends, and whose they are.
#[derive(Debug, Serialize)]
struct Shown {
    /// The node's id; none where this process looked for itself.
    node: Option<String>,
    backends: Vec<State>,
}

/// What the node tells.
#[derive(Debug, Deserialize)]
struct Told {
    backends: Vec<State>,
}

/// How a backend is.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) name: String,
    pub(super) kind: String,
    /// Id of the node that it stands for, where that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<String>,
    /// What people call that node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) node_name: Option<String>,
    /// How that node is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) peer: Option<PeerNow>,
    pub(super) ready: bool,
    pub(super) error: Option<String>,
    pub(super) breaker: String,
    pub(super) retry_ms: Option<u64>,
    pub(super) running: u32,
    pub(super) waiting: u32,
    pub(super) max_concurrent: Option<u32>,
    pub(super) first_token_ms: Option<f64>,
    pub(super) tokens_per_second: Option<f64>,
    pub(super) models: usize,
}

pub(super) fn run(global: &Global, args: &BackendsArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    let shown = super::block_on(async {
        let data_dir = global.data_dir()?;
        let answerer = Answerer::find(&settings, &data_dir).await?;
        let node = answerer.node_id().map(str::to_owned);
        let backends = states(&answerer).await;
        answerer.stop().await;
        Ok(Shown { node, backends: backends? })
    })?;
    if args.json {
        output::print_json(&shown)?;
    } else {
        if shown.backends.is_empty() {
            global.notice(NO_BACKEND);
        } else if shown.node.is_none() {
            global.notice("no node runs; each backend was asked once");
        }
        output::print(&table(&shown.backends))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks the node how its backends are, or each backend once where none runs.
pub(super) async fn states(answerer: &Answerer) -> Result<Vec<State>> {
    match answerer {
        Answerer::Node(node) => states_of(node).await,
        Answerer::Here(running) => look(running).await,
    }
}

/// Asks a node how its backends are, other nodes included.
pub(super) async fn states_of(node: &NodeClient) -> Result<Vec<State>> {
    Ok(node.get::<Told>("/backends").await?.backends)
}

async fn look(running: &RunningBackends) -> Result<Vec<State>> {
    // Asking for the models shows whether a backend can be reached and takes the key.
    running.backends().models().await;
    let states = serde_json::to_value(running.backends().states()).context("states are plain data")?;
    Ok(serde_json::from_value(states)?)
}

/// How another node is.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PeerNow {
    pub(super) reachable: bool,
    #[serde(default)]
    pub(super) paused: bool,
    #[serde(default)]
    pub(super) draining: bool,
    /// What else the node tells.
    #[serde(flatten)]
    pub(super) rest: serde_json::Map<String, serde_json::Value>,
}

impl PeerNow {
    /// Says why it takes no requests, where it takes none.
    fn refuses(&self) -> Option<&'static str> {
        match self {
            Self { reachable: false, .. } => Some("not connected"),
            Self { draining: true, .. } => Some("draining, it is about to go"),
            Self { paused: true, .. } => Some("paused by its owner"),
            _ => None,
        }
    }
}

impl State {
    /// Names it: a backend, or another node.
    fn shown(&self) -> String {
        self.node_name.as_deref().map_or_else(|| self.name.clone(), |node| format!("node {node}"))
    }

    fn words(&self) -> String {
        if let Some(refuses) = self.peer.as_ref().and_then(PeerNow::refuses) {
            return refuses.to_owned();
        }
        let because = self.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
        match (self.ready, self.breaker.as_str()) {
            (true, "closed") if self.models == 0 => "no models".to_owned(),
            (true, "closed") if self.error.is_some() => format!("ready, but last{because}"),
            (true, "closed") => "ready".to_owned(),
            (true, _) => format!("being tried again{because}"),
            (false, "open") => {
                let seconds = self.retry_ms.unwrap_or(0).div_ceil(1_000);
                format!("resting, tried again in {seconds} s{because}")
            }
            (false, _) => format!("down{because}"),
        }
    }
}

fn table(states: &[State]) -> String {
    let measured =
        |value: Option<f64>, unit: &str| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0} {unit}"));
    let rows = states.iter().map(|state| {
        let slots = state.max_concurrent.map(|slots| format!(" of {slots}")).unwrap_or_default();
        let waiting = if state.waiting > 0 { format!(", {} wait", state.waiting) } else { String::new() };
        [
            state.shown(),
            state.kind.clone(),
            state.models.to_string(),
            format!("{}{slots}{waiting}", state.running),
            measured(state.first_token_ms, "ms"),
            measured(state.tokens_per_second, "tok/s"),
            state.words(),
        ]
    });
    output::table(["NAME", "KIND", "MODELS", "RUNNING", "FIRST TOKEN", "SPEED", "STATE"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(ready: bool, breaker: &str, error: Option<&str>) -> State {
        State {
            name: "a".to_owned(),
            kind: "openai".to_owned(),
            node: None,
            node_name: None,
            peer: None,
            ready,
            error: error.map(str::to_owned),
            breaker: breaker.to_owned(),
            retry_ms: Some(1_500),
            running: 2,
            waiting: 1,
            max_concurrent: Some(4),
            first_token_ms: Some(12.3),
            tokens_per_second: None,
            models: 1,
        }
    }

    #[test]
    fn another_node_is_shown_by_its_name_and_why_it_takes_no_requests() {
        let paused = PeerNow { reachable: true, paused: true, draining: false, rest: serde_json::Map::new() };
        let state = State { node_name: Some("hive".into()), peer: Some(paused), ..state(false, "closed", None) };
        assert_eq!((state.shown().as_str(), state.words().as_str()), ("node hive", "paused by its owner"));
    }

    #[test]
    fn a_backend_that_does_not_work_says_why() {
        assert_eq!(state(true, "closed", None).words(), "ready");
        assert_eq!(state(true, "closed", Some("refused")).words(), "ready, but last: refused");
        assert_eq!(state(false, "open", Some("refused")).words(), "resting, tried again in 2 s: refused");
        assert_eq!(state(false, "closed", Some("refused")).words(), "down: refused");
        let line = |state: State| {
            let table = table(&[state]);
            table.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line(state(true, "closed", None)), "a openai 1 2 of 4, 1 wait 12 ms - ready");
        let evil = state(false, "closed", Some("\u{1b}[2Jno\r"));
        assert!(line(evil).ends_with(" down: [2Jno"), "a server's words control nothing");
    }
}
