//! More nodes than each keeps connections to.

use super::*;

const MESH: usize = 2;
const NODES: u8 = 5;

impl Answering {
    /// One of a crowd. What it says to all of its models is what it has.
    async fn in_a_crowd(number: u8, seeds: &[&Mesh]) -> Self {
        let config = SwarmConfig { mesh_max: MESH, ..SwarmConfig::default() };
        let node = Node::on(Mesh::in_a_crowd(number, seeds, MESH).await, number, config);
        node.facts.send_modify(|facts| facts.models = vec!["fake:latest".to_owned()]);
        Self::on(node, fake(), RunConfig::default()).await
    }

    fn connected(&self) -> usize {
        self.mesh().net.peers().iter().filter(|peer| peer.connected.is_some()).count()
    }
}

#[tokio::test]
async fn in_a_crowd_connections_end_and_every_model_is_there_all_the_same() {
    let first = Answering::in_a_crowd(1, &[]).await;
    let mut nodes = vec![first];
    for number in 2..=NODES {
        let node = Answering::in_a_crowd(number, &[nodes[0].mesh()]).await;
        nodes.push(node);
    }
    let ids: Vec<NodeId> = nodes.iter().map(Answering::id).collect();
    let offers_of_all = |node: &Answering| {
        let others = ids.iter().filter(|id| **id != node.id());
        others
            .map(|id| node.state_of(id))
            .all(|state| state.is_some_and(|state| state.models > 0 && state.peer.unwrap_or_default().reachable))
    };
    for node in &nodes {
        until(|| offers_of_all(node)).await;
        until(|| (1..=MESH).contains(&node.connected())).await;
    }
    // Whoever is asked, the way is found, and what is known of the others stays.
    for node in &nodes {
        for id in ids.iter().filter(|id| **id != node.id()) {
            let peer = node.backends.named(id.as_str()).expect("it is listed").backend.clone();
            let answer = timeout(LIMIT, peer.chat(ask("are you there?"))).await.expect("it answers").unwrap();
            let events: Vec<_> = collect(answer).await.into_iter().map(Result::unwrap).collect();
            assert_eq!(text_of(&events), "are you there?");
        }
    }
    for node in &nodes {
        until(|| (1..=MESH).contains(&node.connected()) && offers_of_all(node)).await;
    }
    for node in nodes {
        node.stop().await;
    }
}
