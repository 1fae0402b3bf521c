//! What is kept of tasks, and what goes: with real processes, by the command.

use serde_json::{Value, json};

use super::{object, run, team, worker};
use crate::harness::{Home, Node, within};
use crate::model::eventually;

/// A prompt of some hundred kilobytes, another one for each number.
fn long(number: usize) -> String {
    (0..40_000).map(|word| format!("{number}-{word}")).collect::<Vec<_>>().join(" ")
}

fn bytes_in(home: &Home) -> u64 {
    let mut bytes = 0;
    let mut directories = vec![home.data_dir().join("swarms")];
    while let Some(directory) = directories.pop() {
        for file in std::fs::read_dir(directory).unwrap() {
            let file = file.unwrap();
            if file.file_type().unwrap().is_dir() {
                directories.push(file.path());
            } else {
                bytes += file.metadata().unwrap().len();
            }
        }
    }
    bytes
}

#[tokio::test]
async fn what_has_ended_goes_when_it_is_told_to_and_what_waits_stays() {
    let home = Home::new(&worker(0, ""));
    let node = Node::start(&home).await;
    for number in 0..12 {
        std::fs::write(home.path("long.txt"), long(number)).unwrap();
        run(&home, &["submit", "--quiet", "--file", "long.txt", "--wait"], 0).await;
    }
    let id = run(&home, &["submit", "--quiet", "short"], 0).await.stdout.trim().to_owned();
    run(&home, &["result", &id, "--wait"], 0).await;
    let waits = run(&home, &["submit", "--quiet", "--model", "nobody-has-it", "waits"], 0).await.stdout;
    let waits = waits.trim();
    let refused = run(&home, &["tasks", "prune", "--older-than", "7"], 2).await;
    assert!(refused.stderr.contains("7d"), "{}", refused.stderr);
    let nothing = run(&home, &["tasks", "prune"], 0).await.stdout;
    assert!(nothing.contains("nothing went") && nothing.contains("new tasks go to it"), "{nothing}");

    // The next generation begins; what waits keeps the first.
    let pruned = object(&home, &["tasks", "prune", "--older-than", "0s", "--json"]).await;
    assert_eq!((&pruned["begun"], &pruned["tasks"]), (&json!(2), &json!(0)), "{pruned}");
    assert_eq!((&pruned["kept"][0]["why"], &pruned["kept"][0]["task_ids"]), (&json!("unfinished"), &json!([waits])));
    run(&home, &["cancel", waits], 0).await;
    let after = run(&home, &["submit", "--quiet", "after the turn", "--wait"], 0).await.stdout;
    assert_eq!(after, "after the turn\n");
    node.stop().await;

    // What was put a moment ago stays for ten minutes unless the node was started again: somebody may be about to refer to it.
    let node = Node::start(&home).await;
    let full = bytes_in(&home);
    let foreseen = run(&home, &["tasks", "prune", "--older-than", "0s", "--keep", "5", "--dry-run"], 0).await.stdout;
    assert!(foreseen.contains("would go") && foreseen.contains("generation 3: would begin"), "{foreseen}");
    assert_eq!(object(&home, &["tasks", "--json"]).await["tasks"].as_array().map(Vec::len), Some(15), "nothing went");
    let pruned = run(&home, &["tasks", "prune", "--older-than", "0s"], 0).await.stdout;
    assert!(pruned.contains("15 tasks went") && pruned.contains("generation 3: has begun"), "{pruned}");
    let left = bytes_in(&home);
    assert!(full > 5 << 20 && left < full - (4 << 20), "{left} of {full}: {pruned}");
    assert_ne!(home.run(&["status", &id]).await.code, Some(0), "it is not known any more");
    let again = run(&home, &["submit", "--quiet", "and on it goes", "--wait"], 0).await.stdout;
    assert_eq!(again, "and on it goes\n");

    let store = async || object(&home, &["status", "--json"]).await["task_store"].clone();
    eventually("what is kept is counted", async || store().await["database"] == "swarm-tasks.3").await;
    let store = store().await;
    assert_eq!((&store["tasks"], store["generations"].as_array().map(Vec::len)), (&json!(1), Some(1)), "{store}");
    let shown = run(&home, &["status"], 0).await.stdout;
    assert!(shown.contains("swarm-tasks.3, /orbitdb/") && shown.contains("generation 3: 1 tasks"), "{shown}");
    let info = object(&home, &["db", "info", "swarm-tasks.3", "--json"]).await;
    assert_eq!(info["address"], store["address"]);
    let refused = run(&home, &["db", "drop", "swarm-tasks.3"], 2).await;
    assert!(refused.stderr.contains("tasks"), "{}", refused.stderr);
    let metrics = within("the metrics", node.get("/metrics").await.text()).await.unwrap();
    assert!(metrics.contains("bombus_tasks_generations{} 1.0"), "{metrics}");
    node.stop().await;
}

#[tokio::test]
async fn a_generation_begun_by_one_node_is_used_by_all() {
    let swarm = team(&[worker(0, ""), worker(0, "")]).await;
    let before = swarm.member(0).submit("before", &["--wait"]).await;
    assert!(before.contains("before"), "{before}");
    let pruned: Value =
        serde_json::from_str(&swarm.member(0).done(&["tasks", "prune", "--older-than", "0s", "--json"]).await).unwrap();
    assert_eq!((&pruned["begun"], &pruned["tasks"]), (&json!(2), &json!(1)), "{pruned}");
    let newest = async |index: usize| swarm.member(index).get("/status").await["task_store"]["database"].clone();
    eventually("the other one has it, too", async || newest(1).await == "swarm-tasks.2").await;
    for (index, other) in [(0, 1), (1, 0)] {
        let id = swarm.member(index).submit("after", &[]).await;
        assert_eq!(swarm.member(other).result(&id).await, "after");
        swarm.member(other).settled(&id).await;
    }
    let kept = swarm.member(1).get("/status").await;
    assert_eq!(kept["task_store"]["generations"][0]["generation"], 1, "each lets go for itself: {kept}");
}
