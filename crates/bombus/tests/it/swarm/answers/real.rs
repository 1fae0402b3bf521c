//! The same with a real model: its tokens are pieces of characters, its grammar has a state, and its cache is gone with the worker.

use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Answer, Question};
use super::{Plan, Swarm};
use crate::faults::{kill, rounds};
use crate::harness::{Signal, no_backends};
use crate::model::{MODEL, children, eventually, give_model};

const ENGINE: &str = "[api]\nlisten = '127.0.0.1:0'\n[[backends]]\nkind = 'embedded'\nthreads = 1\n";

/// Starts node 0 without a model and so many with the real one, which is in memory.
async fn engines(count: usize) -> Swarm {
    let mut swarm = Plan::of(count + 1).undisturbed().prepared().await;
    swarm.member_mut(0).configure(&no_backends());
    for index in 1..=count {
        swarm.member_mut(index).configure(ENGINE);
        give_model(swarm.member(index).home()).await;
    }
    swarm.start_all().await;
    swarm.all_see_each_other().await;
    warm_up(&swarm).await;
    swarm
}

async fn warm_up(swarm: &Swarm) {
    let workers: Vec<_> = (1..swarm.len()).collect();
    swarm.offers_of(MODEL, &workers).await;
    for index in workers {
        ask("Hi", 1).answer(swarm.member(index)).await.assert_ended("length");
    }
}

fn ask(prompt: &str, tokens: u32) -> Question {
    Question::new(prompt).with(&json!({
        "model": MODEL, "max_tokens": tokens, "temperature": 0, "seed": 1, "ignore_eos": true,
    }))
}

/// Asks and kills the node that answers after so many pieces of text; then brings it back.
async fn interrupted(swarm: &mut Swarm, question: &Question, pieces: usize) -> Answer {
    let mut stream = question.ask(swarm.member(0)).await;
    let victim = swarm.index_of(stream.so_far().node());
    stream.until_pieces(pieces).await;
    swarm.member(victim).signal(Signal::Kill);
    let before = stream.so_far().text.clone();
    let answer = stream.rest().await;
    assert!(answer.text.starts_with(&before), "what stood is untouched");
    swarm.kill(victim).await;
    swarm.restart(victim).await;
    swarm.all_see_each_other().await;
    warm_up(swarm).await;
    answer
}

#[tokio::test]
async fn a_real_answer_whose_worker_dies_is_as_it_would_have_been() {
    /// So many that the worker is dead before the last, however busy the machine is.
    const TOKENS: u32 = 250;
    /// Of these it is asked whether they are the same: the longer an answer, the sooner a near tie falls the other way.
    const COMPARED: u32 = 48;
    let prompts = [
        "Tell me about bees.",
        "Write the Greek alphabet with its letters.",
        "List emojis of animals and flowers.",
        "Why is the sky blue?",
    ];
    let mut swarm = engines(2).await;
    let (mut same, mut longest) = (0, Duration::ZERO);
    for round in 0..rounds() {
        let prompt = prompts[round % prompts.len()];
        let undisturbed = ask(prompt, COMPARED).answer(swarm.member(0)).await;
        undisturbed.assert_ended("length");
        let answer = interrupted(&mut swarm, &ask(prompt, TOKENS), 1 + round * 5 % 11).await;
        answer.assert_ended("length");
        assert_eq!(answer.seams.len(), 1, "{answer:?}");
        assert_eq!(answer.usage["completion_tokens"], TOKENS, "{answer:?}");
        assert_eq!(answer.usage["prompt_tokens"], undisturbed.usage["prompt_tokens"]);
        // The last token may have been a piece of a character.
        let expected = undisturbed.text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        same += usize::from(answer.text.starts_with(expected));
        longest = longest.max(answer.longest_gap);
    }
    println!(
        "{same} of {} continued answers begin as those of an undisturbed run; longest gap {} ms",
        rounds(),
        longest.as_millis()
    );
    // Batches of other sizes round otherwise, and a near tie may then fall the other way.
    assert!(same * 10 >= rounds() * 8, "{same} of {}", rounds());
    swarm.stop_all().await;
}

