//! Where models are, who answers, and what a client may say about that.

use serde_json::{Value, json};

use super::client::{Question, words};
use super::{names, team, team_of, worker};
use crate::harness::{fake, no_backends, within};
use crate::swarm::Plan;

#[tokio::test]
async fn a_node_without_a_model_answers_with_the_models_of_the_swarm() {
    let mine = fake("models = ['fake', 'mine']");
    let mut swarm = team(&[mine, fake("models = ['fake', 'yours']")]).await;
    swarm.offers_of("yours", &[2]).await;
    let listed = swarm.member(0).get("/v1/models").await;
    let mut names = names(&listed);
    names.sort_unstable();
    assert_eq!(names, ["fake:latest", "mine:latest", "yours:latest"], "each name once: {listed}");
    let tags = swarm.member(0).get("/api/tags").await;
    let mut tags: Vec<_> = tags["models"].as_array().unwrap().iter().map(|model| model["name"].clone()).collect();
    tags.sort_unstable_by_key(Value::to_string);
    assert_eq!(tags, ["fake:latest", "mine:latest", "yours:latest"]);

    let text = words(1, 8);
    for (model, nodes) in [("fake", &[1, 2][..]), ("mine", &[1]), ("yours", &[2])] {
        let answer = Question::new(&text).with(&json!({ "model": model })).answer(swarm.member(0)).await;
        answer.assert_whole(&text, "stop");
        assert!(nodes.contains(&swarm.index_of(answer.node())), "{answer:?}");
        assert!(answer.seams.is_empty(), "{answer:?}");
    }
    let whole = json!({ "model": "mine", "messages": [{ "role": "user", "content": text }] });
    let (status, answer) = swarm.member(0).post("/v1/chat/completions", &whole).await;
    assert_eq!((status, &answer["choices"][0]["message"]["content"]), (200, &text.as_str().into()), "{answer}");
    let (status, answer) = swarm.member(0).post("/api/generate", &json!({ "model": "yours", "prompt": text })).await;
    assert_eq!(status, 200, "{answer}");
    let nobody = Question::new(&text).with(&json!({ "model": "nobodys" })).answer(swarm.member(0)).await;
    assert_eq!(nobody.status, 404, "{nobody:?}");
    swarm.stop_all().await;
}

