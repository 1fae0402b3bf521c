//! The owner of a machine decides what it does for others.

use serde_json::json;

use super::client::{Question, words};
use super::{Swarm, names, started, team, worker};
use crate::harness::{fake, no_backends};
use crate::model::eventually;
use crate::swarm::Plan;

/// Asks node 0 for so many answers, one after the other, and returns by which nodes they came.
async fn answered_by(swarm: &Swarm, count: usize) -> Vec<usize> {
    let mut nodes = Vec::new();
    for number in 0..count {
        let text = words(number, 4);
        let answer = Question::new(&text).answer(swarm.member(0)).await;
        answer.assert_whole(&text, "stop");
        nodes.push(swarm.index_of(answer.node()));
    }
    nodes
}

#[tokio::test]
async fn a_paused_node_answers_its_own_client_and_no_other() {
    let swarm = team(&[fake(""), worker(40, 0, "")]).await;
    let text = words(7, 200);
    let mut before = Question::new(&words(7, 200)).within("node=node2").ask(swarm.member(0)).await;
    before.until_first_text().await;
    swarm.member(1).done(&["pause"]).await;
    assert_eq!(swarm.member(1).get("/node/sharing").await["paused"], true);
    swarm.no_offers_of("fake", &[1]).await;
    assert_eq!(answered_by(&swarm, 6).await, [2; 6]);
    let own = Question::new(&text).answer(swarm.member(1)).await;
    own.assert_whole(&text, "stop");
    assert_eq!(own.node(), swarm.id(1), "its owner's requests are its own affair");
    let wanted = Question::new(&text).within("node=node1").answer(swarm.member(0)).await;
    assert!(wanted.status >= 400 && wanted.error.is_some(), "{wanted:?}");

    swarm.member(1).done(&["resume"]).await;
    swarm.offers_of("fake", &[1]).await;
    let answer = Question::new(&text).within("node=node1").answer(swarm.member(0)).await;
    answer.assert_whole(&text, "stop");
}

#[tokio::test]
async fn a_pause_lets_the_answers_that_run_end() {
    let swarm = team(&[worker(0, 10, "")]).await;
    let text = words(1, 60);
    let mut stream = Question::new(&text).ask(swarm.member(0)).await;
    stream.until_words(3).await;
    swarm.member(1).done(&["pause"]).await;
    let answer = stream.rest().await;
    answer.assert_whole(&text, "stop");
    assert!(answer.seams.is_empty(), "{answer:?}");
}

#[tokio::test]
async fn a_drained_node_gets_nothing_until_it_is_undrained() {
    let swarm = team(&[fake(""), worker(0, 10, "")]).await;
    let text = words(1, 60);
    let mut stream = Question::new(&text).within("node=node2").ask(swarm.member(0)).await;
    stream.until_words(3).await;
    swarm.member(2).done(&["drain"]).await;
    swarm.no_offers_of("fake", &[2]).await;
    assert_eq!(answered_by(&swarm, 4).await, [1; 4]);
    let answer = stream.rest().await;
    answer.assert_whole(&text, "stop");
    assert!(answer.seams.is_empty(), "{answer:?}");
    let shown = swarm.member(0).done(&["peers"]).await;
    assert!(shown.contains("draining"), "the others see it: {shown}");
    swarm.member(2).done(&["undrain"]).await;
    swarm.offers_of("fake", &[2]).await;
}

#[tokio::test]
async fn a_node_shares_the_models_that_it_is_told_to_with_whom_it_is_told_to() {
    let nothing = fake("models = ['fake', 'hidden']\n[share]\nserve = false");
    let some = fake("models = ['fake', 'shown', 'hidden']\n[share]\nmodels = ['fake', 'shown']");
    let friends = fake("models = ['fake', 'friends']\n[share]\npeers = ['node2']");
    let mut swarm = started(Plan::of(4), &no_backends(), &[some, fake(""), fake("")]).await;
    swarm.offers_of("shown", &[1]).await;
    let listed = swarm.member(0).get("/v1/models").await;
    assert!(names(&listed).contains(&"shown:latest") && !names(&listed).contains(&"hidden:latest"), "{listed}");
    assert!(swarm.best("hidden").await.is_empty());

    for config in [nothing, friends] {
        swarm.stop(3).await;
        swarm.member_mut(3).configure(&config);
        swarm.restart(3).await;
        swarm.all_see_each_other().await;
        swarm.offers_of("fake", &[1, 2]).await;
        if config.contains("friends") {
            let knows = async || names(&swarm.member(2).get("/v1/models").await).contains(&"friends:latest");
            eventually("the friend's models", knows).await;
            let text = words(3, 4);
            let ask = Question::new(&text).with(&json!({ "model": "friends" }));
            ask.answer(swarm.member(2)).await.assert_whole(&text, "stop");
            assert_eq!(ask.answer(swarm.member(0)).await.status, 404);
        }
        assert!(!swarm.best("fake").await.contains(&swarm.id(3).to_owned()));
        let by = answered_by(&swarm, 6).await;
        assert!(!by.contains(&3), "{by:?}");
        // What it has it uses itself.
        let text = words(4, 4);
        let own = Question::new(&text).answer(swarm.member(3)).await;
        own.assert_whole(&text, "stop");
        assert_eq!(own.node(), swarm.id(3));
    }
}

#[tokio::test]
async fn a_declined_offer_moves_on() {
    // The first takes one at a time of others. An answer takes seconds, so that it has not ended when the last one is asked for.
    let one_at_a_time = worker(0, 20, "[share]\nmax_slots = 1");
    let swarm = team(&[one_at_a_time, worker(0, 20, "max_concurrent = 8")]).await;
    let texts: Vec<_> = (0..6).map(|number| words(number, 150)).collect();
    let asked = texts.iter().map(async |text| (Question::new(text).answer(swarm.member(0)).await, text));
    let mut by_first = 0;
    for (answer, text) in futures::future::join_all(asked).await {
        answer.assert_whole(text, "stop");
        assert!(answer.seams.is_empty(), "{answer:?}");
        by_first += usize::from(answer.node() == swarm.id(1));
    }
    // Nobody needs to have waited for the first, but whoever did not get it got the other.
    assert!(by_first <= 2, "{by_first} of 6 were answered by one who takes one at a time");
    let state = swarm.member(1).get("/node/sharing").await;
    assert_eq!((&state["running"], &state["waiting"]), (&0.into(), &0.into()), "{state}");
}

#[tokio::test]
async fn a_removed_member_gets_no_answers() {
    let mut swarm = team(&[fake(""), fake("")]).await;
    let text = words(1, 4);
    // It asks, as long as it is a member.
    swarm.stop(2).await;
    swarm.member_mut(2).configure(&no_backends());
    swarm.restart(2).await;
    swarm.all_see_each_other().await;
    let may = async || Question::new(&text).answer(swarm.member(2)).await.status == 200;
    eventually("an answer for a member", may).await;
    swarm.member(0).done(&["kick", "node2"]).await;
    let may_not = async || Question::new(&text).answer(swarm.member(2)).await.status != 200;
    eventually("no answer for one who is none", may_not).await;
    for _ in 0..5 {
        let refused = Question::new(&text).answer(swarm.member(2)).await;
        assert!([404, 503].contains(&refused.status), "{refused:?}");
    }
    swarm.offers_of("fake", &[1]).await;
    Question::new(&text).answer(swarm.member(0)).await.assert_whole(&text, "stop");
}
