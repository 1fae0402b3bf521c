//! Whether other nodes are found: each way to find them, what was tried and what was seen.

use std::collections::BTreeMap;

use bombus_net::membership::{Membership, Privacy};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpListener;

use super::Check;
use super::network::NodeFinding;
use crate::cli::output::date;
use crate::cli::reach::{self, Around, Finding};
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::node::missed_members;
use crate::node_client::NodeClient;

/// Most addresses that are looked at where no node runs.
const LOOKS_MAX: usize = 8;
/// Most nodes that are named for one reason to ignore messages.
const SIGNERS_MAX: usize = 5;
/// Why messages are ignored, by the words in which nodes count them; what that means, and what to do. Clocks have a trouble of their own.
const IGNORED: [(&[&str], &str, &str); 3] = [
    (&["newer_schema", "unknown_type"], "newer than this program", "install the newer version of bombus here, too"),
    (&["too_often"], "sent too often", "look at what runs on these nodes; bombus kick NAME takes a node out"),
    (
        &["replayed"],
        "seen before",
        "where their number grows, a member sends on what it recorded: bombus kick NAME takes out whom you do not trust",
    ),
];

/// The check of who has the swarm's key.
const MEMBERS: &str = "members";
const MISSED_REMEDY: &str =
    "they have to join again, with a new ticket: bombus invite; bombus kick NAME strikes off who is gone for good";

/// What the running node tells.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Report {
    pub(super) node_id: String,
    pub(super) swarm_id: String,
    pub(super) open: bool,
    pub(super) listen: Vec<String>,
    pub(super) connected: usize,
    pub(super) rungs: Vec<Rung>,
    pub(super) failures: Vec<Unreached>,
    pub(super) strangers_refused: u64,
    pub(super) troubles: Vec<Trouble>,
    /// What became of messages, in a form that another version of the node may not have.
    pub(super) swarm: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Rung {
    pub(super) name: String,
    enabled: bool,
    tried: u64,
    seen: u64,
    problem: Option<String>,
    detail: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Unreached {
    address: String,
    reason: String,
    ago_s: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Trouble {
    pub(super) code: String,
    pub(super) text: String,
}

/// What became of messages.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Messages {
    peers: Vec<Signer>,
    /// All that are not counted one by one.
    others: Signer,
}

/// What became of the messages that a node signed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Signer {
    node_id: String,
    name: Option<String>,
    ignored: BTreeMap<String, u64>,
}

/// Looks at everything by which nodes find each other.
pub(super) async fn checks(config: &Config, data_dir: Option<&DataDir>, node: &NodeFinding) -> Vec<Check> {
    if let (Some(data_dir), Some(record)) = (data_dir, node.answering()) {
        let asked = async { NodeClient::new(record.clone(), data_dir)?.get::<Report>("/mesh/report").await };
        return match asked.await {
            Ok(report) => of_report(&report),
            Err(error) => {
                let found = crate::failure::message_of(&error);
                vec![Check::fail("mesh", found, "look at the node's logs, and start it again")]
            }
        };
    }
    let mut checks = vec![ports(config).await];
    match data_dir.map(|data_dir| Membership::existing(data_dir.root())).transpose() {
        Ok(membership) => {
            let membership = membership.flatten();
            checks.push(standing(config, membership.as_ref()));
            checks.extend(membership.as_ref().and_then(hand_over));
            checks.extend(known(config, data_dir, membership.as_ref()).await);
        }
        Err(error) => checks.push(Check::fail("mesh", error.to_string(), "bombus up says the same; restore the file")),
    }
    checks
}

fn of_report(report: &Report) -> Vec<Check> {
    let others = match report.connected {
        0 => "no other node is connected".to_owned(),
        1 => "1 other node is connected".to_owned(),
        count => format!("{count} other nodes are connected"),
    };
    let mut checks = vec![match report.open {
        true => Check::warn(
            "mesh",
            format!("it runs without a swarm key (--open): whoever reaches it may take part; {others}"),
            "for tests and closed networks alone; else start it without --open",
        ),
        false => Check::ok("mesh", format!("swarm {}; {others}", report.swarm_id)),
    }];
    checks.extend(report.rungs.iter().map(Rung::check));
    if report.connected == 0 && !report.failures.is_empty() {
        let lines = report.failures.iter().take(5).map(Unreached::text).collect::<Vec<_>>().join("; ");
        checks.push(Check::warn("unreached", lines, "bombus doctor ADDRESS says for each what to do"));
    }
    if report.strangers_refused > 0 {
        let found = format!("{} connections with another swarm's key, or none, were refused", report.strangers_refused);
        checks.push(Check::ok("strangers", found));
    }
    checks.extend(Messages::deserialize(&report.swarm).unwrap_or_default().check());
    checks.extend(report.troubles.iter().map(Trouble::check));
    checks
}

