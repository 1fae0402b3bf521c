//! The mesh as the HTTP surfaces need it: who is there, what happens, and who may come in. The node puts the real one behind it.

use async_trait::async_trait;
use bombus_infer::Progress;
use futures::stream::BoxStream;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// How alive a peer is, by the failure detector and never by old news.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// It answers.
    Alive,
    /// It does not answer at the moment.
    Suspect,
    /// It has not answered for so long, or has said goodbye.
    Gone,
}

/// A node of the swarm as this one sees it: mycoSwarm's fields, then more.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Peer {
    /// Its libp2p peer id.
    pub node_id: String,
    /// What people call it.
    pub hostname: String,
    /// Its address on the network.
    #[schema(required)]
    pub ip: Option<String>,
    /// Port of its API.
    #[schema(required)]
    pub port: Option<u16>,
    /// `executive`, `specialist`, `worker`, `light` or `edge`.
    #[schema(required)]
    pub node_tier: Option<String>,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// Its best GPU.
    #[schema(required)]
    pub gpu_name: Option<String>,
    /// That GPU's memory in MB.
    pub vram_total_mb: u64,
    /// The models that it has.
    pub available_models: Vec<String>,
    /// When it was heard last, in seconds since the Unix epoch.
    pub last_seen: f64,
    /// The version of its program.
    #[schema(required)]
    pub version: Option<String>,
    /// How alive it is.
    pub state: PeerState,
    /// Why it is so.
    pub reason: String,
    /// Since when it is so, in seconds since the Unix epoch.
    #[schema(required)]
    pub since: Option<f64>,
    /// `idle`, `busy` or `draining`; other versions may have more words.
    #[schema(required)]
    pub status: Option<String>,
    /// `direct` or `relayed`; absent while there is no connection.
    #[schema(required)]
    pub path: Option<String>,
    /// Round trip in milliseconds.
    #[schema(required)]
    pub latency_ms: Option<f64>,
    /// Answers that it is generating.
    #[schema(required)]
    pub running: Option<u32>,
    /// Answers that it can generate at a time.
    #[schema(required)]
    pub slots: Option<u32>,
    /// How busy its processors are, 0 to 100.
    #[schema(required)]
    pub cpu_usage_percent: Option<f64>,
    /// `ultra`, `high`, `mid`, `entry` or `none`.
    #[schema(required)]
    pub gpu_tier: Option<String>,
    /// Its backends.
    pub backends: Vec<String>,
    /// Programs for coding and for models that it has.
    pub installed: Vec<String>,
    /// How far its clock is ahead of this node's in milliseconds, where that is so much that its messages are ignored.
    #[schema(required)]
    pub clock_skew_ms: Option<i64>,
}

/// The swarm that this node belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Membership {
    /// The swarm's id.
    pub swarm_id: String,
    /// Whether anybody may come in, since no key is asked for.
    pub open: bool,
    /// How often its key was changed.
    pub generation: u64,
    /// Whether this node has the owner key, with which members are removed.
    pub owner: bool,
    /// Where this node can be dialled, as multiaddrs.
    pub listen: Vec<String>,
}

/// Where other nodes reach this one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Listening {
    /// `ok`, or `error` while an address that the node is to listen on cannot be had; that is tried again.
    pub state: ListeningState,
    /// Where this node can be dialled, as multiaddrs.
    pub listen: Vec<String>,
    /// What is wrong.
    #[schema(required)]
    pub problem: Option<String>,
}

/// Whether a node listens for others wherever it is to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ListeningState {
    /// It does.
    #[default]
    Ok,
    /// Somewhere it cannot.
    Error,
}

/// Something that happened in the swarm.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Happening {
    /// Grows with every event.
    pub id: u64,
    /// For example `peer:joined`.
    pub kind: String,
    /// When, in seconds since the Unix epoch.
    pub timestamp: f64,
    /// What belongs to the kind.
    pub data: Value,
}

/// What comes of a feed of events.
#[derive(Debug, Clone, PartialEq)]
pub enum FeedItem {
    /// The next event.
    Happening(Happening),
    /// Events are missing, since the reader was too slow, after which nothing follows, or began too late.
    Lagged {
        /// How many, where that is known.
        missed: Option<u64>,
    },
}

/// How long a peer takes to answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Pong {
    /// The peer.
    pub node_id: String,
    /// What people call it.
    pub hostname: String,
    /// There and back, in milliseconds.
    pub round_trip_ms: f64,
    /// `direct` or `relayed`.
    pub path: String,
    /// The peer's address, or the node that relays.
    pub via: String,
}

