//! Weights that travel between nodes, and nodes that change the models of others where they may.

use std::path::Path;

use bombus_testkit::gguf::tiny_model;
use serde_json::Value;

use super::Swarm;
use crate::harness::{LIMIT, finish};
use crate::lab::{Mapping, Nat};
use crate::model::eventually;
use crate::swarm::{Member, Plan};

const ENGINE: &str = "[api]\nlisten = '127.0.0.1:0'\n[[backends]]\nkind = 'embedded'\nthreads = 1\n";
/// Large enough that a transfer on this machine can be met in the middle.
const LARGE_BYTES: u64 = 384 << 20;

/// Starts so many nodes that keep models, with more sections in the configuration of each.
async fn keepers(sections: &[&str]) -> Swarm {
    let mut swarm = Plan::of(sections.len()).undisturbed().prepared().await;
    for (index, sections) in sections.iter().enumerate() {
        swarm.member_mut(index).configure(&format!("{ENGINE}{sections}"));
    }
    swarm.start_all().await;
    swarm.all_see_each_other().await;
    swarm
}

/// Gives a node a file that is a model in every way but that it says nothing. Nobody else in the world has it.
async fn import(member: &Member, name: &str, bytes: u64) {
    let file = member.home().path(&format!("{name}.gguf"));
    std::fs::write(&file, tiny_model(name, bytes)).unwrap();
    member.done(&["models", "import", file.to_str().unwrap(), "--name", name]).await;
    std::fs::remove_file(file).unwrap();
}

/// Returns the names and hashes of the models that a node has itself.
async fn own_models(member: &Member) -> Vec<(String, String)> {
    let models = member.get("/models").await;
    let mut own = Vec::new();
    for model in models["models"].as_array().expect("a list of models") {
        for place in model["nodes"].as_array().expect("places").iter().filter(|place| place["here"] == true) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            own.push((text(&model["name"]), text(&place["sha256"])));
        }
    }
    own
}

async fn has(member: &Member, name: &str) -> bool {
    own_models(member).await.iter().any(|(own, _)| own == name)
}

/// Returns the size of the largest file in a folder.
fn largest(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size =
        |path: &Path| if path.is_dir() { largest(path) } else { path.metadata().map_or(0, |file| blocks(&file)) };
    entries.filter_map(Result::ok).map(|entry| size(&entry.path())).max().unwrap_or(0)
}

/// Counts what is on the disk, since a file may have its whole length from the beginning.
fn blocks(file: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    file.blocks() * 512
}

#[tokio::test]
async fn weights_come_from_a_peer_before_the_internet_is_asked() {
    let mut swarm = keepers(&["", ""]).await;
    import(swarm.member(1), "bumble", 4 << 20).await;
    swarm.offers_of("bumble", &[1]).await;
    swarm.member(0).done(&["models", "pull", "bumble"]).await;
    let (here, there) = (own_models(swarm.member(0)).await, own_models(swarm.member(1)).await);
    assert_eq!(here, there, "the same weights under the same name");
    assert!(here.iter().any(|(name, sha256)| name == "bumble:latest" && sha256.len() == 64), "{here:?}");
    // They are its own now.
    swarm.kill(1).await;
    let shown = swarm.member(0).done(&["models", "show", "bumble", "--json"]).await;
    assert!(shown.contains(&here[0].1), "{shown}");
    let nobody = swarm.member(0).run(&["models", "pull", "nobodys-model:1b"]).await;
    assert!(nobody.code.is_some_and(|code| code != 0), "{}", nobody.stdout);
}

#[tokio::test]
async fn a_pull_from_two_peers_goes_on_when_one_of_them_dies() {
    let mut swarm = keepers(&["", "", ""]).await;
    import(swarm.member(1), "bumble", LARGE_BYTES).await;
    swarm.member(2).done(&["models", "pull", "bumble"]).await;
    swarm.offers_of("bumble", &[1, 2]).await;
    let pulling = swarm.member(0).command(&["models", "pull", "bumble"]);
    let pulling = tokio::spawn(finish(pulling));
    let store = swarm.member(0).home().data_dir().join("models");
    eventually("the first part of the weights", async || largest(&store) > 32 << 20).await;
    assert!(!pulling.is_finished() && largest(&store) < LARGE_BYTES, "it was met in the middle");
    swarm.kill(1).await;
    let pulled = pulling.await.unwrap();
    assert_eq!(pulled.code, Some(0), "{}", pulled.stderr);
    let (here, there) = (own_models(swarm.member(0)).await, own_models(swarm.member(2)).await);
    assert_eq!(here, there);
}

#[tokio::test]
async fn a_pull_whose_last_peer_dies_goes_on_where_it_stopped() {
    let mut swarm = keepers(&["", ""]).await;
    import(swarm.member(1), "bumble", LARGE_BYTES).await;
    swarm.offers_of("bumble", &[1]).await;
    let pulling = tokio::spawn(finish(swarm.member(0).command(&["models", "pull", "bumble"])));
    let store = swarm.member(0).home().data_dir().join("models");
    eventually("the first part of the weights", async || largest(&store) > 64 << 20).await;
    swarm.kill(1).await;
    let broken = pulling.await.unwrap();
    assert!(broken.code.is_some_and(|code| code != 0) && !broken.stderr.is_empty(), "{}", broken.stderr);
    assert!(!has(swarm.member(0), "bumble:latest").await, "half of a model is none");
    let kept = largest(&store);
    assert!(kept > 32 << 20, "what came is kept: {kept}");
    swarm.restart(1).await;
    swarm.all_see_each_other().await;
    swarm.offers_of("bumble", &[1]).await;
    swarm.member(0).done(&["models", "pull", "bumble"]).await;
    assert_eq!(own_models(swarm.member(0)).await, own_models(swarm.member(1)).await);
}