impl Rung {
    fn check(&self) -> Check {
        let name = self.title();
        let detail = self.detail.as_ref().map(|detail| format!("; {detail}")).unwrap_or_default();
        if !self.enabled {
            return Check::ok(name, format!("not used{detail}"));
        }
        let found = match (self.tried, self.seen) {
            (_, count) if self.name == "listen" => format!("listens at {count} addresses{detail}"),
            (0, 0) => format!("nothing yet{detail}"),
            (0, seen) => format!("{seen} seen{detail}"),
            (tried, seen) => format!("{tried} tried, {seen} seen{detail}"),
        };
        match &self.problem {
            None => Check::ok(name, found),
            // Without a port no node reaches this one.
            Some(problem) if self.name == "listen" && self.seen == 0 => {
                Check::fail(name, format!("{problem}; {found}"), self.remedy())
            }
            Some(problem) => Check::warn(name, format!("{problem}; {found}"), self.remedy()),
        }
    }

    fn title(&self) -> String {
        match self.name.as_str() {
            "mdns-v4" => "mDNS over IPv4".to_owned(),
            "mdns-v6" => "mDNS over IPv6".to_owned(),
            "seeds" => "seeds".to_owned(),
            "learned" => "learned addresses".to_owned(),
            "tickets" => "addresses of tickets".to_owned(),
            "relay" => "relays".to_owned(),
            "listen" => "port for nodes".to_owned(),
            other => other.to_owned(),
        }
    }

    fn remedy(&self) -> &'static str {
        match self.name.as_str() {
            "mdns-v4" | "mdns-v6" => {
                "let UDP port 5353 (multicast) in, or where the network has none, give an address: bombus up --seed"
            }
            "seeds" => "bombus doctor ADDRESS says for each what to do",
            "relay" => "a member that others reach directly can relay: it needs [p2p] relay = true and an open port",
            "listen" => "stop what listens there, or choose another address: bombus up --p2p ADDR:PORT",
            _ => "bombus doctor ADDRESS says what to do",
        }
    }
}

impl Unreached {
    fn text(&self) -> String {
        format!("{}: {} ({:.0} s ago)", self.address, self.reason, self.ago_s)
    }
}

impl Messages {
    /// Names those whose messages are ignored.
    fn check(&self) -> Option<Check> {
        let (mut found, mut remedies) = (Vec::new(), Vec::new());
        for (reasons, meaning, remedy) in IGNORED {
            let signers = self.peers.iter().chain([&self.others]);
            let counted = signers.map(|signer| (signer.ignored_for(reasons), signer.title()));
            let mut counted: Vec<(u64, &str)> = counted.filter(|(count, _)| *count > 0).collect();
            if counted.is_empty() {
                continue;
            }
            counted.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
            let all: u64 = counted.iter().map(|(count, _)| count).sum();
            let named: Vec<String> =
                counted.iter().take(SIGNERS_MAX).map(|(count, title)| format!("{count} of {title}")).collect();
            let more = if counted.len() > SIGNERS_MAX { ", and more" } else { "" };
            found.push(format!("{all} {meaning} ({}{more})", named.join(", ")));
            remedies.push(remedy);
        }
        let text = format!("messages are ignored: {}", found.join("; "));
        (!found.is_empty()).then(|| Check::warn("messages", text, remedies.join("; ")))
    }
}

impl Signer {
    fn ignored_for(&self, reasons: &[&str]) -> u64 {
        reasons.iter().filter_map(|reason| self.ignored.get(*reason)).sum()
    }

    fn title(&self) -> &str {
        match &self.name {
            Some(name) => name,
            None if self.node_id.is_empty() => "other nodes",
            None => &self.node_id,
        }
    }
}

impl Trouble {
    fn check(&self) -> Check {
        let found = self.text.clone();
        let (name, remedy) = match self.code.as_str() {
            // Nothing is wrong with this node.
            "missed_members" => return Check::warn(MEMBERS, found, MISSED_REMEDY),
            "mdns_blocked" => {
                let remedy = "let UDP port 5353 (multicast) in, or give an address: bombus up --seed";
                return Check::warn("multicast", found, remedy);
            }
            "same_identity" => (
                "identity",
                "a data directory was copied: on one of the machines stop the node, delete identity.key there, and start it again",
            ),
            "clock" => (
                "clock",
                "set the clocks by NTP (timedatectl set-ntp true); messages of clocks that are off are ignored",
            ),
            "missed_rekey" => {
                ("membership", "ask for a new ticket (bombus invite), and join again: bombus join TICKET")
            }
            _ => ("trouble", "look at the node's logs"),
        };
        Check::fail(name, found, remedy)
    }
}

