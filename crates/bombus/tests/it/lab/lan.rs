use std::fmt::Write;
use std::path::Path;

use super::{Family, Lab, Machine, skip};

/// A network as people have it at home: machines on one switch with addresses `10.77.0.1`, `10.77.0.2`, ..., or with `fd77::1`, `fd77::2`,
/// ... and no others but those of their link.
pub(crate) struct Lan {
    lab: Lab,
    family: Family,
    machines: Vec<Machine>,
}

impl Lan {
    /// Makes a network of so many machines, at most 64; `None` where this system cannot (the test is skipped).
    pub(crate) async fn of(count: usize) -> Option<Self> {
        Self::with(Family::V4, count).await
    }

    /// Makes a network without IPv4 of so many machines, at most 64; `None` where this system cannot (the test is skipped).
    pub(crate) async fn of_ipv6(count: usize) -> Option<Self> {
        if !Path::new("/proc/net/if_inet6").exists() {
            skip("the kernel has no IPv6");
            return None;
        }
        Self::with(Family::V6, count).await
    }

    async fn with(family: Family, count: usize) -> Option<Self> {
        assert!(count <= 64, "a network in a test stays small");
        let lab = Lab::new().await?;
        lab.switch("lan").await;
        let mut lan = Self { lab, family, machines: Vec::new() };
        for index in 0..count {
            let machine = lan.lab.machine(family).await;
            lan.lab.plug(&machine, "eth0", &family.with_prefix(index), &cable(index), "lan").await;
            // As with a router in the house: what is not here, multicast among it, leaves by this interface.
            machine.shell(&format!("ip {} route add default dev eth0", family.flag())).await;
            lan.machines.push(machine);
        }
        Some(lan)
    }

    /// Returns a machine.
    pub(crate) fn machine(&self, index: usize) -> &Machine {
        &self.machines[index]
    }

    /// Returns the address of a machine, where they have such of IPv4.
    pub(crate) fn address(index: usize) -> String {
        Family::V4.address(index)
    }

    /// Pulls a machine's cable.
    pub(crate) async fn unplug(&self, index: usize) {
        self.lab.set_cable(&cable(index), false).await;
    }

    /// Puts a machine's cable in again.
    pub(crate) async fn plug_in(&self, index: usize) {
        self.lab.set_cable(&cable(index), true).await;
    }

    /// Lets nothing pass between one machine and some others, silently.
    pub(crate) async fn cut(&self, index: usize, others: &[usize]) {
        let mut list = String::new();
        for other in others {
            let _ = write!(list, "{}{}", if list.is_empty() { "" } else { ", " }, self.family.address(*other));
        }
        // Dropped where it comes in, so that no sender is told.
        let protocol = self.family.protocol();
        self.machines[index].rules(&incoming("cut", &format!("{protocol} saddr {{ {list} }} drop"))).await;
        for other in others {
            let rule = format!("{protocol} saddr {} drop", self.family.address(index));
            self.machines[*other].rules(&incoming("cut", &rule)).await;
        }
    }

    /// Takes all cuts back.
    pub(crate) async fn heal(&self) {
        for machine in &self.machines {
            // A table that is not there yet could not be deleted.
            machine.rules("table inet cut {}\ndelete table inet cut\n").await;
        }
    }

    /// Lets no multicast DNS pass between the machines, as many access points do.
    pub(crate) async fn block_multicast(&self) {
        for machine in &self.machines {
            machine.rules(&incoming("multicast", "udp dport 5353 drop")).await;
        }
    }

    /// Loses this percentage of all packets at random.
    pub(crate) async fn lose(&self, percent: u32) {
        for machine in &self.machines {
            let rule = format!("iifname \"eth0\" numgen random mod 100 < {percent} drop");
            machine.rules(&incoming("loss", &rule)).await;
        }
    }
}

impl Family {
    fn address(self, index: usize) -> String {
        match self {
            Self::V4 => format!("10.77.0.{}", index + 1),
            Self::V6 => format!("fd77::{:x}", index + 1),
        }
    }

    fn with_prefix(self, index: usize) -> String {
        let bits = if self == Self::V4 { 24 } else { 64 };
        format!("{}/{bits}", self.address(index))
    }

    /// Returns the option by which `ip` is told of it.
    fn flag(self) -> &'static str {
        if self == Self::V4 { "-4" } else { "-6" }
    }

    /// Returns what nftables calls it.
    fn protocol(self) -> &'static str {
        if self == Self::V4 { "ip" } else { "ip6" }
    }
}

fn cable(index: usize) -> String {
    format!("cable{index}")
}

/// Returns the rules of a table that looks at what comes in.
fn incoming(table: &str, rule: &str) -> String {
    format!(
        "table inet {table} {{
  chain incoming {{ type filter hook input priority -300; policy accept; {rule}; }}
}}
"
    )
}
