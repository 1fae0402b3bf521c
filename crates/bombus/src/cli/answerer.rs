//! Who answers a command: the running node, or this process where none runs.

use std::collections::BTreeMap;

use anyhow::Result;
use bombus_core::chat::{ChatRequest, Sampling};
use bombus_core::placement::{Need, Offer, Ranked, Rejection};
use bombus_infer::{BackendError, ChatStream};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::peers::Peer;
use super::scope::ScopeArgs;
use crate::config::Settings;
use crate::data_dir::{DataDir, NodeRecord};
use crate::failure::{Exit, Failure};
use crate::node::RunningBackends;
use crate::node_client::{NodeClient, encoded};
use crate::printable::one_line;
use crate::running::RunningNode;

mod remote;

/// Says that there is nobody to ask.
pub(super) const NO_BACKEND: &str = "no backend is configured";

/// What answers.
pub(super) enum Answerer {
    /// The node of the data directory.
    Node(NodeClient),
    /// This process.
    Here(RunningBackends),
}

/// An answer that has begun.
pub(super) struct Started {
    /// The model's canonical name.
    pub(super) model: String,
    /// What runs it.
    pub(super) route: Route,
    /// The answer.
    pub(super) events: ChatStream,
}

/// What runs the model.
#[derive(Debug, Default, Clone, Serialize)]
pub(super) struct Route {
    /// The node's id; none where this process runs the model itself.
    pub(super) node: Option<String>,
    /// What people call the node, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node_name: Option<String>,
    /// The backend's name.
    pub(super) backend: String,
    /// Why that one.
    pub(super) reason: Option<String>,
}

/// All who could answer, best first, with what speaks for and against them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Placement {
    /// The model that was asked for.
    pub(super) model: String,
    /// Who could answer, best first.
    pub(super) candidates: Vec<Candidate>,
}

/// A backend that could answer, or could not.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Candidate {
    /// The backend's name; for another node that node's id.
    pub(super) backend: String,
    /// The node's id; none where this process looked for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) node_id: Option<String>,
    /// What people call the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<String>,
    /// Whether it is on the node that was asked, or in this process.
    #[serde(default = "yes")]
    pub(super) here: bool,
    /// The model that it would run.
    #[serde(default)]
    pub(super) model: Option<String>,
    /// Its points; more is better.
    #[serde(default)]
    pub(super) score: Option<f64>,
    /// Why it cannot answer.
    #[serde(default)]
    pub(super) rejected: Option<String>,
    /// What its points are for.
    #[serde(default)]
    pub(super) reasons: Vec<String>,
}

fn yes() -> bool {
    true
}

impl Answerer {
    /// Finds the running node, or gets the configured backends ready where none runs.
    pub(super) async fn find(settings: &Settings, data_dir: &DataDir) -> Result<Self> {
        Ok(match running_node(data_dir).await? {
            Some(node) => Self::Node(node),
            None => Self::Here(RunningBackends::start(&settings.config, data_dir)?),
        })
    }

    /// Returns the model that answers where none is named: one that was set for this command wins over the node's own choice.
    pub(super) fn default_model(&self, settings: &Settings) -> String {
        let of_node = match self {
            Self::Node(node) if !settings.is_set("default_model") => node.record().default_model.as_ref(),
            _ => None,
        };
        of_node.unwrap_or(&settings.config.default_model).to_string()
    }

    /// Returns the node's id.
    pub(super) fn node_id(&self) -> Option<&str> {
        match self {
            Self::Node(node) => Some(node.record().node_id.as_str()),
            Self::Here(_) => None,
        }
    }

    /// Begins an answer.
    pub(super) async fn chat(&self, request: ChatRequest, scope: &ScopeArgs) -> Result<Started> {
        match self {
            Self::Node(node) => remote::chat(node, &request, scope).await,
            Self::Here(running) => {
                scope.must_be_here()?;
                let route = running.backends().route(&request.model, &Need::default()).await?;
                let routed = route.chat(request).await?;
                let reason = Some(routed.reason);
                let route = Route { node: None, node_name: None, backend: routed.backend, reason };
                Ok(Started { model: routed.model.to_string(), route, events: routed.value })
            }
        }
    }