/// Whether the ports for other nodes can be had.
async fn ports(config: &Config) -> Check {
    const NAME: &str = "port for nodes";
    let mut taken = Vec::new();
    for address in &config.p2p.listen {
        match TcpListener::bind(address).await {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => taken.push(format!("{address} is in use")),
            // A machine without IPv6 cannot listen on it, and need not.
            Err(_) if address.is_ipv6() && config.p2p.listen.len() > 1 => {}
            Err(error) => taken.push(format!("{address} cannot be listened on: {error}")),
        }
    }
    if config.p2p.listen.is_empty() {
        return Check::warn(NAME, "no address is configured, so that no node can reach this one", "set p2p.listen");
    }
    if taken.is_empty() {
        let addresses: Vec<String> = config.p2p.listen.iter().map(ToString::to_string).collect();
        return Check::ok(NAME, format!("{} free", addresses.join(" and ")));
    }
    Check::warn(
        NAME,
        taken.join("; "),
        "a port that nobody chose is replaced by a free one; --p2p ADDR:PORT chooses another",
    )
}

/// To which swarm the data directory belongs.
fn standing(config: &Config, membership: Option<&Membership>) -> Check {
    const NAME: &str = "mesh";
    if config.p2p.open {
        return Check::warn(
            NAME,
            "p2p.open is set: whoever reaches the node may take part",
            "for tests and closed networks alone; else leave it away",
        );
    }
    let Some(membership) = membership else {
        return Check::ok(NAME, "no swarm yet; bombus up begins one, bombus join TICKET joins one");
    };
    let standing = membership.standing();
    let contact = match standing.last_contact_s {
        Some(seconds) => format!("last connected to a member on {}", date(seconds)),
        None => "no other member was met yet".to_owned(),
    };
    Check::ok(NAME, format!("swarm {}, {contact}; no node runs, so nothing is tried", standing.swarm_id))
}

/// What became of a change of the key that was made on this machine: it is still to be told, or did not reach everybody.
fn hand_over(membership: &Membership) -> Option<Check> {
    if membership.standing().hand_over_due {
        let found = "the key was changed here, and the members do not know it yet";
        return Some(Check::warn(MEMBERS, found, "start the node, which tells them: bombus up"));
    }
    let missed = missed_members(&membership.known_peers())?;
    Some(Check::warn(MEMBERS, missed, MISSED_REMEDY))
}

/// Looks at seeds and at members met before, where no node does.
async fn known(config: &Config, data_dir: Option<&DataDir>, membership: Option<&Membership>) -> Vec<Check> {
    let known = membership.map(Membership::known_addresses).unwrap_or_default();
    let worked: Vec<String> =
        known.iter().filter(|known| known.last_ok_s.is_some()).map(|known| known.addr.clone()).collect();
    let mut addresses = config.p2p.seeds.clone();
    for known in known {
        if addresses.len() < LOOKS_MAX && !addresses.iter().any(|address| reach::same_place(address, &known.addr)) {
            addresses.push(known.addr);
        }
    }
    let (Some(data_dir), Some(membership)) = (data_dir, membership) else { return Vec::new() };
    let Ok(key) = data_dir.node_key() else { return Vec::new() };
    let privacy = if config.p2p.open { Privacy::Open } else { membership.privacy() };
    let around = Around { worked, ..Around::default() };
    reach::look_at_all(&addresses, &privacy, &key, &around).await.iter().map(Finding::check).collect()
}

