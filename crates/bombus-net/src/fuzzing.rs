//! What the fuzz targets need of what is private here.

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use crate::address;
pub use crate::transport::fuzzing::first_bytes;

/// Reads an address as peers tell it, in its binary form, and checks what has to hold for it.
///
/// # Panics
///
/// When something does not hold.
pub fn told_address(bytes: &[u8]) {
    let Ok(addr) = Multiaddr::try_from(bytes.to_vec()) else { return };
    let is_relayed = address::is_relayed(&addr);
    assert!(is_relayed || address::relay_of(&addr).is_none(), "{addr} has a relay and leads through none");
    assert!(!address::is_loopback(&addr) || address::ip_of(&addr).is_some(), "{addr}");
    let (place, peer) = address::split_peer(addr.clone());
    let whole = match peer {
        Some(peer) => place.clone().with(Protocol::P2p(peer)),
        None => place.clone(),
    };
    assert_eq!(whole, addr, "nothing of it is lost");
    if address::is_dialable(&place) {
        // It is typed, shown and kept as text.
        let target = address::parse_target(&place.to_string());
        let needs_peer = address::is_relayed(&place);
        assert_eq!(target.is_err(), needs_peer, "{place}: {target:?}");
    }
}

/// Reads an address as somebody types it, and checks what has to hold for it.
///
/// # Panics
///
/// When something does not hold.
pub fn typed_address(text: &str) {
    let Ok(target) = address::parse_target(text) else { return };
    assert!(address::is_dialable(&target.addr), "{}", target.addr);
    let written = match target.peer {
        Some(peer) => address::with_peer(&target.addr, peer).to_string(),
        None => target.addr.to_string(),
    };
    assert_eq!(address::parse_target(&written), Ok(target), "it reads what it writes");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_for_all_holds_for_these() {
        const RELAY: &str = "/ip4/192.0.2.7/tcp/7891/p2p/12D3KooWGjMCVbrUEBDTWkYpGRsvnGkeDoMrYDfZ9dpgTzmSf1wZ";
        let relayed = format!("{RELAY}/p2p-circuit");
        for addr in
            ["/ip4/192.0.2.7/tcp/7891", RELAY, &relayed, "/dns/hive.example/tcp/1", "/ip6/::1/udp/5", "/p2p-circuit"]
        {
            typed_address(addr);
            told_address(&addr.parse::<Multiaddr>().unwrap().to_vec());
        }
        let greeting = b"\x13/multistream/1.0.0\n".as_slice();
        for bytes in [greeting, &greeting[..7], b"", b"HTTP/1.1 400 Bad Request\r\n", &[0x9c; 40]] {
            for at_once in [1, 7, 64] {
                first_bytes(bytes, at_once, at_once == 7);
                first_bytes(&[greeting, bytes].concat(), at_once, true);
            }
        }
    }
}
