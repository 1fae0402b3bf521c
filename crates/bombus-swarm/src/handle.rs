//! The handle through which everybody but the service uses the swarm.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_core::topics::{TaskGenerations, TaskHelpRequest, TaskHelpResponse, Timestamp, Topic, TopicMessage};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::counts::read;
use crate::error::TellError;
use crate::events::EventStream;
use crate::help;
use crate::liveness::LivenessReport;
use crate::report::{HelloReport, PeerReport, SwarmReport};
use crate::seal::PublicSealKey;
use crate::shared::Shared;
use crate::topics::MessageStream;
use crate::view::PeerView;

/// Most peers that are watched closely.
const WATCHED_MAX: usize = 1_024;

/// A cheap handle to the swarm.
#[derive(Clone)]
pub struct SwarmHandle {
    shared: Arc<Shared>,
}

impl SwarmHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Returns this node's id.
    #[must_use]
    pub fn node_id(&self) -> &NodeId {
        self.shared.net.node_id()
    }

    /// Returns the id of the swarm that this node is in.
    #[must_use]
    pub fn swarm_id(&self) -> String {
        self.shared.net.swarm_id().to_string()
    }

    /// Returns what is known of all peers, ordered by id. Those that are gone are among them for ten minutes more.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerView> {
        self.shared.look_at_links();
        self.shared.view().peers()
    }

    /// Returns what is known of one peer.
    #[must_use]
    pub fn peer(&self, node_id: &NodeId) -> Option<PeerView> {
        self.shared.look_at_links();
        self.shared.view().peer(node_id)
    }

    /// Returns the key that texts for a peer are sealed to. There is none as long as the peer has not told one that it signed, and for ten
    /// minutes after it is gone its last one is still known.
    #[must_use]
    pub fn seal_key(&self, node_id: &NodeId) -> Option<PublicSealKey> {
        self.shared.view().seal_key(node_id)
    }

    /// Returns the generations of the databases of tasks that the peers that are there say that they have.
    pub(crate) fn task_generations(&self) -> BTreeMap<NodeId, TaskGenerations> {
        let view = self.shared.view();
        let told = view.told().filter_map(|told| Some((told.node_id.parse().ok()?, told.task_generations.clone()?)));
        told.collect()
    }

    /// Tells peers which generations of the databases of tasks this node has, soon if that is new.
    pub(crate) fn tell_task_generations(&self, generations: TaskGenerations) {
        let generations = Some(generations);
        self.shared.task_generations.send_if_modified(|told| {
            let is_new = *told != generations;
            *told = generations;
            is_new
        });
    }

    /// Returns this node as its peers see it, without a way to it.
    #[must_use]
    pub fn own(&self) -> PeerView {
        let shared = &self.shared;
        let now_unix_s = shared.clocks.unix_ms() / 1_000;
        let told = shared.facts.borrow().capabilities(self.node_id(), shared.boot(), shared.clocks.wall());
        PeerView::own(self.node_id(), &told, shared.started_unix_s, now_unix_s)
    }

    /// Counts the nodes that are there, this one included.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.shared.view().nodes()
    }

    /// Says whether there are more nodes than each keeps connections to: others are connected with as long as they are needed.
    pub(crate) fn is_crowd(&self) -> bool {
        self.shared.is_crowd()
    }

    /// Tells when something that [`SwarmHandle::peers`] shows has changed, other than when a peer was last seen: the number grows.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.revision()
    }

    /// Reads the log of events: behind the event with the number `after`, or without one from now on.
    #[must_use]
    pub fn events(&self, after: Option<u64>) -> EventStream {
        self.shared.events.subscribe(after)
    }

    /// Adds something to the log of events.
    pub(crate) fn note(&self, kind: &'static str, data: serde_json::Value) {
        self.shared.events.push(kind, self.shared.clocks.wall(), data);
    }

    /// Returns the accepted messages of a topic from now on; those of this node itself are not among them.
    #[must_use]
    pub fn messages(&self, topic: Topic) -> MessageStream {
        MessageStream::new(self.shared.messages(topic).subscribe())
    }

    /// Returns a time for a message: that of the clock, but later than that of the message before, so that none is taken for a recording of
    /// another.
    #[must_use]
    pub fn stamp(&self) -> Timestamp {
        self.shared.stamp()
    }

    /// Publishes a message on its topic. That nobody hears it is no error.
    ///
    /// # Errors
    ///
    /// When it names another sender than this node, when a field is too large, or when the mesh does not take it.
    pub async fn publish(&self, message: TopicMessage) -> Result<(), TellError> {
        self.shared.publish(&message).await
    }

    /// Asks all nodes for help with a task, and collects answers until all that should answer have done so, or up to `limit`. Who asks and
    /// when is filled in.
    ///
    /// Returns at most one answer of each peer (1,024 in all): those that can help first, the soonest first.
    ///
    /// # Errors
    ///
    /// When the request is not published.
    pub async fn ask_help(
        &self,
        request: TaskHelpRequest,
        limit: Duration,
    ) -> Result<Vec<TaskHelpResponse>, TellError> {
        help::ask(&self.shared, request, limit).await
    }

    /// Watches a peer closely as long as the returned value lives: the failure detector probes it directly all the time. At most 1,024 peers
    /// are watched so; those beyond are probed as all others are.
    #[must_use]
    pub fn watch(&self, peer: &NodeId) -> Watched {
        let mut counts = false;
        self.shared.watched.send_modify(|watched| {
            counts = watched.len() < WATCHED_MAX || watched.contains_key(peer);
            if counts {
                *watched.entry(peer.clone()).or_default() += 1;
            }
        });
        Watched { shared: Arc::clone(&self.shared), peer: peer.clone(), counts }
    }

    /// Says goodbye to all connected peers, since this node is about to be in another swarm, and waits until they have heard it, for half a
    /// second by default. From then on the failure detector is silent until the node is in another swarm; where that does not come about, it
    /// takes part again after [`crate::SwarmConfig::farewell_silence`].
    pub async fn farewell(&self) {
        let shared = &self.shared;
        let mut said = shared.farewells_said.subscribe();
        let mut number = 0;
        shared.farewells.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        let said = said.wait_for(|said| *said >= number);
        // Where the detector is not there to say it, the others notice all the same.
        drop(timeout(shared.config.goodbye_limit * 2, said).await);
    }

    /// Returns what became of messages, for the doctor.
    #[must_use]
    pub fn report(&self) -> SwarmReport {
        let shared = &self.shared;
        let (counted, others) = shared.counts.snapshot();
        let view = shared.view();
        let peers = counted.into_iter().map(|(node_id, messages)| {
            let known = view.peer(&node_id);
            PeerReport {
                name: known.as_ref().map(|peer| peer.name.clone()),
                clock_skew_ms: known.and_then(|peer| peer.clock_skew_ms),
                node_id,
                messages,
            }
        });
        let hello = &shared.counts.hello;
        SwarmReport {
            peers: peers.collect(),
            others,
            refused_peers: view.refused(),
            hello: HelloReport {
                exchanged: read(&hello.exchanged),
                failed: read(&hello.failed),
                refused: read(&hello.refused),
            },
            liveness: LivenessReport::of(shared),
            help_answered: read(&shared.counts.help_answered),
            publish_failures: read(&shared.counts.publish_failures),
            lost: read(&shared.counts.lost),
            same_identity: shared.same_identity.get().cloned(),
        }
    }
}

