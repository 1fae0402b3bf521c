use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Deserializer, Serialize};

/// The port for other nodes.
const PORT: u16 = bombus_net::DEFAULT_PORT;

/// The section `[p2p]`: how this node and others find each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct P2pConfig {
    /// Addresses to listen on for other nodes, as `ADDR:PORT` or as multiaddrs; port 0 takes a free one. Empty: this node only dials.
    #[serde(deserialize_with = "listen_addresses")]
    pub(crate) listen: Vec<SocketAddr>,
    /// Multiaddrs of nodes to connect to where mDNS does not reach, for example `/ip4/192.0.2.7/tcp/7891`.
    #[serde(deserialize_with = "multiaddrs")]
    pub(crate) seeds: Vec<String>,
    /// Looks for nodes on the local network by multicast DNS.
    pub(crate) mdns: bool,
    /// Multiaddrs under which others reach this node, where it cannot see that itself, for example behind a forwarded port.
    #[serde(deserialize_with = "multiaddrs")]
    pub(crate) external: Vec<String>,
    /// Carries connections between members that cannot reach each other.
    pub(crate) relay: bool,
    /// How many KiB a second each of those connections may take through this node, both directions together; 0 for no limit.
    pub(crate) relay_kib_per_s: u32,
    /// Runs without a swarm key: anybody who reaches the port may take part.
    pub(crate) open: bool,
}

impl Default for P2pConfig {
    fn default() -> Self {
        Self {
            listen: vec![(Ipv4Addr::UNSPECIFIED, PORT).into(), (Ipv6Addr::UNSPECIFIED, PORT).into()],
            seeds: Vec::new(),
            mdns: true,
            external: Vec::new(),
            relay: true,
            relay_kib_per_s: 2048,
            open: false,
        }
    }
}

fn listen_addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| listen_address(text).ok_or_else(|| serde::de::Error::custom(bad_listen(text)))).collect()
}

/// Reads `ADDR:PORT`, or `/ip4/ADDR/tcp/PORT` and the same of IPv6, as the configurations of other libp2p programs have it.
fn listen_address(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let mut parts = text.strip_prefix('/')?.split('/');
    let ip = match (parts.next()?, parts.next()?) {
        ("ip4", ip) => IpAddr::V4(ip.parse().ok()?),
        ("ip6", ip) => IpAddr::V6(ip.parse().ok()?),
        _ => return None,
    };
    let ("tcp", port) = (parts.next()?, parts.next()?.parse().ok()?) else { return None };
    parts.next().is_none().then(|| SocketAddr::new(ip, port))
}

fn bad_listen(text: &str) -> String {
    format!(
        "{text:?} is no address to listen on; write ADDR:PORT, for example 0.0.0.0:{PORT} or [::]:{PORT}, or \
         /ip4/0.0.0.0/tcp/{PORT}; port 0 takes a free one, and TCP alone is spoken"
    )
}

fn multiaddrs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    match texts.iter().find(|text| !may_be_multiaddr(text)) {
        Some(text) => Err(serde::de::Error::custom(bad_multiaddr(text))),
        None => Ok(texts),
    }
}

/// Looks at the beginning alone; the mesh reads the rest.
fn may_be_multiaddr(text: &str) -> bool {
    ["/ip4/", "/ip6/", "/dns/", "/dns4/", "/dns6/", "/dnsaddr/"].iter().any(|start| text.starts_with(start))
        && text.is_ascii()
        && !text.contains(char::is_whitespace)
}

/// Says what a multiaddr looks like, with what was written in it where that can be told.
fn bad_multiaddr(text: &str) -> String {
    let meant = match text.parse() {
        Ok(SocketAddr::V4(address)) => format!("/ip4/{}/tcp/{}", address.ip(), address.port()),
        Ok(SocketAddr::V6(address)) => format!("/ip6/{}/tcp/{}", address.ip(), address.port()),
        Err(_) => {
            let is_name = |part: &str| {
                !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte))
            };
            match text.rsplit_once(':').unwrap_or((text, "")) {
                (name, port) if is_name(name) => {
                    format!("/dns4/{name}/tcp/{}", port.parse().unwrap_or(PORT))
                }
                _ => format!("/ip4/192.0.2.7/tcp/{PORT}"),
            }
        }
    };
    format!("{text:?} is no multiaddr; write for example {meant}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_both_notations() {
        for (text, wanted) in [
            ("0.0.0.0:7891", Some("0.0.0.0:7891")),
            ("[::1]:0", Some("[::1]:0")),
            ("/ip4/127.0.0.1/tcp/5", Some("127.0.0.1:5")),
            ("/ip6/::/tcp/5", Some("[::]:5")),
            ("/ip4/::/tcp/5", None),
            ("/ip4/127.0.0.1/tcp/5/ws", None),
            ("/ip4/127.0.0.1/udp/5", None),
            ("/ip4/127.0.0.1/tcp/70000", None),
            ("localhost:5", None),
            ("", None),
        ] {
            assert_eq!(listen_address(text).map(|address| address.to_string()).as_deref(), wanted, "{text}");
        }
    }

    #[test]
    fn what_was_meant_by_a_bad_address_is_told() {
        for (text, meant) in [
            ("192.0.2.7:5", "/ip4/192.0.2.7/tcp/5"),
            ("[2001:db8::1]:5", "/ip6/2001:db8::1/tcp/5"),
            ("hive.example:5", "/dns4/hive.example/tcp/5"),
            ("hive", "/dns4/hive/tcp/7891"),
            ("a b", "/ip4/192.0.2.7/tcp/7891"),
        ] {
            assert!(!may_be_multiaddr(text));
            assert!(bad_multiaddr(text).ends_with(meant), "{}", bad_multiaddr(text));
        }
        assert!(may_be_multiaddr("/ip4/192.0.2.7/tcp/7891/p2p/12D3KooW"));
    }
}