/// A line with which another machine joins.
#[derive(Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Invitation {
    /// The ticket. It is a secret: whoever has it can join.
    pub ticket: String,
    /// The swarm that it opens.
    pub swarm_id: String,
    /// The addresses in it.
    pub addresses: Vec<String>,
}

impl std::fmt::Debug for Invitation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invitation").field("swarm_id", &self.swarm_id).finish_non_exhaustive()
    }
}

/// A change of swarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Moved {
    /// The swarm that the node belongs to now.
    pub swarm_id: String,
    /// The one that it belonged to before; its data stay on disk.
    pub left: String,
}

/// Who has a signed change of the membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Handed {
    /// The generation that holds now.
    pub generation: u64,
    /// Those who have it, by name.
    pub reached: Vec<Named>,
    /// Those who do not have it, by name: they have to join again with a new ticket.
    pub missed: Vec<Named>,
}

/// A node by its id and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Named {
    /// Its id.
    pub node_id: String,
    /// What people call it; the id again where that is not known.
    pub hostname: String,
}

/// What this node tried to find others, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct MeshReport {
    /// This node.
    pub node_id: String,
    /// The swarm.
    #[serde(flatten)]
    pub membership: Membership,
    /// Peers with a connection.
    pub connected: usize,
    /// The ways to find peers, most direct first.
    pub rungs: Vec<Rung>,
    /// Why addresses could not be reached lately, latest first.
    pub failures: Vec<Unreached>,
    /// Connections of strangers, or of members with an old key, that were refused.
    pub strangers_refused: u64,
    /// The lowest score that any peer's messages have; below 0 they get less attention.
    #[schema(required)]
    pub lowest_score: Option<f64>,
    /// What people should know, for example that another node has this one's identity.
    pub troubles: Vec<Trouble>,
    /// What the transport counted, in a form that may change from version to version.
    #[schema(value_type = Object)]
    pub net: Value,
    /// What became of messages, in a form that may change from version to version.
    #[schema(value_type = Object)]
    pub swarm: Value,
}

/// One way to find peers.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Rung {
    /// `listen`, `mdns-v4`, `mdns-v6`, `seeds`, `learned`, `tickets` or `relay`.
    pub name: String,
    /// Whether it is used.
    pub enabled: bool,
    /// How often its addresses were dialled; at `listen`, how many there are to listen on, at `relay`, how many members offer to relay.
    pub tried: u64,
    /// How many peers were found or reached.
    pub seen: u64,
    /// What is wrong with it.
    #[schema(required)]
    pub problem: Option<String>,
    /// More in words.
    #[schema(required)]
    pub detail: Option<String>,
}

/// An address that could not be reached.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Unreached {
    /// The address.
    pub address: String,
    /// A word for programs, for example `nothing_listens`.
    pub code: String,
    /// The same for people.
    pub reason: String,
    /// How long ago, in seconds.
    pub ago_s: f64,
}

/// Something that people should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Trouble {
    /// A word for programs: `same_identity`, `clock`, `missed_rekey`, `missed_members` or `mdns_blocked`; later versions may have more.
    pub code: String,
    /// The same for people.
    pub text: String,
}

/// What this node does for others now, and what its configuration lets it do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct SharingState {
    /// Whether its owner had it stop taking requests of others, until it is resumed; a restart changes nothing.
    pub paused: bool,
    /// Whether it takes no requests of others any more since it is about to go, and finishes those that run.
    pub draining: bool,
    /// Requests of others that it is answering.
    pub running: u32,
    /// Requests of others that wait for one of its slots.
    pub waiting: u32,
    /// The setting `share.serve`: whether it ever answers for others.
    pub serve: bool,
    /// The setting `share.models`: what others may use, by name; empty: all that it has.
    pub models: Vec<String>,
    /// The setting `share.max_slots`: most requests of others at a time.
    #[schema(required)]
    pub max_slots: Option<u32>,
    /// The setting `share.peers`: whom it answers for, by name or id; empty: every member.
    pub peers: Vec<String>,
    /// The setting `share.manage`: who may change its models.
    pub manage: Managers,
}

/// Who may change a node's models from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Managers {
    /// Every member, or nobody.
    Everybody(bool),
    /// These, by name or id.
    These(Vec<String>),
}

impl Default for Managers {
    fn default() -> Self {
        Self::Everybody(false)
    }
}