impl Finding {
    /// Writes the finding as a check by the name of its address. What leads nowhere is a warning: others may do.
    pub(super) fn check(&self) -> Check {
        let name = self.address.clone();
        let check = match &self.remedy {
            None => Check::ok(name, self.found.clone()),
            Some(remedy) => Check::warn(name, self.found.clone(), remedy.clone()),
        };
        Check { code: Some(self.code), ..check }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Verdict;
    use super::*;

    fn rung(name: &str) -> Rung {
        Rung { name: name.into(), enabled: true, tried: 3, seen: 2, ..Rung::default() }
    }

    #[test]
    fn each_way_to_find_nodes_says_what_was_tried_and_seen() {
        let report = Report {
            swarm_id: "abc".into(),
            connected: 1,
            rungs: vec![
                rung("mdns-v4"),
                Rung { problem: Some("nothing answers".into()), seen: 0, ..rung("seeds") },
                Rung { enabled: false, ..rung("relay") },
            ],
            strangers_refused: 2,
            ..Report::default()
        };
        let checks = of_report(&report);
        let found: Vec<(&str, Verdict, &str)> =
            checks.iter().map(|check| (check.name.as_ref(), check.verdict, check.found.as_str())).collect();
        assert_eq!(
            found,
            [
                ("mesh", Verdict::Ok, "swarm abc; 1 other node is connected"),
                ("mDNS over IPv4", Verdict::Ok, "3 tried, 2 seen"),
                ("seeds", Verdict::Warn, "nothing answers; 3 tried, 0 seen"),
                ("relays", Verdict::Ok, "not used"),
                ("strangers", Verdict::Ok, "2 connections with another swarm's key, or none, were refused"),
            ]
        );
    }

    #[test]
    fn a_node_that_listens_nowhere_fails() {
        let taken = "/ip4/0.0.0.0/tcp/7891: another process listens there";
        let port = Rung { problem: Some(taken.into()), seen: 0, ..rung("listen") };
        let check = port.check();
        assert_eq!((check.name.as_ref(), check.verdict), ("port for nodes", Verdict::Fail));
        assert_eq!(check.found, format!("{taken}; listens at 0 addresses"));
        let elsewhere = Rung { problem: Some(taken.into()), ..rung("listen") };
        assert_eq!(elsewhere.check().verdict, Verdict::Warn, "it listens in another way");
    }

    #[test]
    fn every_trouble_has_a_remedy_and_what_keeps_this_node_from_no_other_is_a_warning() {
        let fail = ["same_identity", "clock", "missed_rekey", "later"].map(|code| (code, Verdict::Fail));
        let warn = ["mdns_blocked", "missed_members"].map(|code| (code, Verdict::Warn));
        for (code, verdict) in fail.into_iter().chain(warn) {
            let check = Trouble { code: code.into(), text: "far, off".into() }.check();
            assert_eq!((check.verdict, check.found.as_str()), (verdict, "far, off"), "{code}");
            assert!(check.remedy.is_some(), "{code}");
        }
    }

    #[test]
    fn who_is_ignored_is_named_with_the_reason_and_what_to_do() {
        let swarm = json!({
            "peers": [
                { "node_id": "12D3a", "name": "attic", "accepted": 9, "ignored": { "newer_schema": 2, "unknown_type": 1 } },
                { "node_id": "12D3b", "name": null, "ignored": { "replayed": 1, "clock_skew": 7 } },
                { "node_id": "12D3c", "name": "cellar", "ignored": { "too_often": 4, "replayed": 5 } },
            ],
            "others": { "accepted": 1, "ignored": { "too_often": 6 } },
        });
        let checks = of_report(&Report { swarm, ..Report::default() });
        let check = checks.iter().find(|check| check.name == "messages").unwrap();
        assert_eq!(
            (check.verdict, check.found.as_str()),
            (
                Verdict::Warn,
                "messages are ignored: 3 newer than this program (3 of attic); \
                 10 sent too often (6 of other nodes, 4 of cellar); 6 seen before (5 of cellar, 1 of 12D3b)"
            )
        );
        let remedy = check.remedy.as_ref().unwrap();
        for (_, _, wanted) in IGNORED {
            assert!(remedy.contains(wanted), "{remedy}");
        }
    }

    #[test]
    fn without_ignored_messages_there_is_nothing_to_say() {
        let clock = json!({ "peers": [{ "node_id": "12D3a", "name": "attic", "ignored": { "clock_skew": 7 } }] });
        let of_a_later_version = json!({ "peers": "many" });
        for swarm in [clock, of_a_later_version, Value::Null] {
            let checks = of_report(&Report { swarm, ..Report::default() });
            assert!(checks.iter().all(|check| check.name != "messages"), "{checks:?}");
        }
    }

    #[test]
    fn a_lonely_node_says_what_it_could_not_reach() {
        let failure = Unreached { address: "/ip4/192.0.2.7/tcp/1".into(), reason: "no answer".into(), ago_s: 3.2 };
        let report = Report { failures: vec![failure], ..Report::default() };
        let check = of_report(&report).into_iter().find(|check| check.name == "unreached").unwrap();
        assert_eq!(check.found, "/ip4/192.0.2.7/tcp/1: no answer (3 s ago)");
    }

    #[test]
    fn an_open_node_is_remarked_upon() {
        let check = of_report(&Report { open: true, ..Report::default() }).remove(0);
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(check.found.contains("--open"), "{}", check.found);
    }
}
