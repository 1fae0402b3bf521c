//! Tickets: how a swarm's key and addresses travel to the next machine.

use std::fmt;
use std::str::FromStr;

use bombus_core::identity::NodeId;
use libp2p::Multiaddr;
use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};
use zeroize::Zeroizing;

use super::change::GENERATION_MAX;
use super::one_line::{self, LINE_CHARACTERS_MAX, ParseLineError, TICKET};
use super::{Generation, InviteError, OwnerId, SwarmId, SwarmKey, address, peer_key};

/// How many addresses a ticket has at most.
const ADDRESSES_MAX: usize = 16;

/// One line of text with which a machine joins a swarm: `bombus1` and base32, at most 1,024 characters, with a checksum. Whoever has it
/// can join, so `Debug` does not show it; `Display` does, since it is made to be handed over.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    key: SwarmKey,
    owner: OwnerId,
    generation: Generation,
    addresses: Vec<(Multiaddr, Option<NodeId>)>,
}

impl Ticket {
    /// Makes a ticket with the first of the addresses: at most 16, and no more than fit into 1,024 characters.
    pub(super) fn new<S: AsRef<str>>(
        key: SwarmKey,
        owner: OwnerId,
        generation: Generation,
        addresses: &[S],
    ) -> Result<Self, InviteError> {
        let mut split = Vec::new();
        for text in addresses.iter().map(AsRef::as_ref) {
            let wrong = |reason| InviteError::Address { address: text.to_owned(), reason };
            let address = address::split(text).map_err(wrong)?;
            if !split.contains(&address) {
                split.push(address);
            }
        }
        split.truncate(ADDRESSES_MAX);
        let mut ticket = Self { key, owner, generation, addresses: split };
        while one_line::characters(&TICKET, ticket.content().len()) > LINE_CHARACTERS_MAX {
            ticket.addresses.pop();
        }
        Ok(ticket)
    }

    /// Returns the swarm that it leads to.
    #[must_use]
    pub fn swarm_id(&self) -> SwarmId {
        SwarmId::of(&self.owner)
    }

    /// Returns how often the swarm's key had been changed when it was made.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns the swarm's key.
    #[must_use]
    pub fn key(&self) -> &SwarmKey {
        &self.key
    }

    /// Returns the public half of the swarm's owner key.
    #[must_use]
    pub fn owner(&self) -> &OwnerId {
        &self.owner
    }

    /// Returns addresses of members, as multiaddrs.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.addresses.iter().map(|(leads, node)| address::join(leads, node.as_ref())).collect()
    }

    fn content(&self) -> Zeroizing<Vec<u8>> {
        let mut groups: Vec<Group> = Vec::new();
        for (leads, node) in &self.addresses {
            let node = node.as_ref().map(|node| peer_key::to_bytes(node).into());
            // Neighbours of the same node share its id, which is longer than an address; their order stays.
            match groups.last_mut() {
                Some(group) if group.node == node => group.addresses.push(leads.to_vec().into()),
                _ => groups.push(Group { node, addresses: vec![leads.to_vec().into()] }),
            }
        }
        let content = Content {
            key: (*self.key.as_bytes()).into(),
            owner: (*self.owner.as_bytes()).into(),
            generation: self.generation.0,
            groups,
        };
        Zeroizing::new(minicbor::to_vec(content).expect("memory takes all that is written"))
    }

    fn from_content(bytes: &[u8]) -> Result<Self, String> {
        let content: Content = minicbor::decode(bytes).map_err(|error| error.to_string())?;
        let owner = OwnerId::from_bytes(content.owner.into()).ok_or("its owner is no public key")?;
        if content.generation > GENERATION_MAX {
            return Err(format!("its generation is {}, and the highest is {GENERATION_MAX}", content.generation));
        }
        let mut addresses = Vec::new();
        for group in content.groups {
            let node = match group.node {
                Some(key) => Some(peer_key::from_bytes(&key).ok_or("one of its nodes is no public key")?),
                None => None,
            };
            for bytes in group.addresses {
                if addresses.len() == ADDRESSES_MAX {
                    return Err(format!("it has more than {ADDRESSES_MAX} addresses"));
                }
                addresses.push((address::from_bytes(&bytes)?, node.clone()));
            }
        }
        let key = SwarmKey::from_bytes(content.key.into());
        Ok(Self { key, owner, generation: Generation(content.generation), addresses })
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line::encode(&TICKET, &self.content()))
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("swarm_id", &self.swarm_id())
            .field("generation", &self.generation)
            .field("addresses", &self.addresses())
            .finish_non_exhaustive()
    }
}

impl FromStr for Ticket {
    type Err = ParseLineError;

    fn from_str(text: &str) -> Result<Self, ParseLineError> {
        let content = one_line::decode(&TICKET, text)?;
        Self::from_content(&content).map_err(|reason| ParseLineError::Content { wanted: TICKET.called, reason })
    }
}

/// What a ticket holds, as CBOR. Unknown fields are ignored.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Content {
    #[n(0)]
    key: ByteArray<32>,
    #[n(1)]
    owner: ByteArray<32>,
    #[n(2)]
    generation: u64,
    #[n(3)]
    groups: Vec<Group>,
}

/// Addresses of one node, or of nobody in particular.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Group {
    #[n(0)]
    node: Option<ByteArray<32>>,
    #[n(1)]
    addresses: Vec<ByteVec>,
}

#[cfg(test)]
mod tests;
