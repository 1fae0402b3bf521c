//! Models at other nodes: the running node has them fetched or removed there.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use indicatif::MultiProgress;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

use super::WhereArgs;
use super::progress::Progress;
use crate::cli::answerer::running_node;
use crate::cli::{Global, output};
use crate::failure::{Exit, Failure};
use crate::node_client::NodeClient;
use crate::platform::StopSignals;

/// Longest accepted line of the steps.
const LINE_BYTES_MAX: usize = 1 << 20;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// A model is fetched.
    Pull,
    /// A model is removed.
    Remove,
}

impl Work {
    fn path(self) -> &'static str {
        match self {
            Self::Pull => "/node/models/pull",
            Self::Remove => "/node/models/remove",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Pull => "pulled",
            Self::Remove => "removed",
        }
    }
}

/// A step at a node.
#[derive(Debug, Deserialize)]
struct Step {
    node_id: String,
    node: String,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    total: Option<u64>,
    #[serde(default)]
    completed: Option<u64>,
    #[serde(default)]
    done: bool,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    code: Option<String>,
}

/// What came of it at a node.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Outcome {
    node_id: String,
    node: String,
    done: bool,
    error: Option<String>,
    code: Option<String>,
}

/// What is known of all nodes so far.
#[derive(Debug, Default)]
struct Outcomes(BTreeMap<String, Outcome>);

impl Outcomes {
    fn take(&mut self, step: &Step) {
        let outcome = self.0.entry(step.node_id.clone()).or_insert_with(|| Outcome {
            node_id: step.node_id.clone(),
            node: step.node.clone(),
            done: false,
            error: Some("it did not come to its end".to_owned()),
            code: None,
        });
        if step.done {
            (outcome.done, outcome.error, outcome.code) = (true, None, None);
        }
        if let Some(error) = &step.error {
            (outcome.done, outcome.error, outcome.code) = (false, Some(error.clone()), step.code.clone());
        }
    }

    /// Returns all, by the names of the nodes.
    fn into_sorted(self) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> = self.0.into_values().collect();
        outcomes.sort_by(|a, b| (&a.node, &a.node_id).cmp(&(&b.node, &b.node_id)));
        outcomes
    }
}

impl Outcome {
    fn exit(&self) -> Exit {
        match (self.done, self.code.as_deref()) {
            (false, Some("not_found")) => Exit::NotFound,
            (false, Some("busy" | "unreachable")) => Exit::Unavailable,
            _ => Exit::Failure,
        }
    }

    fn failure(&self) -> Failure {
        let why = self.error.as_deref().unwrap_or("it failed");
        let failure = Failure::new(self.exit(), format!("{}: {why}", self.node));
        if self.code.as_deref() == Some("refused") {
            return failure.hint(
                "its owner allows that in the configuration there: manage = true in [share], or a list of nodes",
            );
        }
        failure
    }
}

/// Has nodes fetch or remove a model, and tells what came of it at each.
pub(super) async fn run(global: &Global, work: Work, model: &str, at: &WhereArgs) -> Result<ExitCode> {
    let data_dir = global.data_dir()?;
    let mut signals = StopSignals::listen()?;
    let Some(node) = running_node(&data_dir).await? else {
        let failure = Failure::new(Exit::Unavailable, "no node runs here, and only a node reaches the others");
        return Err(failure.hint("bombus up starts one").into());
    };
    let outcomes = tokio::select! {
        outcomes = outcomes_of(global, &node, work, model, at) => outcomes?,
        signal = signals.next() => {
            global.notice("stopped at all nodes; what came so far is kept there, except of Python packages");
            return Ok(ExitCode::from(signal.exit_code()));
        }
    };
    let failed = outcomes.iter().find(|outcome| !outcome.done);
    let exit = failed.map_or(ExitCode::SUCCESS, |outcome| outcome.exit().into());
    if at.json {
        output::print_json(&outcomes)?;
        return Ok(exit);
    }
    if let (Some(failed), [_]) = (failed, outcomes.as_slice()) {
        return Err(failed.failure().into());
    }
    let rows = outcomes.into_iter().map(|outcome| {
        let came = outcome.error.map_or_else(|| work.done().to_owned(), |error| format!("failed: {error}"));
        [outcome.node, came]
    });
    output::print(&output::table(["NODE", "RESULT"], rows))?;
    Ok(exit)
}

async fn outcomes_of(
    global: &Global,
    node: &NodeClient,
    work: Work,
    model: &str,
    at: &WhereArgs,
) -> Result<Vec<Outcome>> {
    let body = json!({ "model": model, "node": at.node, "all": at.all });
    let response = node.send(Method::POST, work.path(), Some(&body)).await?;
    let mut lines = FramedRead::new(
        StreamReader::new(response.bytes_stream().map_err(std::io::Error::other)),
        LinesCodec::new_with_max_length(LINE_BYTES_MAX),
    );
    let shown = MultiProgress::new();
    let mut progress: BTreeMap<String, Progress> = BTreeMap::new();
    let mut outcomes = Outcomes::default();
    while let Some(line) = lines.next().await {
        let line = line.context("the node's answer broke off")?;
        if line.trim().is_empty() {
            continue;
        }
        let step: Step = serde_json::from_str(&line).context("the node sent what is no step of such a work")?;
        outcomes.take(&step);
        let subject = || format!("{}: {model}", step.node);
        let bar =
            progress.entry(step.node_id.clone()).or_insert_with(|| Progress::among(&shown, &subject(), global.quiet));
        match &step.status {
            Some(status) => bar.bytes(status, step.completed.unwrap_or(0), step.total),
            None => bar.end(),
        }
    }
    progress.values().for_each(Progress::end);
    Ok(outcomes.into_sorted())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(outcomes: &mut Outcomes, line: serde_json::Value) {
        outcomes.take(&serde_json::from_value(line).unwrap());
    }

    #[test]
    fn a_node_that_tells_no_end_has_failed() {
        let mut outcomes = Outcomes::default();
        take(&mut outcomes, json!({"node_id": "1", "node": "wasp", "status": "pulling manifest"}));
        take(&mut outcomes, json!({"node_id": "2", "node": "hive", "status": "pulling", "total": 5, "completed": 1}));
        take(&mut outcomes, json!({"node_id": "2", "node": "hive", "done": true}));
        take(&mut outcomes, json!({"node_id": "3", "node": "bee", "error": "no", "code": "refused"}));
        let outcomes = outcomes.into_sorted();
        let told: Vec<_> =
            outcomes.iter().map(|outcome| (outcome.node.as_str(), outcome.done, outcome.code.as_deref())).collect();
        assert_eq!(told, [("bee", false, Some("refused")), ("hive", true, None), ("wasp", false, None)]);
        assert!(outcomes[2].error.as_ref().unwrap().contains("did not come to its end"));
    }

    #[test]
    fn the_exit_code_says_why_a_node_did_nothing() {
        let exit = |code: &str| {
            let code = Some(code.to_owned());
            Outcome { node_id: "1".into(), node: "bee".into(), done: false, error: None, code }.exit() as u8
        };
        assert_eq!(["refused", "not_found", "busy", "unreachable", "failed"].map(exit), [1, 3, 4, 4, 1]);
    }
}
