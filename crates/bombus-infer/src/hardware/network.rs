//! The machine's addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use bombus_core::capability::NetworkInterface;
use sysinfo::Networks;

/// Most interfaces that are listed; hosts of containers have hundreds.
const INTERFACES_MAX: usize = 64;

/// Lists the interfaces that have addresses beyond this machine, by name.
pub(super) fn interfaces() -> Vec<NetworkInterface> {
    let Ok(networks) = Networks::new_with_refreshed_list() else { return Vec::new() };
    let mut interfaces: Vec<NetworkInterface> = networks
        .iter()
        .map(|(name, data)| {
            let addresses = data.ip_networks().iter().map(|network| network.addr).filter(|addr| !addr.is_loopback());
            let mut addresses: Vec<IpAddr> = addresses.collect();
            addresses.sort();
            NetworkInterface {
                name: name.to_string_lossy().into_owned(),
                addresses: addresses.iter().map(ToString::to_string).collect(),
                speed_mbit: data.transmit_link_speed().map(|bits| bits / 1_000_000).filter(|mbit| *mbit > 0),
            }
        })
        .filter(|interface| !interface.addresses.is_empty())
        .collect();
    interfaces.sort_by(|a, b| a.name.cmp(&b.name));
    interfaces.truncate(INTERFACES_MAX);
    interfaces
}

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
