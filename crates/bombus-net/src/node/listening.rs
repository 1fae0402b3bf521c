//! Where this node listens.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use libp2p::Multiaddr;
use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;

use super::Node;
use crate::config::ListenOn;
use crate::events::NetEvent;
use crate::failure::NetError;
use crate::{address, ports, transport};

/// An address that this node is to listen on and does not.
pub(super) struct Missing {
    wanted: ListenOn,
    /// Since when that is so.
    since: Instant,
    /// When it is tried again.
    at: Instant,
}

impl Node {
    /// Listens everywhere it was told to, on the ports that were found. Where a swarm listened before, what cannot be had is tried again.
    pub(super) fn listen(&mut self) -> Result<(), NetError> {
        let now = Instant::now();
        // Before any is listened on: one may be part of another, as an interface is of all.
        let listen: Vec<_> = self.memory.listen.iter().map(|on| (*on, ports::check(on.addr()))).collect();
        for (wanted, free) in listen {
            match free.and_then(|()| self.listen_on(wanted)) {
                Ok(()) => {}
                Err(why) if self.memory.has_listened => self.listening_failed(wanted, why, now),
                Err(why) => return Err(NetError::Listen { addr: wanted.addr().to_string(), why }),
            }
        }
        Ok(())
    }

    fn listen_on(&mut self, wanted: ListenOn) -> Result<(), String> {
        let addr = multiaddr(wanted.addr());
        let listener = self.swarm.listen_on(addr.clone()).map_err(|error| transport::chain(&error))?;
        self.listeners.insert(listener, wanted);
        if self.memory.counts.listen_failures.remove(&addr.to_string()).is_some() {
            tracing::info!(p2p.addr = %addr, "peers are listened for again");
        }
        Ok(())
    }

    pub(super) fn on_listener_closed(&mut self, listener: ListenerId, reason: Result<(), io::Error>) {
        if let Some(relay) = self.circuits.remove(&listener) {
            self.on_circuit_closed(relay, reason);
        } else if let Some(wanted) = self.listeners.remove(&listener) {
            let why = reason.err().map_or_else(|| "it was closed".to_owned(), |error| transport::chain(&error));
            self.listening_failed(wanted, why, Instant::now());
        }
        self.publish_listen_addrs();
    }

    fn listening_failed(&mut self, wanted: ListenOn, why: String, since: Instant) {
        let addr = multiaddr(wanted.addr()).to_string();
        self.relisten.push(Missing { wanted, since, at: Instant::now() + self.config.timing.relisten_pause });
        let before = self.memory.counts.listen_failures.insert(addr.clone(), why.clone());
        if before.as_ref() != Some(&why) {
            tracing::warn!(p2p.addr = addr, why, "peers cannot be listened for; that is tried again");
            self.tell(NetEvent::ListenFailed { addr, why });
        }
        self.publish_listen_addrs();
    }

    pub(super) fn relisten_if_due(&mut self, now: Instant) {
        let due: Vec<_> = self.relisten.extract_if(.., |missing| missing.at <= now).collect();
        // Both families get the same port where that is possible.
        let mut replaced = HashMap::new();
        for Missing { mut wanted, since, .. } in due {
            if !wanted.port_is_fixed
                && now.duration_since(since) >= self.config.timing.port_patience
                && self.may_have(wanted).is_err()
            {
                wanted = self.move_to_another_port(wanted, &mut replaced);
            }
            if let Err(why) = self.may_have(wanted).and_then(|()| self.listen_on(wanted)) {
                self.listening_failed(wanted, why, since);
            }
        }
    }

    /// Looks whether no other process has an address: the transport would share it without a word.
    fn may_have(&self, wanted: ListenOn) -> Result<(), String> {
        let is_own =
            self.listeners.values().any(|own| own.port == wanted.port && own.ip.is_ipv4() == wanted.ip.is_ipv4());
        // What this node listens on already is in its own way, and in that of others.
        if is_own { Ok(()) } else { ports::check(wanted.addr()) }
    }

    /// Gives up a port that nobody chose.
    fn move_to_another_port(&mut self, before: ListenOn, replaced: &mut HashMap<u16, u16>) -> ListenOn {
        let Ok(port) = ports::another(before.ip, replaced.get(&before.port).copied()) else {
            return before;
        };
        tracing::warn!(
            p2p.port = before.port,
            p2p.free_port = port,
            "the port for peers stays taken; a free one is used"
        );
        replaced.insert(before.port, port);
        self.memory.counts.listen_failures.remove(&multiaddr(before.addr()).to_string());
        let after = ListenOn { port, ..before };
        self.memory.listen.iter_mut().filter(|on| **on == before).for_each(|on| *on = after);
        after
    }

    /// Tells where this node listens: what others can reach first, and what is on this machine only last.
    pub(super) fn publish_listen_addrs(&mut self) {
        let mut addrs: Vec<Multiaddr> = self.memory.external.clone();
        addrs.extend(self.swarm.listeners().cloned());
        let rank = |addr: &Multiaddr| (address::is_relayed(addr), address::is_loopback(addr));
        addrs.sort_by_key(rank);
        let mut texts: Vec<String> = Vec::new();
        for addr in addrs {
            let text = address::with_peer(&addr, self.local).to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        self.shared.listen.send_if_modified(|listen| {
            let is_new = *listen != texts;
            *listen = texts;
            is_new
        });
        self.is_changed = true;
    }
}

fn multiaddr(addr: SocketAddr) -> Multiaddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) => Protocol::Ip4(ip),
        IpAddr::V6(ip) => Protocol::Ip6(ip),
    };
    Multiaddr::empty().with(ip).with(Protocol::Tcp(addr.port()))
}
