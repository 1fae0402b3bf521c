//! Nodes that have something of their own when they are to join another swarm.

use serde_json::{Value, json};

use super::{Member, Plan, State, Swarm, state_of};
use crate::databases::beside_tasks;
use crate::harness::LIMIT;

/// What a node that was always alone has done before it is given a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Task,
    File,
    Database,
    Invitation,
    /// Nothing came of it.
    Refusals,
}

impl Before {
    async fn happens(self, node: &Member) {
        match self {
            Self::Task => {
                let told = node.run(&["submit", "--model", "nobody-has-it", "Hello"]).await;
                assert!(told.code == Some(0) && told.stderr.contains("it is safe, and waits"), "{}", told.stderr);
            }
            Self::File => {
                let body = json!({ "model": "fake", "messages": [{ "role": "user", "content": "Hello" }] });
                let line = json!({ "custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": body });
                node.upload(&format!("{line}\n")).await;
            }
            Self::Database => drop(node.done(&["db", "create", "notes", "--type", "events"]).await),
            Self::Invitation => drop(node.invite().await),
            Self::Refusals => {
                for refused in [["submit", "--to", "nobody", "Hello"].as_slice(), &["db", "open", "notes"]] {
                    let told = node.run(refused).await;
                    assert_ne!(told.code, Some(0), "{refused:?}: {}{}", told.stdout, told.stderr);
                }
            }
        }
    }
}

/// What a node keeps, by those who would miss it.
async fn kept(node: &Member) -> [Value; 3] {
    let tasks = node.get("/tasks").await;
    let ids = tasks["tasks"].as_array().expect("a list of tasks").iter().map(|task| task["task_id"].clone());
    [ids.collect(), node.get("/v1/files").await["data"].clone(), beside_tasks(&node.get("/db").await)]
}

/// Reads the swarm that a node belongs to.
fn swarm_id(node: &Member) -> String {
    std::fs::read_to_string(node.home().data_dir().join("swarms/current")).unwrap().trim().to_owned()
}

async fn is_refused(node: &Member, ticket: &str) {
    let before = swarm_id(node);
    let refused = node.run(&["join", ticket]).await;
    assert!(refused.code == Some(2) && refused.stdout.is_empty(), "{:?}: {}", refused.code, refused.stdout);
    assert!(refused.stderr.contains(&before) && refused.stderr.contains("add --switch"), "{}", refused.stderr);
    assert_eq!(swarm_id(node), before);
}

async fn alone() -> Swarm {
    Plan::of(1).beside().start().await
}

#[tokio::test]
async fn a_lone_node_that_keeps_something_or_invited_does_not_leave_its_swarm_unasked() {
    let host = Plan::of(1).start().await;
    let ticket = host.member(0).invite().await;
    for before in [Before::Task, Before::File, Before::Database, Before::Invitation] {
        let mut lone = alone().await;
        before.happens(lone.member(0)).await;
        let own = swarm_id(lone.member(0));
        let all = kept(lone.member(0)).await;
        is_refused(lone.member(0), &ticket).await;
        assert_eq!(kept(lone.member(0)).await, all, "{before:?}: nothing is lost");

        lone.stop(0).await;
        is_refused(lone.member(0), &ticket).await;
        lone.restart(0).await;
        assert_eq!(kept(lone.member(0)).await, all, "{before:?}: nothing is lost");

        let told = lone.member(0).done(&["join", "--switch", &ticket]).await;
        assert!(told.contains(&format!("the data of {own} stay on disk")), "{told}");
        assert_eq!(swarm_id(lone.member(0)), swarm_id(host.member(0)));
        assert!(lone.member(0).home().data_dir().join("swarms").join(&own).join("swarm.key").is_file());
    }
}

#[tokio::test]
async fn a_lone_node_that_keeps_nothing_joins_at_once() {
    let host = Plan::of(1).start().await;
    let ticket = host.member(0).invite().await;
    let lone = alone().await;
    Before::Refusals.happens(lone.member(0)).await;
    lone.member(0).join(&ticket).await;
    let id = lone.id(0).to_owned();
    let is_there = |peers: &[Value]| state_of(peers, &id) == State::Alive;
    host.wait_until(0, "the one that joined", LIMIT, is_there).await;
}