#[tokio::test]
async fn the_list_of_models_says_where_each_of_them_is() {
    let swarm = team_of(&fake("models = ['fake', 'own']"), &[fake("models = ['fake', 'far']")]).await;
    swarm.offers_of("far", &[1]).await;
    let shown: Value = serde_json::from_str(&swarm.member(0).done(&["models", "list", "--json"]).await).unwrap();
    let nodes_of = |name: &str| -> Vec<String> {
        let models = shown.as_array().or_else(|| shown["models"].as_array()).expect("a list of models");
        let model = models.iter().find(|model| model["name"] == name).unwrap_or_else(|| panic!("{shown} lacks {name}"));
        let nodes = model["nodes"].as_array().unwrap_or_else(|| panic!("{model} lacks its places"));
        nodes.iter().map(|node| node["node_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(nodes_of("own:latest"), [swarm.id(0)]);
    assert_eq!(nodes_of("far:latest"), [swarm.id(1)]);
    assert_eq!(nodes_of("fake:latest"), [swarm.id(0), swarm.id(1)], "its own comes first");
    let table = swarm.member(0).done(&["models", "list"]).await;
    let far = table.lines().find(|line| line.starts_with("far")).unwrap_or_else(|| panic!("{table}"));
    assert!(far.contains("node1"), "people are told names: {table}");
}

#[tokio::test]
async fn a_client_says_whether_this_node_others_or_which_one_answers() {
    let pace = fake("");
    let swarm = team_of(&pace.clone(), &[pace.clone(), pace]).await;
    let text = words(1, 5);
    let by = async |scope: &str| Question::new(&text).within(scope).answer(swarm.member(0)).await;
    let here = Question::new(&text).answer(swarm.member(0)).await;
    assert_eq!(here.node(), swarm.id(0), "as good as the others, and nearer");
    assert_eq!(by("local").await.node(), swarm.id(0));
    assert_ne!(by("remote").await.node(), swarm.id(0));
    for (scope, node) in [("node=node2".to_owned(), 2), (format!("node={}", swarm.id(1)), 1), ("node=node0".into(), 0)]
    {
        let answer = by(&scope).await;
        answer.assert_whole(&text, "stop");
        assert_eq!(answer.node(), swarm.id(node), "{scope}");
    }
    assert_eq!(by("sideways").await.status, 400);
    let unknown = by("node=nobody").await;
    assert!((400..=503).contains(&unknown.status) && unknown.error.is_some(), "{unknown:?}");

    for (flags, nodes) in [(&["--local"][..], &[0][..]), (&["--remote"], &[1, 2]), (&["--node", "node2"], &[2])] {
        let asked = swarm.member(0).done(&[&["ask", "--json"], flags, &[&text]].concat()).await;
        let answer: Value = serde_json::from_str(&asked).unwrap();
        assert_eq!(answer["answer"], text.as_str(), "{answer}");
        let node = swarm.index_of(answer["route"]["node"].as_str().unwrap_or_else(|| panic!("{answer}")));
        assert!(nodes.contains(&node), "{flags:?}: {answer}");
    }
}

#[tokio::test]
async fn local_means_local_where_only_others_have_the_model() {
    let swarm = team(&[fake("")]).await;
    let text = words(1, 5);
    let refused = Question::new(&text).within("local").answer(swarm.member(0)).await;
    assert!([404, 503].contains(&refused.status), "{refused:?}");
    let refused = swarm.member(0).run(&["ask", "--local", &text]).await;
    assert!(refused.code.is_some_and(|code| code != 0) && refused.stdout.is_empty(), "{}", refused.stdout);

    // The configuration may say so once and for all.
    let closed = no_backends() + "[route]\nremote = false\n";
    let mut alone = Plan::of(2).beside().prepared().await;
    alone.member_mut(0).configure(&closed);
    alone.start_all().await;
    alone.all_see_each_other().await;
    let refused = Question::new(&text).answer(alone.member(0)).await;
    assert!([404, 503].contains(&refused.status), "{refused:?}");
    let listed = alone.member(0).get("/v1/models").await;
    assert_eq!(names(&listed), Vec::<&str>::new());
}

#[tokio::test]
async fn a_route_is_explained_over_all_nodes() {
    let pace = worker(0, 0, "");
    let mut swarm = team(&[pace.clone(), pace, fake("models = ['other']")]).await;
    let explained = swarm.member(0).done(&["route", "fake", "--explain"]).await;
    for name in ["node1", "node2", "node3"] {
        assert!(explained.contains(name), "{explained}");
    }
    let route: Value = serde_json::from_str(&swarm.member(0).done(&["route", "fake", "--json"]).await).unwrap();
    let candidates = route["candidates"].as_array().unwrap();
    let of = |node: usize| candidates.iter().find(|one| one["node_id"] == swarm.id(node)).unwrap();
    assert!(of(1)["score"].is_number() && of(2)["score"].is_number(), "{route}");
    assert!(of(3)["rejected"].as_str().is_some_and(|why| why.contains("model")), "{route}");
    let id = swarm.id(2).to_owned();
    swarm.kill(2).await;
    swarm.no_offers_of("fake", &[2]).await;
    let best = swarm.best("fake").await;
    assert!(!best.contains(&id), "{best:?}");
}

#[tokio::test]
async fn embeddings_are_made_by_other_nodes_too() {
    let swarm = team(&[fake("")]).await;
    let request = json!({ "model": "fake", "input": ["die Biene", "蜂蜜"] });
    let (status, far) = swarm.member(0).post("/v1/embeddings", &request).await;
    assert_eq!(status, 200, "{far}");
    let (_, near) = swarm.member(1).post("/v1/embeddings", &request).await;
    assert_eq!(far["data"], near["data"], "the vectors are those of the node that has the model");
    assert_eq!(far["usage"], near["usage"]);
    let raw = within("vectors", swarm.member(0).client().post(swarm.member(0).url("/api/embed")).json(&request).send());
    let raw = raw.await.unwrap();
    let route = raw.headers()["x-bombus-route"].to_str().unwrap().to_owned();
    assert_eq!(route.split(';').take(3).collect::<Vec<_>>(), [swarm.id(1), "fake:latest", "fake"], "{route}");
    let (status, refused) = swarm.member(0).post("/v1/embeddings", &json!({ "model": "nobodys", "input": "x" })).await;
    assert_eq!(status, 404, "{refused}");
}

#[tokio::test]
async fn a_request_of_many_megabytes_passes_to_another_node() {
    let swarm = team(&[fake("")]).await;
    // A request may span several frames of a mebibyte.
    let text = format!("{} end", "x".repeat(5 << 20));
    let answer = Question::new(&text).with(&json!({ "max_tokens": 2 })).answer(swarm.member(0)).await;
    answer.assert_whole(&text, "stop");
    assert_eq!(answer.node(), swarm.id(1));
}
