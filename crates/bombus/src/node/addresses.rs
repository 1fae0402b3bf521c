//! Which of a node's addresses are worth telling other machines.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use bombus_core::identity::NodeId;

use crate::config::P2pConfig;
use crate::data_dir::DataDir;

/// Says where a node of this data directory would be reached if it ran: for tickets that are made while it does not.
pub(crate) fn own_addresses(config: &P2pConfig, data_dir: &DataDir) -> Result<Vec<String>> {
    let node_id = data_dir.node_key()?.node_id();
    let hardware = bombus_infer::hardware::probe(data_dir.root());
    let interfaces = hardware.interfaces.iter().flat_map(|interface| &interface.addresses);
    let interfaces: Vec<IpAddr> = interfaces.filter_map(|address| address.parse().ok()).collect();
    Ok(worth_telling(&config.external, &predicted(&config.listen, &interfaces), &node_id))
}

/// Writes out what listening would lead to. A port that is taken at the time is not known.
fn predicted(listen: &[SocketAddr], interfaces: &[IpAddr]) -> Vec<String> {
    let mut addresses = Vec::new();
    for address in listen.iter().filter(|address| address.port() != 0) {
        let of = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => format!("/ip4/{ip}/tcp/{}", address.port()),
            IpAddr::V6(ip) => format!("/ip6/{ip}/tcp/{}", address.port()),
        };
        if address.ip().is_unspecified() {
            let same_family = interfaces.iter().filter(|ip| ip.is_ipv4() == address.is_ipv4());
            addresses.extend(same_family.map(|ip| of(*ip)));
        } else {
            addresses.push(of(address.ip()));
        }
    }
    addresses
}

/// Puts addresses in the order in which others should try them, each with the node's id: those that people configured, then those of
/// networks, IPv4 first. Addresses of this machine alone are left out, unless there is no other.
pub(super) fn worth_telling(external: &[String], listen: &[String], node_id: &NodeId) -> Vec<String> {
    let ending = format!("/p2p/{node_id}");
    let whole = |address: &String| match address.contains("/p2p/") {
        true => address.clone(),
        false => format!("{address}{ending}"),
    };
    let mut ranked: Vec<(u8, String)> = listen.iter().map(|address| (rank(address), whole(address))).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    if ranked.iter().any(|(rank, _)| *rank < LOCAL) || !external.is_empty() {
        ranked.retain(|(rank, _)| *rank < LOCAL);
    }
    let mut told: Vec<String> = Vec::new();
    for address in external.iter().map(whole).chain(ranked.into_iter().map(|(_, address)| address)) {
        if !told.contains(&address) {
            told.push(address);
        }
    }
    told
}

/// The rank of addresses that lead to this machine alone, or need more than the address says.
const LOCAL: u8 = 4;

fn rank(address: &str) -> u8 {
    let mut parts = address.split('/').skip(1);
    let Some(ip) = parts.nth(1).and_then(|ip| ip.parse::<IpAddr>().ok()) else { return 0 };
    match ip {
        _ if address.contains("/p2p-circuit") => 3,
        IpAddr::V4(ip) if ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() => LOCAL,
        IpAddr::V6(ip) if ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified() => LOCAL,
        IpAddr::V4(_) => 1,
        IpAddr::V6(_) => 2,
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn every_interface_is_listened_on_by_the_unspecified_address() {
        let interfaces: Vec<IpAddr> = ["192.0.2.7", "198.51.100.7", "2001:db8::7"].map(|ip| ip.parse().unwrap()).into();
        let listen = ["0.0.0.0:5", "[::]:6", "127.0.0.1:7", "0.0.0.0:0"].map(|address| address.parse().unwrap());
        let wanted =
            ["/ip4/192.0.2.7/tcp/5", "/ip4/198.51.100.7/tcp/5", "/ip6/2001:db8::7/tcp/6", "/ip4/127.0.0.1/tcp/7"];
        assert_eq!(predicted(&listen, &interfaces), wanted);
    }

    #[test]
    fn a_ticket_begins_with_what_leads_farthest() {
        let id = NodeKey::from_secret(&[1; 32]).node_id();
        let listen = texts(&[
            "/ip4/127.0.0.1/tcp/5",
            "/ip6/fe80::1/tcp/5",
            "/ip6/2001:db8::7/tcp/5",
            "/ip4/192.0.2.7/tcp/5",
            &format!("/ip4/192.0.2.7/tcp/5/p2p/{id}"),
        ]);
        let told = worth_telling(&texts(&["/dns4/hive.example/tcp/1"]), &listen, &id);
        let wanted = ["/dns4/hive.example/tcp/1", "/ip4/192.0.2.7/tcp/5", "/ip6/2001:db8::7/tcp/5"]
            .map(|address| format!("{address}/p2p/{id}"));
        assert_eq!(told, wanted);
    }

    #[test]
    fn a_node_of_one_machine_tells_its_loopback_address() {
        let id = NodeKey::from_secret(&[1; 32]).node_id();
        assert_eq!(
            worth_telling(&[], &texts(&["/ip4/127.0.0.1/tcp/5"]), &id),
            [format!("/ip4/127.0.0.1/tcp/5/p2p/{id}")]
        );
    }
}