    /// Returns what people call nodes, by their ids, as far as that is known.
    pub(super) async fn names_of(&self, nodes: &[&str]) -> BTreeMap<String, String> {
        let Self::Node(node) = self else { return BTreeMap::new() };
        let own = (node.record().node_id.to_string(), node.record().name.clone());
        let mut names = BTreeMap::from([own]);
        if nodes.iter().any(|node| !names.contains_key(*node)) {
            match node.get::<Vec<Peer>>("/peers").await {
                Ok(peers) => names.extend(peers.into_iter().map(|peer| (peer.node_id, one_line(&peer.hostname)))),
                Err(error) => tracing::debug!(%error, "the names of the other nodes are not known"),
            }
        }
        names
    }

    /// Tells who could answer a request to a model.
    pub(super) async fn placement(&self, model: &str, scope: &ScopeArgs) -> Result<Placement> {
        match self {
            Self::Node(node) => {
                let scope = scope.text().map(|scope| format!("&scope={}", encoded(&scope))).unwrap_or_default();
                node.get(&format!("/route?model={}{scope}", encoded(model))).await
            }
            Self::Here(running) => {
                scope.must_be_here()?;
                let ranking = running.backends().rank(model, &Need::default()).await?;
                Ok(Placement::of(model, &ranking))
            }
        }
    }

    /// Returns the names of all models.
    pub(super) async fn model_names(&self) -> Result<Vec<String>> {
        match self {
            Self::Node(node) => {
                let list: ModelList = node.get("/v1/models").await?;
                Ok(list.data.into_iter().map(|model| model.id).collect())
            }
            Self::Here(running) => Ok(running.model_names().await),
        }
    }

    /// Goes over to the node that runs now, where the one that was found was started again: it has another key, and often another port.
    ///
    /// # Errors
    ///
    /// The node does not answer.
    pub(super) async fn renew(&mut self, data_dir: &DataDir) -> Result<()> {
        if let Self::Node(node) = self
            && node.is_outdated(data_dir)
            && let Some(now) = running_node(data_dir).await?
        {
            *node = now;
        }
        Ok(())
    }

    /// Ends what was started for the command.
    pub(super) async fn stop(self) {
        if let Self::Here(running) = self {
            running.stop().await;
        }
    }
}

/// Finds the node that runs on a data directory. One that does not answer is an error: running its models a second time could take
/// the memory that it has.
pub(super) async fn running_node(data_dir: &DataDir) -> Result<Option<NodeClient>> {
    match RunningNode::find(data_dir).await? {
        RunningNode::Answers(record) => Ok(Some(NodeClient::new(record, data_dir)?)),
        RunningNode::Silent(record) => Err(silent(&record).into()),
        RunningNode::None => Ok(None),
        RunningNode::Stale(reason) => {
            tracing::debug!(reason, "node.json is left over");
            Ok(None)
        }
    }
}

fn silent(record: &NodeRecord) -> Failure {
    let message = format!("the node of this data directory (pid {}) does not answer at {}", record.pid, record.api);
    Failure::new(Exit::Unavailable, message).hint("bombus doctor says more; --data-dir DIR asks without that node")
}

#[derive(Deserialize)]
struct ModelList {
    data: Vec<ListedModel>,
}

#[derive(Deserialize)]
struct ListedModel {
    id: String,
}

impl Candidate {
    fn of(ranked: &Ranked) -> Self {
        Self {
            backend: ranked.candidate.backend.to_string(),
            node_id: ranked.candidate.peer.as_ref().map(|peer| peer.node.to_string()),
            node: ranked.candidate.peer.as_ref().map(|peer| peer.name.to_string()),
            here: ranked.candidate.peer.is_none(),
            model: match &ranked.candidate.offer {
                Offer::Has { alias_of: Some(there), .. } => Some(there.to_string()),
                Offer::Has { info, alias_of: None } => Some(info.name.to_string()),
                Offer::Hidden | Offer::Missing | Offer::Unknown(_) => None,
            },
            score: ranked.score(),
            rejected: ranked.rejection().map(ToString::to_string),
            reasons: ranked.reasons(),
        }
    }

    /// Names it: a backend, or another node.
    pub(super) fn shown(&self) -> String {
        match &self.node {
            Some(node) if !self.here => format!("node {}", one_line(node)),
            _ => self.backend.clone(),
        }
    }