/// What decides which work this node does for others. Each change holds when its future is ready, and answers with the state then.
#[async_trait]
pub trait Sharing: Send + Sync + 'static {
    /// Tells how it stands.
    fn state(&self) -> SharingState;

    /// Takes no further requests of others; those that run go on, and so does what is asked of this node itself.
    ///
    /// # Errors
    ///
    /// [`MeshError::Unavailable`], as of all that follow.
    async fn pause(&self) -> Result<SharingState, MeshError>;

    /// Ends a pause.
    async fn resume(&self) -> Result<SharingState, MeshError>;

    /// Takes no further requests of others and tells them that this node is about to go; what runs goes on.
    async fn drain(&self) -> Result<SharingState, MeshError>;

    /// Ends a drain.
    async fn undrain(&self) -> Result<SharingState, MeshError>;
}

/// How a work on the models of a node goes on. It is done when the stream ends without an error; dropping it stops the work.
pub type ModelSteps = BoxStream<'static, Result<Progress, ModelsError>>;

/// Says why a node did not do what was asked with its models.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ModelsError {
    /// For programs: `refused`, `not_found`, `busy`, `unreachable` or `failed`.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// Has the nodes of the swarm fetch and remove models, this one included.
pub trait RemoteModels: Send + Sync + 'static {
    /// Has a node fetch a model.
    fn pull(&self, node_id: &str, model: &str) -> ModelSteps;

    /// Has a node remove a model.
    fn remove(&self, node_id: &str, model: &str) -> ModelSteps;
}

/// Says why the mesh did not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeshError {
    /// The ticket is none, or is damaged.
    #[error("{0}")]
    BadTicket(String),
    /// The owner key is none, or that of another swarm.
    #[error("{0}")]
    BadOwnerKey(String),
    /// The node has data of another swarm.
    #[error("{0}")]
    NeedsSwitch(String),
    /// The node does not have the owner key.
    #[error("{0}")]
    NoOwnerKey(String),
    /// A swarm without a key has no members to choose.
    #[error("{0}")]
    OpenSwarm(String),
    /// The membership stands against it, for example since the peer was removed before.
    #[error("{0}")]
    Refused(String),
    /// Nobody is called so.
    #[error("{0}")]
    UnknownPeer(String),
    /// Several are called so.
    #[error("{0}")]
    AmbiguousPeer(String),
    /// The peer does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// The mesh is not there now; trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// It failed.
    #[error("{0}")]
    Failed(String),
}

/// The mesh behind the native routes.
#[async_trait]
pub trait Mesh: Send + Sync + 'static {
    /// Returns the swarm that this node belongs to now.
    async fn membership(&self) -> Membership;

    /// Tells where other nodes reach this one.
    fn listening(&self) -> Listening;

    /// Describes this node as others see it.
    fn own(&self) -> Peer;

    /// Lists the other nodes, those that are gone for a while included.
    fn peers(&self) -> Vec<Peer>;

    /// Returns the events after the one with this id, all that is kept after 0, or those from now on, without end. What is kept already
    /// is ready at once.
    fn events(&self, after: Option<u64>) -> BoxStream<'static, FeedItem>;

    /// Tells what was tried to find others.
    async fn report(&self) -> MeshReport;

    /// Measures the round trip to a peer.
    ///
    /// # Errors
    ///
    /// [`MeshError::Unreachable`].
    async fn ping(&self, node_id: &str) -> Result<Pong, MeshError>;

    /// Makes a ticket for the next machine.
    ///
    /// # Errors
    ///
    /// [`MeshError::OpenSwarm`]; [`MeshError::Failed`].
    async fn invite(&self) -> Result<Invitation, MeshError>;

    /// Moves to the ticket's swarm; with data of another swarm only where `switch` says so.
    ///
    /// # Errors
    ///
    /// [`MeshError::BadTicket`], [`MeshError::NeedsSwitch`], [`MeshError::OpenSwarm`], [`MeshError::Failed`].
    async fn join(&self, ticket: &str, switch: bool) -> Result<Moved, MeshError>;

    /// Moves to a swarm of its own.
    ///
    /// # Errors
    ///
    /// [`MeshError::OpenSwarm`]; [`MeshError::Failed`].
    async fn leave(&self) -> Result<Moved, MeshError>;

    /// Removes a member and changes the key.
    ///
    /// # Errors
    ///
    /// [`MeshError::NoOwnerKey`], [`MeshError::OpenSwarm`], [`MeshError::UnknownPeer`], [`MeshError::Failed`].
    async fn kick(&self, node_id: &str) -> Result<Handed, MeshError>;

    /// Changes the key.
    ///
    /// # Errors
    ///
    /// [`MeshError::NoOwnerKey`], [`MeshError::OpenSwarm`], [`MeshError::Failed`].
    async fn rekey(&self) -> Result<Handed, MeshError>;

    /// Takes the owner key of this swarm.
    ///
    /// # Errors
    ///
    /// [`MeshError::BadOwnerKey`], [`MeshError::OpenSwarm`], [`MeshError::Failed`].
    async fn import_owner(&self, key: &str) -> Result<(), MeshError>;

    /// Returns what decides which work this node does for others; without it, it does none.
    fn sharing(&self) -> Option<&dyn Sharing> {
        None
    }

    /// Returns what has nodes fetch and remove models; without it, only this node's own can be changed.
    fn remote_models(&self) -> Option<&dyn RemoteModels> {
        None
    }
}

