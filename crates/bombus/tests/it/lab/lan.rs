use std::fmt::Write;

use super::{Lab, Machine};

/// A network as people have it at home: machines with addresses `10.77.0.1`, `10.77.0.2`, ... on one switch.
pub(crate) struct Lan {
    lab: Lab,
    machines: Vec<Machine>,
}

impl Lan {
    /// Makes a network of so many machines, at most 64; `None` where this system cannot (the test is skipped).
    pub(crate) async fn of(count: usize) -> Option<Self> {
        assert!(count <= 64, "a network in a test stays small");
        let lab = Lab::new().await?;
        lab.switch("lan").await;
        let mut lan = Self { lab, machines: Vec::new() };
        for index in 0..count {
            let machine = lan.lab.machine().await;
            lan.lab.plug(&machine, "eth0", &format!("{}/24", Self::address(index)), &cable(index), "lan").await;
            // As with a router in the house: what is not here, multicast among it, leaves by this interface.
            machine.shell("ip route add default dev eth0").await;
            lan.machines.push(machine);
        }
        Some(lan)
    }

    /// Returns a machine.
    pub(crate) fn machine(&self, index: usize) -> &Machine {
        &self.machines[index]
    }

    /// Returns the address of a machine.
    pub(crate) fn address(index: usize) -> String {
        format!("10.77.0.{}", index + 1)
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
            let _ = write!(list, "{}{}", if list.is_empty() { "" } else { ", " }, Self::address(*other));
        }
        // Dropped where it comes in, so that no sender is told.
        self.machines[index].rules(&incoming("cut", &format!("ip saddr {{ {list} }} drop"))).await;
        for other in others {
            let rule = format!("ip saddr {} drop", Self::address(index));
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
