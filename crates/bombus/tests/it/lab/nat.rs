use super::{Family, Lab, Machine};

/// How a router chooses the ports under which it shows the machines behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// The machine's own port where it is free, as most routers do: two sides can find each other's hole.
    Kept,
    /// Another port for each connection: nobody can guess it, and only a relay helps.
    Random,
}

/// Two homes behind routers, and a machine that everyone can reach.
///
/// The routers translate addresses and drop all that comes from outside and belongs to no connection from inside.
pub(crate) struct Nat {
    _lab: Lab,
    public: Machine,
    homes: [Machine; 2],
    _routers: [Machine; 2],
}

/// The addresses are such as the internet has, since programs treat reserved ones differently; nothing leaves the namespaces.
const NETWORK: &str = "11.22.33";

impl Nat {
    /// The address of the machine that everyone can reach.
    pub(crate) const PUBLIC: &str = "11.22.33.10";

    /// Makes both homes; `None` where this system cannot (the test is skipped).
    pub(crate) async fn new(mapping: Mapping) -> Option<Self> {
        let lab = Lab::new().await?;
        lab.switch("internet").await;
        let public = lab.machine(Family::V4).await;
        lab.plug(&public, "eth0", &format!("{}/24", Self::PUBLIC), "public", "internet").await;
        let mut homes = Vec::new();
        let mut routers = Vec::new();
        for index in [0, 1] {
            let (router, home) = (lab.machine(Family::V4).await, lab.machine(Family::V4).await);
            let wide = format!("{NETWORK}.{}/24", 21 + index);
            lab.plug(&router, "wan", &wide, &format!("wan{index}"), "internet").await;
            let house = format!("house{index}");
            lab.switch(&house).await;
            let inside = format!("192.168.{}", 11 + index);
            lab.plug(&router, "lan", &format!("{inside}.1/24"), &format!("in{index}"), &house).await;
            lab.plug(&home, "eth0", &format!("{inside}.2/24"), &format!("home{index}"), &house).await;
            home.shell(&format!("ip route add default via {inside}.1")).await;
            router.shell("echo 1 > /proc/sys/net/ipv4/ip_forward").await;
            router.rules(&translation(mapping)).await;
            homes.push(home);
            routers.push(router);
        }
        let pair = |machines: Vec<Machine>| machines.try_into().unwrap_or_else(|_| unreachable!("two of them"));
        Some(Self { _lab: lab, public, homes: pair(homes), _routers: pair(routers) })
    }

    /// Returns the machine that everyone can reach.
    pub(crate) fn public(&self) -> &Machine {
        &self.public
    }

    /// Returns one of the two machines behind a router, 0 or 1.
    pub(crate) fn home(&self, index: usize) -> &Machine {
        &self.homes[index]
    }
}

fn translation(mapping: Mapping) -> String {
    let random = if mapping == Mapping::Random { " fully-random" } else { "" };
    format!(
        "table ip nat {{
  chain out {{ type nat hook postrouting priority 100; oifname \"wan\" masquerade{random}; }}
  chain through {{ type filter hook forward priority 0; policy drop; iifname \"lan\" accept; ct state established,related accept; }}
  chain in {{ type filter hook input priority 0; policy drop; iifname {{ \"lo\", \"lan\" }} accept; ct state established,related accept; }}
}}
"
    )
}
