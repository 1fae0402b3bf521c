//! Which nodes can answer a request for help.

use std::cmp::Reverse;

use super::{Capabilities, NodeStatus, TaskHelpRequest, TaskHelpResponse, Timestamp};

/// In how many seconds a node without a free slot says that it could begin. It is a guess: how long what it runs
/// takes nobody knows.
const FULL_ETA_S: u32 = 30;

/// A node that could help.
#[derive(Debug, Clone, PartialEq)]
pub struct Helper<'a> {
    /// What the node told of itself.
    pub node: &'a Capabilities,
    /// What it has of what is asked for, in its own words.
    pub provides: Vec<&'a str>,
}

/// Returns what a node has of what is asked for: a capability, a program, a backend or a model, in the node's own words.
///
/// Case does not count; a program is found with and without `-cli` behind its name (`claude-cli` is what `claude` provides), and a
/// model with and without `:latest`.
#[must_use]
pub fn provides<'a>(node: &'a Capabilities, wanted: &str) -> Vec<&'a str> {
    let wanted = wanted.trim().to_lowercase();
    let program = wanted.strip_suffix("-cli").unwrap_or(&wanted);
    let model = wanted.strip_suffix(":latest").unwrap_or(&wanted);
    let same = |name: &&str, suffix: &str, wanted: &str| {
        let name = name.to_lowercase();
        !wanted.is_empty() && name.strip_suffix(suffix).unwrap_or(&name) == wanted
    };
    let texts = |list: &'a [String]| list.iter().map(String::as_str);
    let mut found: Vec<&str> = texts(&node.capabilities)
        .filter(|name| same(name, "-cli", program))
        .chain(texts(&node.installed).filter(|name| same(name, "-cli", program)))
        .chain(texts(&node.backends).filter(|name| same(name, "-cli", program)))
        .chain(texts(&node.models).filter(|name| same(name, ":latest", model)))
        .collect();
    found.dedup();
    found
}

/// Returns the nodes that can help, the least loaded first. Whoever asks is none of them, nor is a node that is draining.
///
/// `known` is what nodes told of themselves; whoever reads a request adds its own to see whether, and after whom, it is to answer.
/// Nodes that are equally loaded stand in the order of their ids, so that all nodes with the same knowledge make the same list.
#[must_use]
pub fn eligible_helpers<'a>(
    request: &TaskHelpRequest,
    known: impl IntoIterator<Item = &'a Capabilities>,
) -> Vec<Helper<'a>> {
    let may = |node: &&Capabilities| node.node_id != request.from_node && node.status != NodeStatus::Draining;
    let mut helpers: Vec<Helper<'a>> = known
        .into_iter()
        .filter(may)
        .map(|node| Helper { node, provides: provides(node, &request.requested_capability) })
        .filter(|helper| !helper.provides.is_empty())
        .collect();
    helpers.sort_by(|a, b| {
        let load = |node: &Capabilities| (node.status != NodeStatus::Idle, Reverse(free_slots(node)));
        let cpu = |node: &Capabilities| node.cpu.unwrap_or(0.0);
        load(a.node)
            .cmp(&load(b.node))
            .then_with(|| cpu(a.node).total_cmp(&cpu(b.node)))
            .then_with(|| a.node.node_id.cmp(&b.node.node_id))
    });
    helpers
}

/// Makes a node's answer to a request. With a free slot it could begin at once; without one it guesses.
#[must_use]
pub fn answer_help(request: &TaskHelpRequest, own: &Capabilities, timestamp: Timestamp) -> TaskHelpResponse {
    let capabilities: Vec<String> = eligible_helpers(request, [own])
        .first()
        .map(|helper| helper.provides.iter().map(|name| (*name).to_owned()).collect())
        .unwrap_or_default();
    let can_help = !capabilities.is_empty();
    TaskHelpResponse {
        task_id: request.task_id.clone(),
        from_node: own.node_id.clone(),
        can_help,
        capabilities,
        eta_seconds: can_help.then(|| if free_slots(own) > 0 { 0 } else { FULL_ETA_S }),
        timestamp,
    }
}

/// Returns how many more requests a node could run; one that tells no numbers has one while it is idle.
fn free_slots(node: &Capabilities) -> u32 {
    match (node.slots, node.running) {
        (Some(slots), running) => slots.saturating_sub(running.unwrap_or(0)),
        (None, _) => u32::from(node.status == NodeStatus::Idle),
    }
}
