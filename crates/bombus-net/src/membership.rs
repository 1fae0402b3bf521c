//! Membership: which swarm a node belongs to, by which key, and who was taken out of it.
//!
//! A swarm is the nodes that share one [`SwarmKey`]: it is part of the transport, so a stranger does not get past the handshake. The
//! machine on which a swarm began also has an [`OwnerKey`], and the swarm's [`SwarmId`] is the hash of its public half, so that the id
//! survives every new swarm key. All members trust each other alike, except that taking a peer out ([`Membership::kick`]) and changing
//! the key ([`Membership::rekey`]) needs the owner key: what it signs is a [`SignedChange`].
//!
//! ```text
//! key.rs          SwarmKey, and its standard text form;  swarm_id.rs: SwarmId
//! owner.rs        OwnerKey and OwnerId;  one_line.rs: secrets as one line of text, with a checksum
//! ticket.rs       Ticket: what one machine hands to the next so that it can join
//! change.rs       SignedChange: canonical bytes, signature
//! rules.rs        which change counts: any order of arrival gives the same state (pure)
//! known_peers.rs  addresses of peers met before (pure)
//! folder.rs       the swarm's folder on disk;  store.rs: Membership, the rules with their folder
//! wire.rs         frames of `/bombus/membership/1`;  exchange.rs: who is told what, and when the key is changed (pure)
//! session.rs      one stream of the protocol, from either end;  links.rs: the mesh as the service needs it
//! service.rs      MembershipService: store and exchange over streams;  handle.rs: MembershipHandle
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use bombus_core::identity::NodeId;

mod address;
mod change;
mod clock;
mod error;
mod exchange;
mod folder;
mod handle;
mod key;
mod known_peers;
mod links;
mod one_line;
mod owner;
mod peer_key;
mod rules;
mod service;
mod session;
mod store;
mod swarm_id;
mod ticket;
mod wire;

pub use change::{ChangeError, SignedChange};
pub use error::{InviteError, JoinError, MembershipError, OwnerError};
pub use handle::{Handed, MembershipHandle};
pub use key::{ParseSwarmKeyError, SwarmKey};
pub use known_peers::{AddressOrigin, KnownAddress, KnownPeer};
pub use one_line::ParseLineError;
pub use owner::{OwnerId, OwnerKey};
pub use rules::{Applied, IgnoredChanges};
pub use service::{MembershipService, MembershipServiceError, MembershipTiming};
pub use store::{Joined, Left, Membership, Standing};
pub use swarm_id::{ParseSwarmIdError, SwarmId};
pub use ticket::Ticket;
pub use wire::{FrameError, PROTOCOL, decode_frame};

/// Whether the transport asks for a swarm key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Privacy {
    /// Only who has the key gets past the handshake.
    Closed(SwarmKey),
    /// Anybody who reaches the port can take part.
    Open,
}

/// The part of the membership that the transport stands on: when `swarm_id` or `privacy` changes it is built anew, and a peer in
/// `removed` is never let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipState {
    /// The swarm.
    pub swarm_id: SwarmId,
    /// Its key, or none.
    pub privacy: Privacy,
    /// How often its key was changed.
    pub generation: Generation,
    /// Peers that its owner took out.
    pub removed: Arc<BTreeSet<NodeId>>,
}

impl MembershipState {
    /// Says whether another state needs another transport: another swarm, or another key.
    #[must_use]
    pub fn needs_new_transport(&self, next: &Self) -> bool {
        self.swarm_id != next.swarm_id || self.privacy != next.privacy
    }
}

/// Counts the changes of a swarm's key: 0 is the key that it began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
