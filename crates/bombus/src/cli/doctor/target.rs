//! Why a node cannot be reached at an address, or by a ticket.

use std::path::Path;

use anyhow::{Context, Result};
use bombus_net::membership::{Membership, Privacy, SwarmKey, Ticket};

use super::mesh::Report;
use super::{Check, Verdict, network};
use crate::cli::peers::{Peer, skew};
use crate::cli::reach::{self, Around, Finding, Target, same_place};
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::failure::Exit;
use crate::node_client::NodeClient;

/// What is known on this machine.
#[derive(Default)]
struct Known {
    membership: Option<Membership>,
    report: Option<Report>,
    peers: Vec<Peer>,
    own_id: Option<String>,
}

/// Looks at what somebody gave, and says with which exit code the command ends.
pub(super) async fn examine(config: &Config, root: &Path, target: &Target) -> Result<(Vec<Check>, Option<Exit>)> {
    let data_dir = DataDir::existing(root).ok().flatten();
    let known = Known::gather(data_dir.as_ref()).await?;
    let key = match (&data_dir, &known.report) {
        (Some(data_dir), None) => data_dir.node_key()?,
        // The running node is connected as itself already.
        _ => reach::fresh_key()?,
    };
    let (addresses, privacy, mut checks) = match target {
        Target::Address(address) => (vec![address.clone()], known.privacy(config)?, Vec::new()),
        Target::Ticket(ticket) => {
            let privacy = Privacy::Closed(ticket.key().clone());
            (ticket.addresses(), privacy, vec![of_ticket(ticket, known.membership.as_ref())])
        }
    };
    let mut exit = checks.iter().any(|check| check.verdict == Verdict::Fail).then_some(Exit::Outdated);
    let around = known.around(target);
    let mut findings = reach::look_at_all(&addresses, &privacy, &key, &around).await;
    for finding in &mut findings {
        known.refine(finding, &around);
    }
    let reached = findings.iter().any(|finding| finding.exit.is_none());
    if !reached {
        exit = exit.or(findings.iter().find_map(|finding| finding.exit));
    }
    checks.extend(findings.iter().map(|finding| {
        let check = finding.check();
        // One address that leads there is enough.
        if reached || check.verdict == Verdict::Ok { check } else { Check { verdict: Verdict::Fail, ..check } }
    }));
    if addresses.is_empty() {
        let remedy = "start the node there with bombus up, and ask for a new one: bombus invite";
        checks.push(Check::warn(
            "ticket's addresses",
            "it has none; only nodes on the same network are found by it",
            remedy,
        ));
    }
    if reached {
        let more = known.besides(&findings);
        exit = exit.or_else(|| more.iter().any(|check| check.code == Some("clock")).then_some(Exit::ClockOff));
        checks.extend(more);
    }
    Ok((checks, exit))
}

/// Compares a ticket with what this machine knows of its swarm.
fn of_ticket(ticket: &Ticket, membership: Option<&Membership>) -> Check {
    const NAME: &str = "ticket";
    let swarm = ticket.swarm_id();
    let own = membership.filter(|membership| membership.swarm_id() == swarm);
    match own.map(Membership::generation) {
        Some(generation) if generation > ticket.generation() => Check {
            code: Some("old_ticket"),
            ..Check::fail(
                NAME,
                format!("for this swarm ({swarm}), and older than the last change of its key"),
                "ask for a new one: bombus invite",
            )
        },
        Some(generation) if generation < ticket.generation() => Check::ok(
            NAME,
            format!("for this swarm ({swarm}), with a newer key than this node has: bombus join takes it over"),
        ),
        Some(_) => Check::ok(NAME, format!("for this swarm ({swarm}), which this node belongs to already")),
        None => Check::ok(NAME, format!("for the swarm {swarm}, with {} addresses", ticket.addresses().len())),
    }
}

