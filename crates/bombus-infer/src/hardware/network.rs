//! The machine's address on its local network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// Finds the address that the machine would send from, without sending anything: connecting a UDP socket only chooses a route.
pub(super) fn lan_address() -> Option<IpAddr> {
    // Addresses for documentation (RFC 5737, RFC 3849), which the default route leads to and nobody has.
    let v4 = (IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::new(192, 0, 2, 1)));
    let v6 = (IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)));
    [v4, v6].into_iter().find_map(|(from, to)| {
        let socket = UdpSocket::bind((from, 0)).ok()?;
        socket.connect((to, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback() && !address.is_unspecified())
    })
}
