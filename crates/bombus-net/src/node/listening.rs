//! Where this node listens.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use libp2p::Multiaddr;
use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;

use super::Node;
use crate::address;
use crate::events::NetEvent;
use crate::failure::NetError;
use crate::transport;

/// Before an address is listened on again after that failed.
const RETRY: Duration = Duration::from_secs(5);

impl Node {
    /// Listens everywhere it was told to, on the ports that were found at the start.
    pub(super) fn listen(&mut self) -> Result<(), NetError> {
        for addr in self.memory.listen.clone() {
            self.listen_on(addr).map_err(|why| NetError::Listen { addr: addr.to_string(), why })?;
        }
        Ok(())
    }

    fn listen_on(&mut self, addr: SocketAddr) -> Result<(), String> {
        let listener = self.swarm.listen_on(multiaddr(addr)).map_err(|error| transport::chain(&error))?;
        self.listeners.insert(listener, addr);
        self.memory.counts.listen_failures.remove(&multiaddr(addr).to_string());
        Ok(())
    }

    pub(super) fn on_listener_closed(&mut self, listener: ListenerId, reason: Result<(), io::Error>) {
        if let Some(relay) = self.circuits.remove(&listener) {
            self.on_circuit_closed(relay, reason);
        } else if let Some(addr) = self.listeners.remove(&listener) {
            let why = reason.err().map_or_else(|| "it was closed".to_owned(), |error| transport::chain(&error));
            self.listening_failed(addr, why);
        }
        self.publish_listen_addrs();
    }

    fn listening_failed(&mut self, addr: SocketAddr, why: String) {
        tracing::warn!(p2p.addr = %addr, why, "peers cannot be listened for; that is tried again");
        let text = multiaddr(addr).to_string();
        self.memory.counts.listen_failures.insert(text.clone(), why.clone());
        self.relisten.push((Instant::now() + RETRY, addr));
        self.tell(NetEvent::ListenFailed { addr: text, why });
    }

    pub(super) fn relisten_if_due(&mut self, now: Instant) {
        let due: Vec<_> = self.relisten.extract_if(.., |(at, _)| *at <= now).map(|(_, addr)| addr).collect();
        for addr in due {
            if let Err(why) = self.listen_on(addr) {
                self.listening_failed(addr, why);
            }
        }
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