#[tokio::test]
async fn what_another_node_has_is_shown_as_that_node_shows_it() {
    let swarm = engines(1).await;
    let show = json!({ "model": MODEL });
    let (near, far) = (swarm.member(1).post("/api/show", &show).await, swarm.member(0).post("/api/show", &show).await);
    assert_eq!((near.0, far.0), (200, 200), "{far:?}");
    assert!(far.1["template"].as_str().is_some_and(|template| template.len() > 20), "{}", far.1);
    assert!(far.1["model_info"]["llama.embedding_length"].is_u64(), "{}", far.1);
    for field in ["template", "modelfile", "parameters", "details", "capabilities"] {
        assert_eq!(far.1[field], near.1[field], "{field}");
    }
    let is_told = async || swarm.member(0).get("/api/ps").await["models"].as_array().is_some_and(|all| !all.is_empty());
    eventually("what the other has in memory", is_told).await;
    let listed = swarm.member(0).get("/api/ps").await;
    let model = listed["models"].as_array().and_then(|models| models.first()).unwrap_or_else(|| panic!("{listed}"));
    assert_eq!(model["bombus"]["nodes"][0]["node_id"], swarm.id(1), "{listed}");
    assert!(model["size"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{listed}");
    // That it is in memory there is known where the next request is placed.
    let route = swarm.member(0).done(&["route", MODEL, "--explain"]).await;
    assert!(route.contains("in memory"), "{route}");
}

#[tokio::test]
async fn json_of_a_schema_is_valid_over_the_seam() {
    let schema = json!({
        "type": "object",
        "properties": {
            // So long that the worker is dead before the end, however busy the machine is.
            "name": { "type": "string", "minLength": 150, "maxLength": 200 },
            "legs": { "type": "integer" },
            "colours": { "type": "array", "minItems": 3, "maxItems": 4, "items": { "enum": ["yellow", "black", "brown"] } },
        },
        "required": ["name", "legs", "colours"],
        "additionalProperties": false,
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "insect", "schema": schema } });
    let mut swarm = engines(2).await;
    for round in 0..rounds() {
        let question = Question::new("Describe a bee as JSON.").with(&json!({
            "model": MODEL, "max_tokens": 500, "temperature": 0, "response_format": format,
        }));
        let answer = interrupted(&mut swarm, &question, [2, 9, 16, 23][round % 4]).await;
        answer.assert_ended("stop");
        assert_eq!(answer.seams.len(), 1, "{answer:?}");
        let insect: Value =
            serde_json::from_str(&answer.text).unwrap_or_else(|error| panic!("{error}: {}", answer.text));
        assert!(insect["legs"].is_i64() && insect["colours"].as_array().is_some_and(|all| all.len() >= 3), "{insect}");
        assert!(insect["name"].as_str().is_some_and(|name| name.chars().count() >= 150), "{insect}");
    }
    swarm.stop_all().await;
}

#[tokio::test]
async fn a_text_at_which_an_answer_ends_is_found_over_the_seam() {
    let mut swarm = engines(2).await;
    let free = ask("Tell me about bees.", 40).answer(swarm.member(0)).await;
    // A stop text of several tokens, from the middle of what the model says.
    let words: Vec<_> = free.text.split_inclusive(' ').collect();
    let stop = words[12..15].concat();
    let stop = stop.trim();
    let expected = free.text.split(stop).next().expect("a text before it");
    for round in 0..rounds() {
        let question = ask("Tell me about bees.", 40).with(&json!({ "stop": [stop] }));
        let answer = interrupted(&mut swarm, &question, 3 + round % 8).await;
        answer.assert_ended("stop");
        assert_eq!(answer.text, expected, "{answer:?}");
    }
    swarm.stop_all().await;
}

#[tokio::test]
async fn an_engine_that_dies_is_noticed_by_nobody_where_another_node_goes_on() {
    let swarm = engines(2).await;
    let question = ask("Tell me a long story about bees.", 60);
    let mut stream = question.ask(swarm.member(0)).await;
    let victim = swarm.index_of(stream.so_far().node());
    stream.until_pieces(8).await;
    let engines = children(swarm.member(victim).pid());
    kill(engines[0]);
    let answer = stream.rest().await;
    answer.assert_ended("length");
    assert_eq!(answer.usage["completion_tokens"], 60, "{answer:?}");
}
