//! Questions to peers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_core::liveness::PeerState;
use bombus_core::tasks::TaskId;
use bombus_core::tasks::dispatch::Input;
use futures::stream::{self, StreamExt};
use tokio::time::timeout;

use super::TASK_PROTOCOL;
use super::shared::Shared;
use super::talk::Talk;
use super::wire::{Ask, Said, WORD_BYTES_MAX};

/// How long a peer may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_millis(1_500);
/// How many peers are asked at once.
const ASKED_AT_ONCE: usize = 64;

/// Asks a peer something that has one answer.
pub(super) async fn one(shared: &Shared, peer: &NodeId, ask: &Ask, limit: Duration) -> io::Result<Said> {
    let asked = async {
        let stream = shared.net.open_stream(peer, TASK_PROTOCOL).await.map_err(io::Error::other)?;
        let mut talk = Talk::new(stream, WORD_BYTES_MAX);
        talk.say(ask).await?;
        talk.hear().await
    };
    timeout(limit, asked).await?
}

/// Asks all peers that are alive whether they see a requester, and whether they run its task.
pub(super) async fn around(shared: &Arc<Shared>, task: TaskId, requester: Option<NodeId>) -> Input {
    let is_asked = |peer: &NodeId| Some(peer) != requester.as_ref();
    let alive = shared.swarm.peers().into_iter().filter(|peer| peer.state == PeerState::Alive && peer.complete);
    let peers: Vec<NodeId> = alive.map(|peer| peer.node_id).filter(is_asked).collect();
    let ask = Ask::Around { task: task.clone(), requester };
    let answers = stream::iter(peers).map(async |peer| {
        let said = one(shared, &peer, &ask, ANSWER_LIMIT).await;
        (peer, said)
    });
    let answers: Vec<_> = answers.buffer_unordered(ASKED_AT_ONCE).collect().await;
    let (mut requester_seen, mut runs, mut unanswered) = (false, false, Vec::new());
    for (peer, said) in answers {
        match said {
            Ok(Said::Seen { requester, running }) => {
                requester_seen |= requester;
                runs |= running;
            }
            // It answers, and knows nothing of tasks.
            Ok(_) => {}
            Err(_) => unanswered.push(peer),
        }
    }
    Input::Answers { task, requester_seen, running: runs, unanswered }
}