    /// Says in a line how it stands.
    pub(super) fn line(&self) -> String {
        let line = match (&self.rejected, self.score) {
            (Some(reason), _) => format!("no: {reason}"),
            (None, score) => {
                let score = score.map(|score| format!("{score:.1}")).unwrap_or_default();
                format!("{score}: {}", self.reasons.join(", "))
            }
        };
        one_line(&line)
    }
}

impl Placement {
    /// Describes a ranking.
    pub(super) fn of(model: &str, ranking: &[Ranked]) -> Self {
        Self { model: model.to_owned(), candidates: ranking.iter().map(Candidate::of).collect() }
    }

    /// Returns the candidate that is asked first.
    ///
    /// # Errors
    ///
    /// Nobody has the model, or nobody who has it can answer now.
    pub(super) fn best(&self) -> Result<&Candidate> {
        if let Some(best) = self.candidates.first().filter(|best| best.rejected.is_none()) {
            return Ok(best);
        }
        let missing = Rejection::Missing.to_string();
        if self.candidates.iter().all(|candidate| candidate.rejected.as_ref() == Some(&missing)) {
            return Err(BackendError::ModelNotFound { model: self.model.clone() }.into());
        }
        let refusal =
            |candidate: &Candidate| Some(format!("{}: {}", candidate.shown(), candidate.rejected.as_deref()?));
        let refusals = self.candidates.iter().filter_map(refusal).collect::<Vec<_>>().join("; ");
        let message = format!("no backend can answer as '{}' now: {refusals}", self.model);
        Err(Failure::new(Exit::Unavailable, message).hint("bombus backends shows how they are").into())
    }

    /// Lays the candidates out, one to a line, best first.
    pub(super) fn lines(&self) -> Vec<String> {
        if self.candidates.is_empty() {
            return vec![NO_BACKEND.to_owned()];
        }
        let width = self.candidates.iter().map(|candidate| candidate.shown().chars().count()).max().unwrap_or(0);
        self.candidates.iter().map(|candidate| format!("{:width$}  {}", candidate.shown(), candidate.line())).collect()
    }
}

/// How the answer is made; flags of `ask` and `chat`.
#[derive(Debug, Args)]
pub(super) struct AnswerArgs {
    /// The model to ask [default: the node's, or `default_model` of the configuration]
    #[arg(long, short, value_name = "NAME")]
    pub(super) model: Option<String>,
    /// Instructions that come before the conversation
    #[arg(long, short, value_name = "TEXT")]
    pub(super) system: Option<String>,
    /// Most tokens to generate
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// 0 always takes the likeliest token; more gives variety
    #[arg(long, value_name = "T", value_parser = temperature)]
    temperature: Option<f32>,
    /// Makes the answer repeatable
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
    #[command(flatten)]
    pub(super) scope: ScopeArgs,
}

impl AnswerArgs {
    /// Puts the flags into a request.
    pub(super) fn apply(&self, request: ChatRequest) -> ChatRequest {
        ChatRequest {
            sampling: Sampling { temperature: self.temperature, seed: self.seed, ..request.sampling },
            max_tokens: self.max_tokens,
            ..request
        }
    }
}

fn temperature(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(value) if (0.0..=2.0).contains(&value) => Ok(value),
        _ => Err("a temperature is a number from 0 to 2".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_those_who_cannot_answer_without_columns() {
        let candidate = |backend: &str, rejected: &str| Candidate {
            backend: backend.to_owned(),
            node_id: None,
            node: None,
            here: true,
            model: None,
            score: None,
            rejected: Some(rejected.to_owned()),
            reasons: Vec::new(),
        };
        let candidates = vec![candidate("a", "it rests"), candidate("far-away", "it is paused")];
        let error = Placement { model: "m".to_owned(), candidates }.best().unwrap_err();
        assert_eq!(error.to_string(), "no backend can answer as 'm' now: a: it rests; far-away: it is paused");
    }

    #[test]
    fn a_temperature_out_of_range_is_refused() {
        assert_eq!(temperature("0.7"), Ok(0.7));
        for bad in ["-1", "2.1", "hot", "NaN"] {
            assert!(temperature(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn why_a_backend_is_passed_over_cannot_control_the_terminal() {
        let candidate = Candidate {
            backend: "far".to_owned(),
            node_id: None,
            node: None,
            here: true,
            model: None,
            score: None,
            rejected: Some("bad \u{1b}[2J\rthing".to_owned()),
            reasons: Vec::new(),
        };
        assert_eq!(candidate.line(), "no: bad [2Jthing");
    }
}