/// Shortest beginning of an id that names a peer: all ids begin with the same eight letters.
const ID_PREFIX_MIN: usize = 10;

/// Finds the node that people mean: by its id, by its name, or by a beginning of either that no other has.
///
/// # Errors
///
/// [`MeshError::UnknownPeer`]; [`MeshError::AmbiguousPeer`], which names those that fit.
pub fn choose<'a>(wanted: &str, nodes: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<&'a str, MeshError> {
    let nodes: Vec<(&str, &str)> = nodes.into_iter().collect();
    if let Some((id, _)) = nodes.iter().find(|(id, _)| *id == wanted) {
        return Ok(id);
    }
    let by_name: Vec<_> = nodes.iter().filter(|(_, name)| name.eq_ignore_ascii_case(wanted)).collect();
    let fitting = if by_name.is_empty() {
        let begins = |name: &str| {
            name.get(..wanted.len()).is_some_and(|start| !start.is_empty() && start.eq_ignore_ascii_case(wanted))
        };
        let of_id = |id: &str| wanted.len() >= ID_PREFIX_MIN && id.starts_with(wanted);
        nodes.iter().filter(|(id, name)| begins(name) || of_id(id)).collect()
    } else {
        by_name
    };
    match fitting.as_slice() {
        [(id, _)] => Ok(id),
        [] => Err(MeshError::UnknownPeer(format!("no peer is called '{}'", shown(wanted)))),
        several => {
            let names: Vec<String> = several.iter().take(5).map(|(id, name)| format!("{name} ({id})")).collect();
            Err(MeshError::AmbiguousPeer(format!("'{}' may be {}", shown(wanted), names.join(" or "))))
        }
    }
}

/// Cuts what somebody wrote to a length that an answer can hold.
fn shown(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "12D3KooWAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "12D3KooWBbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn chosen(wanted: &str, nodes: &[(&'static str, &'static str)]) -> Result<&'static str, MeshError> {
        choose(wanted, nodes.iter().copied())
    }

    #[test]
    fn a_peer_is_found_by_id_name_and_any_beginning_that_is_its_own() {
        let nodes = [(A, "bee-1"), (B, "hornet")];
        for wanted in [A, "bee-1", "BEE-1", "be", "12D3KooWAa"] {
            assert_eq!(chosen(wanted, &nodes), Ok(A), "{wanted}");
        }
    }

    #[test]
    fn a_whole_name_wins_over_the_beginning_of_another() {
        assert_eq!(chosen("bee", &[(A, "bee"), (B, "bee-2")]), Ok(A));
    }

    #[test]
    fn what_fits_several_is_told_with_their_names() {
        let error = chosen("bee", &[(A, "bee-1"), (B, "bee-2")]).unwrap_err();
        assert!(
            matches!(&error, MeshError::AmbiguousPeer(text) if text.contains("bee-1") && text.contains(B)),
            "{error}"
        );
        let twins = chosen("bee", &[(A, "bee"), (B, "bee")]).unwrap_err();
        assert!(matches!(twins, MeshError::AmbiguousPeer(_)), "{twins}");
    }

    #[test]
    fn what_fits_nobody_is_told() {
        for wanted in ["wasp", "12D3KooW", "", "bée"] {
            assert!(matches!(chosen(wanted, &[(A, "bee"), (B, "hornet")]), Err(MeshError::UnknownPeer(_))), "{wanted}");
        }
    }

    #[test]
    fn debug_output_does_not_show_a_ticket() {
        let invitation = Invitation { ticket: "s3cret".into(), swarm_id: "s".into(), addresses: Vec::new() };
        assert!(!format!("{invitation:?}").contains("s3cret"));
    }
}
