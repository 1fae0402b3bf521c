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
    /// It offers no more, and goes from the list once nothing is under way there.
    is_withdrawn: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unused,
    Asked,
    /// Asked, and no longer wanted: libp2p's client must not lose its listener before the answer is there.
    Unwanted,
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

impl Relay {
    /// Wants no reservation there any more. Returns whether one is to be given back now.
    fn give_up(&mut self) -> bool {
        match self.state {
            State::Unused | State::Unwanted => false,
            State::Asked => {
                self.state = State::Unwanted;
                false
            }
            State::Reserved => {
                self.state = State::Unused;
                true
            }
        }
    }
}

impl Reservations {
    /// Takes in what happened, and says what is to be done.
    pub(crate) fn on(&mut self, now: Instant, input: Input) -> Vec<Output> {
        match input {
            Input::Offered { relay, addr, is_near } => {
                let unused =
                    Relay { addr, is_near, state: State::Unused, failures: 0, not_before: None, is_withdrawn: false };
                self.relays.entry(relay).or_insert(unused).is_withdrawn = false;
            }
            Input::Withdrawn { relay } => {
                let Some(known) = self.relays.get_mut(&relay) else { return Vec::new() };
                known.is_withdrawn = true;
                let mut outputs = Vec::new();
                if known.give_up() {
                    outputs.push(Output::Release { relay });
                }
                outputs.extend(self.fill(now));
                return outputs;
            }
            Input::Accepted { relay } => {
                if let Some(known) = self.relays.get_mut(&relay) {
                    known.failures = 0;
                    let is_wanted = known.state != State::Unwanted;
                    known.state = State::Reserved;
                    if !is_wanted && known.give_up() {
                        return vec![Output::Release { relay }];
                    }
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
        let offered = self.relays.iter().filter(|(_, relay)| !relay.is_withdrawn);
        offered.map(|(id, _)| id.clone()).collect()
    }

    fn fill(&mut self, now: Instant) -> Vec<Output> {
        self.relays.retain(|_, relay| !relay.is_withdrawn || relay.state != State::Unused);
        if !self.is_needed {
            return Vec::new();
        }
        for relay in self.relays.values_mut().filter(|relay| relay.state == State::Unwanted && !relay.is_withdrawn) {
            relay.state = State::Asked;
        }
        let used = self.relays.values().filter(|relay| matches!(relay.state, State::Asked | State::Reserved)).count();
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
        let released = self.relays.iter_mut().filter_map(|(id, relay)| relay.give_up().then(|| id.clone()));
        released.map(|relay| Output::Release { relay }).collect()
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
        reservations.on(now, Input::Accepted { relay: next[0].clone() });
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

    #[test]
    fn a_reservation_that_is_no_longer_wanted_is_given_back_when_it_was_made() {
        let now = Instant::now();
        let mut reservations = Reservations::default();
        reservations.on(now, Input::Needed(true));
        reservations.on(now, offered(1, false));
        assert!(reservations.on(now, Input::Needed(false)).is_empty(), "its answer is still under way");
        let given_back = reservations.on(now, Input::Accepted { relay: relay(1) });
        assert_eq!(given_back, [Output::Release { relay: relay(1) }]);

        reservations.on(now, Input::Needed(true));
        assert!(reservations.on(now, Input::Withdrawn { relay: relay(1) }).is_empty());
        assert!(reservations.offered().is_empty());
        assert!(reservations.on(now, Input::Ended { relay: relay(1) }).is_empty(), "nothing is left to give back");
        assert_eq!(reserved_at(&reservations.on(now, offered(1, false))), [relay(1)], "and it may offer again");
    }

    #[test]
    fn a_reservation_that_is_wanted_again_in_time_stays() {
        let now = Instant::now();
        let mut reservations = Reservations::default();
        reservations.on(now, Input::Needed(true));
        reservations.on(now, offered(1, false));
        reservations.on(now, Input::Needed(false));
        assert!(reservations.on(now, Input::Needed(true)).is_empty(), "it is asked only once");
        assert!(reservations.on(now, Input::Accepted { relay: relay(1) }).is_empty());
        assert_eq!(reservations.reserved(), [relay(1)]);
    }
}
