//! Many nodes on one machine, one of them with a wrong clock.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Member, Plan, find};
use crate::harness::LIMIT;
use crate::lab::skip;

const NODES: usize = 20;
/// The one whose clock is wrong.
const DREAMER: usize = 7;

/// Finds the library that shows a program another time.
pub(super) fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    folders.map(|folder| folder.join("faketime/libfaketime.so.1")).find(|file| file.is_file())
}

/// Shows a node a clock that is an hour ahead; clocks that measure durations stay right.
pub(super) fn dreaming(member: &mut Member, library: &Path) {
    let library = library.to_str().expect("the system's folders have plain names");
    for (name, value) in [("LD_PRELOAD", library), ("FAKETIME", "+3600s"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")] {
        member.set_variable(name, value);
    }
}

#[tokio::test]
async fn twenty_nodes_of_which_one_has_a_wrong_clock_see_each_other_and_think_well_of_each_other() {
    let Some(library) = faketime() else {
        return skip("libfaketime is missing (Debian: faketime); `make setup` installs it");
    };
    let mut swarm = Plan::of(NODES).undisturbed().prepared().await;
    dreaming(swarm.member_mut(DREAMER), &library);
    swarm.start_all().await;
    swarm.all_see_each_other().await;
    let dreamer = swarm.id(DREAMER).to_owned();
    for index in 0..NODES {
        // Its messages over topics are ignored for their time, and still the others know what it has.
        if index != DREAMER {
            let known = |peers: &[Value]| {
                find(peers, &dreamer).is_some_and(|peer| peer["available_models"][0] == "fake:latest")
            };
            swarm.wait_until(index, "what the one with the wrong clock has", LIMIT, known).await;
        }
        let report = swarm.member(index).get("/mesh/report").await;
        let lowest = report["lowest_score"].as_f64().unwrap_or_else(|| panic!("{report}"));
        assert!(lowest >= 0.0, "node {index} thinks badly of somebody: {lowest}");
    }
    // Who is asleep is told so.
    let report = swarm.member(DREAMER).get("/mesh/report").await;
    assert!(report["troubles"].to_string().contains("clock"), "{report}");
    swarm.all_see_each_other().await;
    swarm.stop_all().await;
}