impl Known {
    async fn gather(data_dir: Option<&DataDir>) -> Result<Self> {
        let Some(data_dir) = data_dir else { return Ok(Self::default()) };
        let node = network::node(Some(data_dir)).await?;
        let mut known = Self { membership: Membership::existing(data_dir.root()).ok().flatten(), ..Self::default() };
        if data_dir.identity().exists() {
            known.own_id = Some(data_dir.node_key()?.node_id().to_string());
        }
        if let Some(record) = node.answering() {
            let client = NodeClient::new(record.clone(), data_dir)?;
            known.report = client.get("/mesh/report").await.ok();
            known.peers = client.get("/peers").await.unwrap_or_default();
        }
        Ok(known)
    }

    fn privacy(&self, config: &Config) -> Result<Privacy> {
        let runs_open = self.report.as_ref().map_or(config.p2p.open, |report| report.open);
        if runs_open {
            return Ok(Privacy::Open);
        }
        match &self.membership {
            Some(membership) => Ok(membership.privacy()),
            // Any key will do to learn that the one there is another.
            None => {
                let key = SwarmKey::generate().map_err(std::io::Error::other).context("no random bytes can be had")?;
                Ok(Privacy::Closed(key))
            }
        }
    }

    fn around(&self, target: &Target) -> Around {
        let membership = self.membership.as_ref();
        let addresses = membership.map(Membership::known_addresses).unwrap_or_default();
        let peers = membership.map(Membership::known_peers).unwrap_or_default();
        let swarm = membership.map(Membership::swarm_id);
        Around {
            members: peers
                .into_iter()
                .filter(|peer| peer.last_seen_s.is_some())
                .map(|peer| peer.node_id.to_string())
                .collect(),
            own_swarm: matches!(target, Target::Ticket(ticket) if Some(ticket.swarm_id()) == swarm),
            worked: addresses.into_iter().filter(|known| known.last_ok_s.is_some()).map(|known| known.addr).collect(),
            own: self.report.as_ref().map(|report| report.listen.clone()).unwrap_or_default(),
            others_answer: self.report.as_ref().is_some_and(|report| report.connected > 0),
            by_ticket: matches!(target, Target::Ticket(_)),
        }
    }

    /// Tells this node from others, where the look went by another key than its own.
    fn refine(&self, finding: &mut Finding, around: &Around) {
        if finding.code == "fine" && finding.node_id.is_some() && finding.node_id == self.own_id {
            *finding = reach::judge(&finding.address, &bombus_net::ProbeVerdict::SameIdentity, around);
        }
    }

    /// Looks at what may keep a node away though its address is fine.
    fn besides(&self, findings: &[Finding]) -> Vec<Check> {
        let Some(report) = &self.report else { return Vec::new() };
        let mut checks = Vec::new();
        let fine = findings.iter().filter(|finding| finding.exit.is_none());
        let ids: Vec<&str> = fine.filter_map(|finding| finding.node_id.as_deref()).collect();
        for peer in self.peers.iter().filter(|peer| ids.contains(&peer.node_id.as_str())) {
            if let Some(skew_ms) = peer.clock_skew_ms {
                let found = format!("the clock of {} is {} compared to this node's", peer.hostname, skew(skew_ms));
                let remedy = "set both clocks by NTP (timedatectl set-ntp true); until then its messages are ignored";
                checks.push(Check { code: Some("clock"), ..Check::fail("clock", found, remedy) });
            }
        }
        for trouble in report.troubles.iter().filter(|trouble| trouble.code == "mdns_blocked") {
            let remedy = "let UDP port 5353 (multicast) in, or keep the address as a seed: bombus up --seed";
            checks.push(Check { code: Some("mdns_blocked"), ..Check::warn("multicast", trouble.text.clone(), remedy) });
        }
        let is_own = findings.iter().any(|finding| report.listen.iter().any(|own| same_place(own, &finding.address)));
        let connected = self.peers.iter().any(|peer| ids.contains(&peer.node_id.as_str()) && peer.path.is_some());
        if !connected && !is_own && !ids.is_empty() {
            let remedy = "bombus up --seed with this address keeps it connected";
            checks.push(Check::warn(
                "connection",
                "it can be reached, and the running node is not connected to it",
                remedy,
            ));
        }
        checks
    }
}
