use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use bombus_core::identity::NodeKey;
use bombus_net::membership::{Privacy, Ticket};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use super::{JoinArgs, Moved, of_join, secret, with_place};
use crate::cli::mesh::Place;
use crate::cli::peers::Peer;
use crate::cli::reach::{self, Around, Finding};
use crate::cli::{Global, output};
use crate::data_dir::DataDir;
use crate::failure::{Exit, Failure};
use crate::node_client::NodeClient;
use crate::printable::one_line;

/// Longest wait for the first member to be connected.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// Longest wait for the name of one that is connected.
const NAME_LIMIT: Duration = Duration::from_secs(1);
/// Time between two looks for one.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What came of it.
#[derive(Debug, Serialize)]
struct Outcome {
    #[serde(flatten)]
    moved: Moved,
    /// Whether the node runs, and so connects by itself.
    node_runs: bool,
    /// Members that are connected, or answered where no node runs.
    members: Vec<Member>,
    /// Why the others could not be reached, where none could.
    failures: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Member {
    node_id: String,
    hostname: Option<String>,
    path: Option<String>,
}

/// Joins the swarm of a ticket, and waits until a member of it answers.
pub(in crate::cli) fn join(global: &Global, args: &JoinArgs) -> Result<ExitCode> {
    let text = secret(&args.ticket)?;
    let ticket = reach::ticket(&text)?;
    let outcome = with_place(global, async |_, data_dir, place| match place {
        Place::Node(node) => by_node(&node, text.trim(), &ticket, args.switch).await,
        Place::Disk(mut disk) => {
            let joined = disk.membership.join(&ticket, args.switch).map_err(|error| of_join(&error))?;
            let moved = Moved { swarm_id: joined.to.to_string(), left: joined.from.to_string() };
            on_disk(data_dir, moved, &ticket).await
        }
    })?;
    if args.json {
        output::print_json(&outcome)?;
    } else {
        output::print(&outcome.text(output::width()))?;
    }
    outcome.verdict()
}

/// Has the running node join, and waits until it is connected to a member.
async fn by_node(node: &NodeClient, text: &str, ticket: &Ticket, switch: bool) -> Result<Outcome> {
    let moved: Moved = node.post("/mesh/join", &json!({ "ticket": text, "switch": switch })).await?;
    let mut deadline = Instant::now() + CONNECT_LIMIT;
    let members = loop {
        let peers: Vec<Peer> = node.get("/peers").await?;
        let connected: Vec<Peer> = peers.into_iter().filter(is_connected).collect();
        // One that has told its version has told its name.
        let named = connected.iter().any(|peer| peer.version.is_some());
        if named || Instant::now() >= deadline {
            break connected.into_iter().map(Member::of).collect::<Vec<_>>();
        }
        if !connected.is_empty() {
            deadline = deadline.min(Instant::now() + NAME_LIMIT);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    };
    let failures = match members.is_empty() {
        // A key of its own, since the node's identity is in use.
        true => failed_looks(ticket, &reach::fresh_key()?).await,
        false => Vec::new(),
    };
    Ok(Outcome { moved, node_runs: true, members, failures })
}

/// Looks whether a member answers at the addresses of the ticket.
async fn on_disk(data_dir: &DataDir, moved: Moved, ticket: &Ticket) -> Result<Outcome> {
    let findings = looks(ticket, &data_dir.node_key()?).await;
    let (fine, failures): (Vec<Finding>, Vec<Finding>) =
        findings.into_iter().partition(|finding| finding.code == "fine");
    let mut members: Vec<Member> = Vec::new();
    for node_id in fine.into_iter().filter_map(|finding| finding.node_id) {
        if members.iter().all(|known| known.node_id != node_id) {
            members.push(Member { node_id, hostname: None, path: None });
        }
    }
    let failures = if members.is_empty() { failures } else { Vec::new() };
    Ok(Outcome { moved, node_runs: false, members, failures })
}

async fn looks(ticket: &Ticket, key: &NodeKey) -> Vec<Finding> {
    let around = Around { by_ticket: true, ..Around::default() };
    reach::look_at_all(&ticket.addresses(), &Privacy::Closed(ticket.key().clone()), key, &around).await
}

async fn failed_looks(ticket: &Ticket, key: &NodeKey) -> Vec<Finding> {
    let mut findings = looks(ticket, key).await;
    for finding in findings.iter_mut().filter(|finding| finding.code == "fine") {
        // The node was not quick enough where this look was.
        finding.remedy = Some("it may be connected in a moment: bombus peers".to_owned());
    }
    findings
}

fn is_connected(peer: &Peer) -> bool {
    peer.state == "alive" && peer.path.is_some()
}

impl Member {
    fn of(peer: Peer) -> Self {
        Self { node_id: peer.node_id, hostname: Some(peer.hostname), path: peer.path }
    }

    fn text(&self) -> String {
        let name = self.hostname.as_deref().map(|name| format!("{} ", one_line(name))).unwrap_or_default();
        let path = self.path.as_deref().map(|path| format!(", {path}")).unwrap_or_default();
        format!("{name}({}{path})", one_line(&self.node_id))
    }
}

impl Outcome {
    fn text(&self, width: usize) -> String {
        let mut text = format!("this node belongs to the swarm {} now\n", self.moved.swarm_id);
        if self.moved.left != self.moved.swarm_id {
            text = format!("{text}the data of {} stay on disk\n", self.moved.left);
        }
        for member in &self.members {
            let does = if self.node_runs { "connected to" } else { "answers:" };
            text.push_str(&format!("{does} {}\n", member.text()));
        }
        match (self.node_runs, self.members.is_empty()) {
            (false, false) => text.push_str("bombus up connects to it\n"),
            (false, true) => text.push_str("no member answers now; bombus up goes on trying\n"),
            (true, _) => {}
        }
        for failure in &self.failures {
            text.push_str(&format!("no: {}\n", one_line(&failure.address)));
            text.push_str(&output::wrapped("    ", &one_line(&failure.found), width));
            if let Some(remedy) = &failure.remedy {
                text.push_str(&output::wrapped("    -> ", &one_line(remedy), width));
            }
        }
        text
    }

    /// That a running node is connected to nobody is a failure of the command, though the node belongs to the swarm. Where none runs,
    /// the ticket was to be kept, and it is.
    fn verdict(&self) -> Result<ExitCode> {
        if !self.members.is_empty() || !self.node_runs {
            return Ok(ExitCode::SUCCESS);
        }
        let message = match self.failures.is_empty() {
            true => "the ticket has no addresses, and no member was found on this network".to_owned(),
            false => format!("no member is connected after {} s", CONNECT_LIMIT.as_secs()),
        };
        Err(Failure::new(Exit::Unavailable, message)
            .hint("the ticket is kept: the node goes on trying while it runs (bombus up); bombus doctor says more")
            .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        Outcome {
            moved: Moved { swarm_id: "newswarm".into(), left: "oldswarm".into() },
            node_runs: true,
            members: vec![Member {
                node_id: "12D3KooW".into(),
                hostname: Some("hive".into()),
                path: Some("direct".into()),
            }],
            failures: Vec::new(),
        }
    }

    #[test]
    fn who_is_connected_is_told() {
        let text = outcome().text(80);
        assert!(text.contains("newswarm now\n") && text.contains("oldswarm stay on disk"), "{text}");
        assert!(text.contains("connected to hive (12D3KooW, direct)\n"), "{text}");
        assert!(outcome().verdict().is_ok());
    }

    #[test]
    fn why_nobody_is_connected_is_told_for_each_address() {
        let failure =
            reach::judge("/ip4/192.0.2.7/tcp/1", &bombus_net::ProbeVerdict::NothingListens, &Around::default());
        let lonely = Outcome { members: Vec::new(), failures: vec![failure], ..outcome() };
        let text = lonely.text(80);
        assert!(text.contains("no: /ip4/192.0.2.7/tcp/1\n") && text.contains("nothing listens"), "{text}");
        assert!(text.contains("    -> start bombus up there"), "{text}");
        assert!(lonely.verdict().is_err());
        let asleep = Outcome { node_runs: false, ..lonely };
        assert!(asleep.text(80).contains("bombus up goes on trying") && asleep.verdict().is_ok());
    }
}
