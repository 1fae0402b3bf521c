//! What the state machines say is done here, and what happened is told.

use std::collections::VecDeque;
use std::time::Instant;

use bombus_core::identity::NodeId;
use libp2p::Multiaddr;
use libp2p::swarm::ConnectionId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};

use super::{Attempt, Node, connections};
use crate::dialer::{Input, Output};
use crate::events::NetEvent;
use crate::failure::DialFailure;
use crate::{id, reservations};

impl Node {
    /// Tells the dialer what happened, and does what it says.
    pub(super) fn feed(&mut self, input: Input) {
        let now = Instant::now();
        let mut outputs: VecDeque<_> = self.memory.dialer.on(now, input).into();
        while let Some(output) = outputs.pop_front() {
            match output {
                Output::Dial { peer, addrs } => {
                    for input in self.dial(&peer, addrs) {
                        outputs.extend(self.memory.dialer.on(now, input));
                    }
                }
                Output::DialSeed { addr } => {
                    if let Some(input) = self.dial_seed(addr) {
                        outputs.extend(self.memory.dialer.on(now, input));
                    }
                }
                Output::Close { peer, connection, unless_busy } => {
                    self.close(&peer, connection, unless_busy);
                }
                Output::CloseIdle { peer, connection } => {
                    // Of what peers of other programs do over topics alone, nothing is known here.
                    let agent = self.introductions.get(&peer).map(|introduction| introduction.agent.as_str());
                    let is_ours = agent.is_some_and(|agent| agent.starts_with("bombus/"));
                    if !is_ours || !self.close(&peer, connection, true) {
                        outputs.extend(self.memory.dialer.on(now, Input::InUse { peer }));
                    }
                }
                Output::Prefer { peer, connection } => {
                    if let Some(peer) = id::peer_id(&peer) {
                        self.swarm.behaviour_mut().streams.prefer(&peer, connection);
                    }
                }
                Output::Keep { peer, connection, keep } => {
                    if let Some(peer) = id::peer_id(&peer) {
                        self.swarm.behaviour_mut().streams.keep(peer, connection, keep);
                    }
                }
                Output::NotReached { peer, why } => self.on_not_reached(&peer, &why),
                Output::Tell(event) => self.tell(event),
            }
        }
    }

    /// Dials a peer; returns what to tell the dialer where that fails at once.
    pub(super) fn dial(&mut self, peer: &NodeId, addrs: Vec<Multiaddr>) -> Vec<Input> {
        let Some(peer_id) = id::peer_id(peer) else {
            let why = DialFailure::InvalidAddress { why: "it is no peer id".to_owned() };
            return vec![Input::DialEnded { peer: peer.clone(), why }];
        };
        tracing::debug!(peer.id = %peer, ?addrs, "a peer is dialled");
        let options = DialOpts::peer_id(peer_id).addresses(addrs).condition(PeerCondition::Always).build();
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.attempts.insert(connection, Attempt::Peer(peer.clone()));
                Vec::new()
            }
            Err(error) => {
                let (failures, why) = connections::explain(error);
                let failed = failures.into_iter().map(|(addr, why)| Input::Failed { peer: peer.clone(), addr, why });
                failed.chain([Input::DialEnded { peer: peer.clone(), why }]).collect()
            }
        }
    }

    pub(super) fn dial_seed(&mut self, addr: Multiaddr) -> Option<Input> {
        let options: DialOpts = addr.clone().into();
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.attempts.insert(connection, Attempt::Seed(addr));
                None
            }
            Err(error) => Some(Input::SeedFailed { addr, why: connections::explain(error).1 }),
        }
    }

    /// Closes a connection; says whether it did. One that circuits go over stays in any case: they would end with it.
    pub(super) fn close(&mut self, peer: &NodeId, connection: ConnectionId, unless_busy: bool) -> bool {
        if self.may_carry_circuits(peer) {
            return false;
        }
        let is_busy = |peer| self.swarm.behaviour().streams.is_busy(&peer, connection);
        if unless_busy && id::peer_id(peer).is_some_and(is_busy) {
            return false;
        }
        self.swarm.close_connection(connection)
    }

    pub(super) fn tell(&mut self, event: NetEvent) {
        // Who hears of a change finds it in the picture.
        match &event {
            NetEvent::PeerConnected { .. } | NetEvent::PeerDisconnected { .. } | NetEvent::PathChanged { .. } => {
                self.publish_picture();
            }
            NetEvent::DialFailed { addr, peer, why } => self.remember_failure(addr, peer.as_ref(), why),
            _ => self.is_changed = true,
        }
        // Without readers nobody hears it.
        let _ = self.shared.events.send(event);
    }

    pub(super) fn tell_conflict(&mut self, addr: String) {
        tracing::error!(peer.addr = addr, "another process has this node's identity: one of the two must get its own");
        if self.memory.counts.identity_conflicts.len() < 16 {
            self.memory.counts.identity_conflicts.insert(addr.clone());
        }
        self.tell(NetEvent::IdentityConflict { addr });
    }

    /// Tells the plan of reservations what happened, and does what it says.
    pub(super) fn feed_reservations(&mut self, input: reservations::Input) {
        for output in self.reservations.on(Instant::now(), input) {
            self.on_reservation(output);
        }
    }
}
