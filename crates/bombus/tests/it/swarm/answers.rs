//! Nodes without models whose swarm has them: whoever is asked, the swarm answers, and it goes on answering when nodes die.
//!
//! In all of these tests node 0 is asked. It has no model, unless a test gives it one. `BOMBUS_FAULT_ROUNDS` repeats the loops of
//! [`faults`] more often.

use serde_json::Value;

use super::{Member, Plan, Swarm};
use crate::harness::{fake, no_backends, within};
use crate::lab::Network;
use crate::model::eventually;

mod client;
mod content;
mod departure;
mod faults;
mod finding;
mod load;
mod manage;
mod real;
mod sharing;

/// Returns the configuration of a node whose model `fake` repeats what it is told at this pace, in milliseconds, with more sections.
fn worker(first_token_ms: u64, token_ms: u64, more: &str) -> String {
    fake(&format!("first_token_ms = {first_token_ms}\ntoken_ms = {token_ms}\n{more}"))
}

/// As [`worker`], so slowly that an answer still comes when the test does something in the middle of it, however busy the machine is.
fn slow_worker(more: &str) -> String {
    worker(20, 60, more)
}

/// Starts node 0 without a model, and behind it nodes with these configurations; returns when it knows what each of them has.
async fn team(workers: &[String]) -> Swarm {
    started(Plan::of(workers.len() + 1), &no_backends(), workers).await
}

/// As [`team`], but node 0 has a configuration too.
async fn team_of(first: &str, workers: &[String]) -> Swarm {
    started(Plan::of(workers.len() + 1), first, workers).await
}

/// As [`team`], on a network that can be cut; `None` where this system has none.
async fn team_on_a_network(workers: &[String]) -> Option<Swarm> {
    let count = workers.len() + 1;
    let network = Network::of(count).await?;
    Some(started(Plan::of(count).on(network), &no_backends(), workers).await)
}

async fn started(plan: Plan, first: &str, workers: &[String]) -> Swarm {
    let mut swarm = plan.prepared().await;
    swarm.member_mut(0).configure(first);
    for (index, config) in workers.iter().enumerate() {
        swarm.member_mut(index + 1).configure(config);
    }
    swarm.start_all().await;
    swarm.all_see_each_other().await;
    let has_fake = |config: &str| {
        config.contains("kind = 'fake'") && (!config.contains("models = [") || config.contains("models = ['fake'"))
    };
    let those = workers.iter().enumerate().filter(|(_, config)| has_fake(config));
    let those: Vec<_> = those.map(|(index, _)| index + 1).collect();
    swarm.offers_of("fake", &those).await;
    swarm
}

impl Swarm {
    /// Waits until node 0 would send a request for a model to each of these nodes.
    async fn offers_of(&self, model: &str, nodes: &[usize]) {
        self.offers_of_at(0, model, nodes).await;
    }

    /// Waits until a node would send a request for a model to each of these nodes.
    async fn offers_of_at(&self, index: usize, model: &str, nodes: &[usize]) {
        eventually("the offers of the others", async || {
            let best = self.best_at(index, model).await;
            nodes.iter().all(|node| best.iter().any(|id| id == self.id(*node)))
        })
        .await;
    }

    /// Waits until node 0 would send a request for a model to none of these nodes.
    async fn no_offers_of(&self, model: &str, nodes: &[usize]) {
        eventually("the end of the offers", async || {
            let best = self.best(model).await;
            !nodes.iter().any(|node| best.iter().any(|id| id == self.id(*node)))
        })
        .await;
    }

    /// Returns the other nodes that node 0 would send a request to, best first.
    async fn best(&self, model: &str) -> Vec<String> {
        self.best_at(0, model).await
    }

    /// Returns the other nodes that a node would send a request to, best first.
    async fn best_at(&self, index: usize, model: &str) -> Vec<String> {
        let route = self.member(index).get(&format!("/route?model={model}")).await;
        let candidates = route["candidates"].as_array().expect("a route has candidates");
        let open = candidates.iter().filter(|candidate| candidate["score"].is_number());
        let others = open.filter(|candidate| candidate["here"] == false);
        others
            .map(|candidate| candidate["node_id"].as_str().expect("every candidate is on a node").to_owned())
            .collect()
    }

    /// Waits until one of these nodes answers a request, and returns which.
    async fn busy_one(&self, nodes: &[usize]) -> usize {
        within("a node that answers", async {
            loop {
                for node in nodes {
                    if self.member(*node).running().await > 0 {
                        return *node;
                    }
                }
            }
        })
        .await
    }

    /// Returns the number of the node with this id.
    fn index_of(&self, id: &str) -> usize {
        (0..self.len()).find(|index| self.id(*index) == id).unwrap_or_else(|| panic!("{id:?} is none of these nodes"))
    }
}

impl Member {
    /// Returns how many requests the node's own backends answer.
    async fn running(&self) -> u64 {
        let shown = self.get("/backends").await;
        let backends = shown["backends"].as_array().expect("a list of backends");
        let own = backends.iter().filter(|backend| backend["kind"] != "peer");
        own.map(|backend| backend["running"].as_u64().unwrap_or(0)).sum()
    }

    /// Waits until so many answers are under way over the node's API.
    async fn answers(&self, count: u64) {
        eventually("so many answers under way", async || {
            let metrics = within("metrics", self.client().get(self.url("/metrics")).send()).await.unwrap();
            let metrics = within("metrics", metrics.text()).await.unwrap();
            let running = metrics.lines().find_map(|line| line.strip_prefix("bombus_answers_running "));
            running.and_then(|running| running.parse().ok()) == Some(count)
        })
        .await;
    }

    /// Waits until the node's own backends answer so many requests.
    async fn runs(&self, count: u64) {
        eventually("so many running requests", async || self.running().await == count).await;
    }
}

/// Returns the names of the models in an answer of `/v1/models`.
fn names(models: &Value) -> Vec<&str> {
    let listed = models["data"].as_array().expect("a list of models");
    listed.iter().filter_map(|model| model["id"].as_str()).collect()
}