impl fmt::Debug for SwarmHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwarmHandle").field("node_id", self.node_id()).finish_non_exhaustive()
    }
}

/// A peer that is watched closely as long as this value lives.
pub struct Watched {
    shared: Arc<Shared>,
    peer: NodeId,
    /// Whether there was room for it.
    counts: bool,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watched").field(&self.peer).finish()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.counts {
            return;
        }
        self.shared.watched.send_modify(|watched| {
            if let Some(count) = watched.get_mut(&self.peer) {
                *count -= 1;
                if *count == 0 {
                    watched.remove(&self.peer);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;
    use bombus_net::membership::{Generation, MembershipHandle, MembershipState, Privacy};
    use bombus_net::{NetConfig, NetIdentity, net};

    use super::*;
    use crate::{OwnFacts, SwarmConfig, swarm};

    fn peer(number: u16) -> NodeId {
        let mut secret = [9; 32];
        secret[..2].copy_from_slice(&number.to_be_bytes());
        NodeKey::from_secret(&secret).node_id()
    }

    /// A handle to a swarm that does not run.
    fn at_rest() -> SwarmHandle {
        let key = NodeKey::from_secret(&[1; 32]);
        let identity = NetIdentity { key, name: "node".to_owned(), version: "0.0.0".to_owned() };
        let (_, state) = watch::channel(MembershipState {
            swarm_id: "a".repeat(16).parse().expect("letters make an id"),
            privacy: Privacy::Open,
            generation: Generation(0),
            removed: Arc::default(),
        });
        let (net, _) = net(NetConfig::default(), identity, MembershipHandle::following(state));
        swarm(SwarmConfig::default(), net, watch::channel(OwnFacts::default()).1).0
    }

    fn watched(handle: &SwarmHandle) -> Vec<NodeId> {
        handle.shared.watched.borrow().keys().cloned().collect()
    }

    #[test]
    fn a_peer_is_watched_as_long_as_anybody_wants_that() {
        let handle = at_rest();
        let (one, other) = (handle.watch(&peer(1)), handle.watch(&peer(1)));
        assert_eq!(watched(&handle), [peer(1)]);
        drop(one);
        assert_eq!(watched(&handle), [peer(1)]);
        drop(other);
        assert_eq!(watched(&handle), []);
    }

    #[test]
    fn the_watched_are_bounded_and_one_too_many_takes_nobodys_place() {
        let handle = at_rest();
        let kept: Vec<_> = (0..WATCHED_MAX as u16).map(|number| handle.watch(&peer(number))).collect();
        let beyond = handle.watch(&peer(u16::MAX));
        let again = handle.watch(&peer(0));
        assert!(watched(&handle).len() == WATCHED_MAX && !watched(&handle).contains(&peer(u16::MAX)));
        drop(beyond);
        drop(again);
        assert_eq!(watched(&handle).len(), WATCHED_MAX);
        drop(kept);
        assert_eq!(watched(&handle), []);
    }
}
