//! At which members a node that others cannot reach keeps a reservation, so that they reach it through them (pure).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bombus_core::identity::NodeId;
use libp2p::Multiaddr;

/// How many reservations are kept.
const WANTED: usize = 2;
/// Before a relay that refused, or lost the reservation, is asked again; it doubles.
const RETRY_MIN: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(600);

/// A member that relays, as far as a connection to it shows.
#[derive(Debug)]
struct Relay {
    addr: Multiaddr,
    /// On a link of its own: others reach such a relay hardly better than this node.
    is_near: bool,
    state: State,
    failures: u32,
    not_before: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unused,
    Asked,
    Reserved,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// A connected member offers to relay.
    Offered { relay: NodeId, addr: Multiaddr, is_near: bool },
    /// It does no longer, or the connection to it is gone.
    Withdrawn { relay: NodeId },
    /// The reservation stands.
    Accepted { relay: NodeId },
    /// The reservation was refused, or has ended.
    Ended { relay: NodeId },
    /// Whether reservations are needed at all; to be said again as time passes.
    Needed(bool),
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Ask for a reservation, at the relay's own address.
    Reserve { relay: NodeId, addr: Multiaddr },
    /// Give a reservation back.
    Release { relay: NodeId },
}

/// The state machine.
#[derive(Debug, Default)]
pub(crate) struct Reservations {
    relays: BTreeMap<NodeId, Relay>,
    is_needed: bool,
}

impl Reservations {
    /// Takes in what happened, and says what is to be done.
    pub(crate) fn on(&mut self, now: Instant, input: Input) -> Vec<Output> {
        match input {
            Input::Offered { relay, addr, is_near } => {
                let unused = Relay { addr, is_near, state: State::Unused, failures: 0, not_before: None };
                self.relays.entry(relay).or_insert(unused);
            }
            Input::Withdrawn { relay } => {
                if self.relays.remove(&relay).is_some_and(|relay| relay.state != State::Unused) {
                    let mut outputs = vec![Output::Release { relay }];
                    outputs.extend(self.fill(now));
                    return outputs;
                }
            }
            Input::Accepted { relay } => {
                if let Some(relay) = self.relays.get_mut(&relay) {
                    relay.state = State::Reserved;
                    relay.failures = 0;
                }
            }
            Input::Ended { relay } => {
                if let Some(relay) = self.relays.get_mut(&relay) {
                    relay.state = State::Unused;
                    let pause = RETRY_MIN.saturating_mul(1 << relay.failures.min(10)).min(RETRY_MAX);
                    relay.failures += 1;
                    relay.not_before = Some(now + pause);
                }
            }
            Input::Needed(is_needed) => {
                self.is_needed = is_needed;
                if !is_needed {
                    return self.release_all();
                }
            }
        }
        self.fill(now)
    }

    /// Returns the relays at which a reservation stands.
    pub(crate) fn reserved(&self) -> Vec<NodeId> {
        let reserved = self.relays.iter().filter(|(_, relay)| relay.state == State::Reserved);
        reserved.map(|(id, _)| id.clone()).collect()
    }

    /// Returns the members that offer to relay.
    pub(crate) fn offered(&self) -> Vec<NodeId> {
        self.relays.keys().cloned().collect()
    }

    fn fill(&mut self, now: Instant) -> Vec<Output> {
        if !self.is_needed {
            return Vec::new();
        }
        let used = self.relays.values().filter(|relay| relay.state != State::Unused).count();
        let mut free: Vec<_> = self
            .relays
            .iter_mut()
            .filter(|(_, relay)| relay.state == State::Unused && relay.not_before.is_none_or(|at| at <= now))
            .collect();
        free.sort_by_key(|(_, relay)| (relay.is_near, relay.failures));
        free.into_iter()
            .take(WANTED.saturating_sub(used))
            .map(|(id, relay)| {
                relay.state = State::Asked;
                Output::Reserve { relay: id.clone(), addr: relay.addr.clone() }
            })
            .collect()
    }

    fn release_all(&mut self) -> Vec<Output> {
        let used = self.relays.iter_mut().filter(|(_, relay)| relay.state != State::Unused);
        used.map(|(id, relay)| {
            relay.state = State::Unused;
            Output::Release { relay: id.clone() }
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    fn relay(number: u8) -> NodeId {
        NodeKey::from_secret(&[number; 32]).node_id()
    }

    fn offered(number: u8, is_near: bool) -> Input {
        let addr = format!("/ip4/192.0.2.{number}/tcp/7891").parse().unwrap();
        Input::Offered { relay: relay(number), addr, is_near }
    }

    fn reserved_at(outputs: &[Output]) -> Vec<NodeId> {
        outputs
            .iter()
            .filter_map(|output| match output {
                Output::Reserve { relay, .. } => Some(relay.clone()),
                Output::Release { .. } => None,
            })
            .collect()
    }

    #[test]
    fn two_reservations_are_kept_while_they_are_needed() {
        let now = Instant::now();
        let mut reservations = Reservations::default();
        for number in 1..=3 {
            assert!(reservations.on(now, offered(number, false)).is_empty(), "nobody asks before it is needed");
        }
        let asked = reserved_at(&reservations.on(now, Input::Needed(true)));
        assert_eq!(asked.len(), 2);
        for relay in &asked {
            reservations.on(now, Input::Accepted { relay: relay.clone() });
        }
        assert!(reservations.on(now, Input::Needed(true)).is_empty());
        let next = reserved_at(&reservations.on(now, Input::Withdrawn { relay: asked[0].clone() }));
        assert_eq!(next.len(), 1, "the third one takes the place of the one that is gone");
        assert_eq!(reservations.on(now, Input::Needed(false)).len(), 2, "both are given back");
    }

    #[test]
    fn relays_beyond_the_own_link_come_first() {
        let now = Instant::now();
        let mut reservations = Reservations::default();
        reservations.on(now, offered(1, true));
        reservations.on(now, offered(2, false));
        reservations.on(now, offered(3, false));
        let mut asked = reserved_at(&reservations.on(now, Input::Needed(true)));
        asked.sort();
        let mut far = vec![relay(2), relay(3)];
        far.sort();
        assert_eq!(asked, far);
    }

    #[test]
    fn a_relay_that_refuses_is_left_alone_for_a_while() {
        let now = Instant::now();
        let mut reservations = Reservations::default();
        reservations.on(now, Input::Needed(true));
        assert_eq!(reserved_at(&reservations.on(now, offered(1, false))), [relay(1)]);
        assert!(reservations.on(now, Input::Ended { relay: relay(1) }).is_empty());
        assert!(reservations.on(now + RETRY_MIN / 2, Input::Needed(true)).is_empty());
        assert_eq!(reserved_at(&reservations.on(now + RETRY_MIN, Input::Needed(true))), [relay(1)]);
    }
}
