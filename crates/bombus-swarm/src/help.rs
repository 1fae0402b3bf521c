//! Help between nodes: who asks gets answers from those that have what is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bombus_core::topics::{TaskHelpRequest, TaskHelpResponse, Topic, TopicMessage, answer_help, eligible_helpers};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::counts::count;
use crate::error::TellError;
use crate::limiter::Limiter;
use crate::shared::Shared;
use crate::supervised::PartEnded;
use crate::topics::{Heard, MessageStream};

/// Most answers to one request; those beyond are left out.
const ANSWERS_MAX: usize = 1_024;
/// How many requests of one peer are answered at once, and how many a second in the long run.
const PER_PEER: (u32, u32) = (20, 1);

/// Answers requests for help until `stop`.
pub(crate) async fn answer_all(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), PartEnded> {
    let mut requests = MessageStream::new(shared.messages(Topic::TaskHelpRequest).subscribe());
    let mut limiter = Limiter::new(PER_PEER.0, PER_PEER.1);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            heard = requests.next() => answer(shared, &mut limiter, heard.ok_or(PartEnded::MeshEnded)?).await,
        }
    }
}

/// Answers if this node can help. Who cannot says nothing: with many nodes, most of them would have to.
async fn answer(shared: &Shared, limiter: &mut Limiter, heard: Heard) {
    let TopicMessage::TaskHelpRequest(request) = &*heard.message else { return };
    if shared.facts.borrow().is_full() {
        return;
    }
    let own = shared.own();
    let response = answer_help(request, &own, own.timestamp);
    if response.can_help && limiter.allow(shared.clocks.ms(), &heard.from) {
        count(&shared.counts.help_answered);
        // A failure is counted there; whoever asks does so again.
        drop(shared.publish(&TopicMessage::TaskHelpResponse(response)).await);
    }
}

/// Asks all nodes, and collects answers.
pub(crate) async fn ask(
    shared: &Shared,
    request: TaskHelpRequest,
    limit: Duration,
) -> Result<Vec<TaskHelpResponse>, TellError> {
    let mut messages = MessageStream::new(shared.messages(Topic::TaskHelpResponse).subscribe());
    let asked_at = Instant::now();
    let (mut again_at, end) = (Some(asked_at + limit / 2), asked_at + limit);
    let mut answers = Answers::new(&request, expected(shared, &request));
    publish(shared, &request).await?;
    loop {
        tokio::select! {
            biased;
            () = sleep_until(end) => break,
            heard = messages.next() => {
                let Some(heard) = heard else { break };
                if answers.take(&heard) == Complete::Yes {
                    break;
                }
            }
            // The topics of a swarm that has just begun may not yet have found their ways.
            () = sleep_until(again_at.unwrap_or(end)), if again_at.is_some() => {
                again_at = None;
                if answers.is_empty() {
                    publish(shared, &request).await?;
                }
            }
        }
    }
    Ok(answers.into_ranked())
}

async fn publish(shared: &Shared, request: &TaskHelpRequest) -> Result<(), TellError> {
    let own =
        TaskHelpRequest { from_node: shared.net.node_id().to_string(), timestamp: shared.stamp(), ..request.clone() };
    shared.publish(&TopicMessage::TaskHelpRequest(own)).await
}

/// Returns the ids of the peers that should answer, as far as the view knows.
fn expected(shared: &Shared, request: &TaskHelpRequest) -> BTreeSet<String> {
    let view = shared.view();
    let helpers = eligible_helpers(request, view.told());
    let own_id = shared.net.node_id().as_str();
    let ready = helpers.iter().map(|helper| helper.node).filter(|node| {
        let is_full = node.slots.is_some_and(|slots| node.running.unwrap_or(0) >= slots);
        node.node_id != own_id && !is_full
    });
    ready.map(|node| node.node_id.clone()).collect()
}

/// The answers to one request (pure).
struct Answers {
    task_id: String,
    expected: BTreeSet<String>,
    answers: BTreeMap<String, TaskHelpResponse>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Complete {
    Yes,
    No,
}

impl Answers {
    fn new(request: &TaskHelpRequest, expected: BTreeSet<String>) -> Self {
        Self { task_id: request.task_id.clone(), expected, answers: BTreeMap::new() }
    }

    /// Takes a message, and says whether all that were expected to answer have done so.
    fn take(&mut self, heard: &Heard) -> Complete {
        if let TopicMessage::TaskHelpResponse(response) = &*heard.message
            && response.task_id == self.task_id
            && (self.answers.len() < ANSWERS_MAX || self.answers.contains_key(&response.from_node))
        {
            self.answers.insert(response.from_node.clone(), response.clone());
        }
        let all = !self.expected.is_empty() && self.expected.iter().all(|peer| self.answers.contains_key(peer));
        if all { Complete::Yes } else { Complete::No }
    }

    fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// Returns the answers: those that can help first, the soonest first.
    fn into_ranked(self) -> Vec<TaskHelpResponse> {
        let mut answers: Vec<_> = self.answers.into_values().collect();
        answers.sort_by_key(|answer| (!answer.can_help, answer.eta_seconds.unwrap_or(u32::MAX)));
        answers
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::{NodeId, NodeKey};
    use bombus_core::topics::Timestamp;

    use super::*;

    fn peer(number: u8) -> NodeId {
        NodeKey::from_secret(&[number; 32]).node_id()
    }

    fn request() -> TaskHelpRequest {
        TaskHelpRequest {
            task_id: "#42".to_owned(),
            from_node: peer(1).to_string(),
            reason: "missing capability".to_owned(),
            requested_capability: "claude-cli".to_owned(),
            timestamp: Timestamp::from_unix_ms(0),
        }
    }

    fn response(from: u8, task_id: &str, can_help: bool, eta_seconds: Option<u32>) -> Heard {
        let message = TopicMessage::TaskHelpResponse(TaskHelpResponse {
            task_id: task_id.to_owned(),
            from_node: peer(from).to_string(),
            can_help,
            capabilities: Vec::new(),
            eta_seconds,
            timestamp: Timestamp::from_unix_ms(0),
        });
        Heard { from: peer(from), message: Arc::new(message) }
    }

    #[test]
    fn the_best_answer_comes_first_and_each_peer_has_one() {
        let mut answers = Answers::new(&request(), BTreeSet::new());
        answers.take(&response(2, "#42", false, None));
        answers.take(&response(3, "#42", true, None));
        answers.take(&response(4, "#42", true, Some(30)));
        answers.take(&response(5, "#42", true, Some(90)));
        answers.take(&response(5, "#42", true, Some(0)));
        answers.take(&response(6, "#43", true, Some(0)));
        let ranked = answers.into_ranked();
        let from: Vec<_> = ranked.iter().map(|answer| answer.from_node.clone()).collect();
        assert_eq!(from, [5, 4, 3, 2].map(|number| peer(number).to_string()));
    }

    #[test]
    fn it_is_complete_when_all_that_should_have_answered() {
        let expected = BTreeSet::from([peer(2).to_string(), peer(3).to_string()]);
        let mut answers = Answers::new(&request(), expected);
        assert_eq!(answers.take(&response(2, "#42", true, Some(0))), Complete::No);
        assert_eq!(answers.take(&response(4, "#42", true, Some(0))), Complete::No);
        assert_eq!(answers.take(&response(3, "#42", true, Some(0))), Complete::Yes);
        let mut unknown = Answers::new(&request(), BTreeSet::new());
        assert_eq!(unknown.take(&response(2, "#42", true, Some(0))), Complete::No, "others may answer until the limit");
    }
}
