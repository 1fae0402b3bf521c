//! Settings of answers between nodes.

use std::fmt;
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_core::model::ModelName;
use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Requests of peers at a time where neither the configuration nor the backends say.
const SLOTS_DEFAULT: u32 = 8;
/// Most requests of peers at a time.
const SLOTS_MAX: u32 = 1_024;

/// What this node does for others: the section `[share]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShareConfig {
    /// Whether it answers requests of others at all.
    pub serve: bool,
    /// The models that others may use, by their names or those of their aliases; empty: all.
    #[serde(deserialize_with = "model_names")]
    pub models: Vec<String>,
    /// Most requests of others at a time. Without it as many as the backends have slots, and 8 where they do not say.
    #[serde(deserialize_with = "count")]
    pub max_slots: Option<u32>,
    /// The nodes that it answers, by id or by name; empty: all members. A name is what a node says of itself, and an id cannot be taken by
    /// another.
    pub peers: Vec<String>,
    /// Who may fetch and remove models of this node.
    pub manage: Manage,
}

impl Default for ShareConfig {
    fn default() -> Self {
        Self { serve: true, models: Vec::new(), max_slots: None, peers: Vec::new(), manage: Manage::default() }
    }
}

impl ShareConfig {
    /// Says whether a node, which says that it is called so, is among those that this one does anything for.
    #[must_use]
    pub fn is_for(&self, peer: &NodeId, name: &str) -> bool {
        self.peers.is_empty() || names(&self.peers, peer, name)
    }
}

/// Who may change this node's models from elsewhere: `true` or `false`, or a list of node ids and names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Manage {
    /// Every member, or nobody.
    Everybody(bool),
    /// These, by id or by name.
    These(Vec<String>),
}

impl Default for Manage {
    fn default() -> Self {
        Self::Everybody(false)
    }
}

impl Manage {
    /// Says whether a node may, which says that it is called so.
    #[must_use]
    pub fn allows(&self, peer: &NodeId, name: &str) -> bool {
        match self {
            Self::Everybody(allowed) => *allowed,
            Self::These(these) => names(these, peer, name),
        }
    }
}

/// Reads a number or nothing; a number may be written as a text, since a variable in the environment is one.
fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    struct Count;

    impl<'de> Visitor<'de> for Count {
        type Value = Option<u32>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number that is not negative")
        }

        fn visit_unit<E>(self) -> Result<Option<u32>, E> {
            Ok(None)
        }

        fn visit_none<E>(self) -> Result<Option<u32>, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<u32>, D::Error> {
            deserializer.deserialize_any(self)
        }

        fn visit_u64<E: Error>(self, value: u64) -> Result<Option<u32>, E> {
            u32::try_from(value).map(Some).map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<Option<u32>, E> {
            u32::try_from(value).map(Some).map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Option<u32>, E> {
            text.trim().parse().map(Some).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
        }
    }

    deserializer.deserialize_any(Count)
}

fn model_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    match names.iter().find_map(|name| ModelName::parse(name).err()) {
        Some(error) => Err(Error::custom(error)),
        None => Ok(names),
    }
}

/// Says whether a list names a node, by its id or its name.
fn names(list: &[String], peer: &NodeId, name: &str) -> bool {
    list.iter().any(|one| one == peer.as_str() || (!name.is_empty() && one.eq_ignore_ascii_case(name)))
}

impl<'de> Deserialize<'de> for Manage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Manage;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, or a list of names or ids of nodes")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Manage, E> {
                Ok(Manage::Everybody(value))
            }

            /// A variable in the environment has no lists.
            fn visit_str<E>(self, value: &str) -> Result<Manage, E> {
                let these = value.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned);
                Ok(Manage::These(these.collect()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Manage, A::Error> {
                let mut these = Vec::new();
                while let Some(name) = list.next_element()? {
                    these.push(name);
                }
                Ok(Manage::These(these))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// Settings of answers between nodes. The defaults suit nodes; tests shorten them.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// What this node does for others.
    pub share: ShareConfig,
    /// How many requests its backends answer at a time, all together; 0 where they do not say.
    pub backend_slots: u32,
    /// So many requests of peers may wait for each slot.
    pub queue_per_slot: u32,
    /// How long one may wait.
    pub queue_limit: Duration,
    /// How long a stream to a peer may take to open.
    pub open_limit: Duration,
    /// How long a peer may take for its first word.
    pub accept_limit: Duration,
    /// A peer that says nothing for so long while it has a request has fallen silent.
    pub stall_limit: Duration,
    /// At least so often a node says that it is still at a request; less than half of `stall_limit`.
    pub alive_every: Duration,
    /// How long a requester may take to read on before its answer is ended, and to send more of its request.
    pub progress_limit: Duration,
    /// How long a word on what this node has may take to a peer.
    pub tell_limit: Duration,
    /// Least time between two words on how busy this node is, to each peer.
    pub tell_every: Duration,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            share: ShareConfig::default(),
            backend_slots: 0,
            queue_per_slot: 2,
            queue_limit: Duration::from_secs(30),
            open_limit: Duration::from_secs(5),
            accept_limit: Duration::from_secs(5),
            stall_limit: Duration::from_secs(3),
            alive_every: Duration::from_secs(1),
            progress_limit: Duration::from_secs(60),
            tell_limit: Duration::from_secs(10),
            tell_every: Duration::from_millis(100),
        }
    }
}

impl RunConfig {
    /// Returns how many requests of peers are answered at a time.
    #[must_use]
    pub fn slots(&self) -> u32 {
        let of_backends = if self.backend_slots == 0 { SLOTS_DEFAULT } else { self.backend_slots };
        self.share.max_slots.unwrap_or(of_backends).min(SLOTS_MAX)
    }

    /// Returns how many requests of peers may wait.
    pub(super) fn queue(&self) -> u32 {
        self.slots().saturating_mul(self.queue_per_slot)
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    #[test]
    fn who_may_manage_is_written_in_three_ways() {
        let read = |text: &str| serde_json::from_str::<ShareConfig>(&format!("{{\"manage\": {text}}}"));
        let peer = NodeKey::from_secret(&[1; 32]).node_id();
        for (text, allows) in [
            ("true", true),
            ("false", false),
            ("[\"bee\", \"hornet\"]", true),
            ("\"wasp, BEE\"", true),
            ("[\"wasp\"]", false),
            ("[]", false),
        ] {
            assert_eq!(read(text).unwrap().manage.allows(&peer, "bee"), allows, "{text}");
        }
        assert!(read("3").unwrap_err().to_string().contains("true, false, or a list"));
        assert!(!Manage::These(vec![String::new()]).allows(&peer, ""), "a node without a name is nobody's friend");
        assert!(Manage::These(vec![peer.to_string()]).allows(&peer, ""));
    }

    #[test]
    fn slots_are_what_the_owner_says_else_what_the_backends_have() {
        let of = |max_slots, backend_slots| {
            let share = ShareConfig { max_slots, ..ShareConfig::default() };
            RunConfig { share, backend_slots, ..RunConfig::default() }.slots()
        };
        assert_eq!((of(None, 0), of(None, 3), of(Some(1), 3), of(Some(9_999), 0)), (8, 3, 1, SLOTS_MAX));
    }
}
