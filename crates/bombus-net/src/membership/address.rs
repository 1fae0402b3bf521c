//! Multiaddrs as they are remembered and put into tickets: the address apart from the peer at its end.

use bombus_core::identity::NodeId;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

/// The longest address that is remembered, in bytes of its binary form.
pub(super) const ADDRESS_BYTES_MAX: usize = 256;

/// Splits an address into what leads there and the node that it names at its end. A peer that is no node stays in the address.
pub(super) fn split(address: &str) -> Result<(Multiaddr, Option<NodeId>), String> {
    let parsed: Multiaddr = address.parse().map_err(|error: libp2p::multiaddr::Error| error.to_string())?;
    let (leads, node) = split_parsed(parsed);
    check(&leads)?;
    Ok((leads, node))
}

/// Reads the binary form of an address without a node at its end.
pub(super) fn from_bytes(bytes: &[u8]) -> Result<Multiaddr, String> {
    if bytes.len() > ADDRESS_BYTES_MAX {
        return Err(format!("it has {} bytes, and at most {ADDRESS_BYTES_MAX} are allowed", bytes.len()));
    }
    let parsed = Multiaddr::try_from(bytes.to_vec()).map_err(|error| error.to_string())?;
    check(&parsed)?;
    Ok(parsed)
}

/// Puts an address and the node at its end together again.
pub(super) fn join(leads: &Multiaddr, node: Option<&NodeId>) -> String {
    match node {
        Some(node) => format!("{leads}/p2p/{node}"),
        None => leads.to_string(),
    }
}

fn split_parsed(mut address: Multiaddr) -> (Multiaddr, Option<NodeId>) {
    let node = match address.iter().last() {
        Some(Protocol::P2p(peer)) => NodeId::parse(&peer.to_base58()).ok(),
        _ => None,
    };
    if node.is_some() {
        address.pop();
    }
    (address, node)
}

fn check(leads: &Multiaddr) -> Result<(), String> {
    if leads.is_empty() {
        return Err("it names no host".to_owned());
    }
    if leads.len() > ADDRESS_BYTES_MAX {
        return Err(format!("it has {} bytes, and at most {ADDRESS_BYTES_MAX} are allowed", leads.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    #[test]
    fn the_node_at_the_end_is_told_apart() {
        let node = NodeKey::from_secret(&[1; 32]).node_id();
        let relay = NodeKey::from_secret(&[2; 32]).node_id();
        let through = format!("/ip4/192.0.2.1/tcp/7891/p2p/{relay}/p2p-circuit");
        for leads in ["/ip4/192.0.2.1/tcp/7891", "/dns4/host.example/tcp/7891", &through] {
            let whole = format!("{leads}/p2p/{node}");
            let (split_leads, split_node) = split(&whole).unwrap();
            assert_eq!((split_leads.to_string().as_str(), split_node.as_ref()), (leads, Some(&node)));
            assert_eq!(join(&split_leads, split_node.as_ref()), whole);
            assert_eq!(from_bytes(&split_leads.to_vec()).unwrap(), split_leads);
        }
        assert_eq!(split(&through).unwrap().1, None, "the circuit leads to nobody in particular");
    }

    #[test]
    fn what_leads_nowhere_is_refused() {
        let node = NodeKey::from_secret(&[1; 32]).node_id();
        for address in ["", "192.0.2.1:7891", "/ip4/300.0.0.1/tcp/1", &format!("/p2p/{node}"), &"/tcp/1".repeat(100)] {
            assert!(split(address).is_err(), "{address}");
        }
        assert!(from_bytes(&[]).is_err() && from_bytes(&[0xff; 8]).is_err() && from_bytes(&[0; 300]).is_err());
    }
}