#[tokio::test]
async fn models_of_other_nodes_are_changed_where_these_let_it_be() {
    let manage = "[share]\nmanage = true\n";
    let swarm = keepers(&["", manage, "[share]\nmanage = ['node3']\n", "", ""]).await;
    import(swarm.member(4), "bumble", 4 << 20).await;
    swarm.offers_of("bumble", &[4]).await;
    swarm.member(0).done(&["models", "pull", "bumble", "--node", "node1"]).await;
    assert!(has(swarm.member(1), "bumble:latest").await);
    assert!(!has(swarm.member(0), "bumble:latest").await, "it was to be there, not here");
    for refuses in ["node2", "node3"] {
        let refused = swarm.member(0).run(&["models", "pull", "bumble", "--node", refuses]).await;
        assert!(refused.code.is_some_and(|code| code != 0), "{}", refused.stdout);
        assert!(refused.stderr.contains("manage"), "it says which setting: {}", refused.stderr);
    }
    // Node 2 lets node 3 do so, and nobody else.
    swarm.member(3).done(&["models", "pull", "bumble", "--node", "node2"]).await;
    assert!(has(swarm.member(2), "bumble:latest").await);
    let refused = swarm.member(0).run(&["models", "rm", "bumble", "--node", "node2"]).await;
    assert!(refused.code.is_some_and(|code| code != 0) && has(swarm.member(2), "bumble:latest").await);
    swarm.member(0).done(&["models", "rm", "bumble", "--node", "node1"]).await;
    eventually("the end of the model", async || !has(swarm.member(1), "bumble:latest").await).await;
}

#[tokio::test]
async fn all_nodes_that_let_it_be_get_a_model_and_the_others_are_named() {
    let manage = "[share]\nmanage = true\n";
    let swarm = keepers(&[manage, manage, "", manage]).await;
    import(swarm.member(3), "bumble", 4 << 20).await;
    swarm.offers_of("bumble", &[3]).await;
    let told = swarm.member(0).run(&["models", "pull", "bumble", "--all"]).await;
    for index in [0, 1, 3] {
        assert!(has(swarm.member(index), "bumble:latest").await, "node {index}: {}{}", told.stdout, told.stderr);
    }
    assert!(!has(swarm.member(2), "bumble:latest").await);
    let told = told.stdout + &told.stderr;
    assert!(told.contains("node2"), "who refused is named: {told}");
    let told = swarm.member(0).run(&["models", "rm", "bumble", "--all"]).await;
    for index in 0..4 {
        assert!(!has(swarm.member(index), "bumble:latest").await, "node {index}: {}{}", told.stdout, told.stderr);
    }
}

#[tokio::test]
async fn weights_do_not_go_through_a_relay() {
    let Some(nat) = Nat::new(Mapping::Random).await else { return };
    let machines = [nat.public().clone(), nat.home(0).clone(), nat.home(1).clone()];
    let mut swarm = Plan::of(3).by_seed().at(&machines).undisturbed().prepared().await;
    for index in 0..3 {
        swarm.member_mut(index).configure(ENGINE);
        // What no node sends is not to be had from anywhere else.
        swarm.member_mut(index).set_variable("HTTPS_PROXY", "http://127.0.0.1:1");
    }
    swarm.start_all().await;
    swarm.all_see_each_other().await;
    import(swarm.member(2), "bumble", 4 << 20).await;
    swarm.offers_of_at(1, "bumble", &[2]).await;
    let other = swarm.id(2).to_owned();
    let is_relayed = |peers: &[Value]| peers.iter().any(|peer| peer["node_id"] == other && peer["path"] == "relayed");
    swarm.wait_until(1, "the other home through the relay", LIMIT, is_relayed).await;
    let refused = swarm.member(1).run(&["models", "pull", "bumble"]).await;
    assert!(refused.code.is_some_and(|code| code != 0), "{}", refused.stdout);
    assert!(!has(swarm.member(1), "bumble:latest").await);
    // By way of the node that both reach they come.
    swarm.member(0).done(&["models", "pull", "bumble"]).await;
    swarm.member(1).done(&["models", "pull", "bumble"]).await;
    assert_eq!(own_models(swarm.member(1)).await, own_models(swarm.member(2)).await);
}

#[tokio::test]
async fn weights_of_a_node_that_shares_nothing_are_not_handed_out() {
    let mut swarm = keepers(&["", "[share]\nserve = false\n", ""]).await;
    import(swarm.member(1), "bumble", 4 << 20).await;
    let refused = swarm.member(0).run(&["models", "pull", "bumble"]).await;
    assert!(refused.code.is_some_and(|code| code != 0), "{}", refused.stdout);
    assert!(!has(swarm.member(0), "bumble:latest").await);
    // Nor are those of one whose owner keeps it for himself for now.
    import(swarm.member(2), "humble", 4 << 20).await;
    swarm.offers_of("humble", &[2]).await;
    swarm.member(2).done(&["pause"]).await;
    swarm.no_offers_of("humble", &[2]).await;
    let refused = swarm.member(0).run(&["models", "pull", "humble"]).await;
    assert!(refused.code.is_some_and(|code| code != 0), "{}", refused.stdout);
    swarm.member(2).done(&["resume"]).await;
    swarm.member(0).done(&["models", "pull", "humble"]).await;
    assert!(has(swarm.member(0), "humble:latest").await);
    swarm.stop_all().await;
}
