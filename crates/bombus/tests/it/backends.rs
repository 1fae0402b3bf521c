use bombus_testkit::upstream::{Script, Upstream};
use serde_json::{Value, json};

use crate::harness::{Home, Node, fake, fake_named, finish, free_address, no_backends, server};
use crate::model::eventually;

fn by_name<'a>(shown: &'a Value, name: &str) -> &'a Value {
    let backends = shown["backends"].as_array().unwrap();
    backends.iter().find(|backend| backend["name"] == name).unwrap_or_else(|| panic!("{shown} lacks {name}"))
}

async fn shown(home: &Home) -> Value {
    let shown = home.run(&["backends", "--json"]).await;
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    serde_json::from_str(&shown.stdout).unwrap()
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_told_with_the_reason() {
    let upstream_home = Home::new(&fake("models = ['there']"));
    let upstream = Node::start(&upstream_home).await;
    let config = no_backends()
        + &fake_named("script", "max_concurrent = 2")
        + &server("openai", "works", &upstream.url("/v1"), "")
        + &server("openai", "dead", &format!("http://{}", free_address()), "")
        + &server("openai", "given", &format!("http://{}", free_address()), "models = ['gone']");
    let home = Home::new(&config);
    let alone = shown(&home).await;
    assert_eq!(alone["node"], Value::Null);
    let node = Node::start(&home).await;
    eventually("both backends looked at", async || {
        let now = shown(&home).await;
        let told = |name| by_name(&now, name)["error"].is_string();
        by_name(&now, "works")["ready"] == true && told("dead") && told("given")
    })
    .await;
    let with_node = shown(&home).await;
    assert_eq!(with_node["node"], node.id());
    for seen in [alone, with_node] {
        assert_eq!(by_name(&seen, "script")["max_concurrent"], 2);
        assert_eq!((&by_name(&seen, "works")["ready"], &by_name(&seen, "works")["models"]), (&true.into(), &1.into()));
        for away in ["dead", "given"] {
            assert_eq!(by_name(&seen, away)["ready"], false);
            assert!(by_name(&seen, away)["error"].is_string(), "{seen}");
        }
    }
    let table = home.run(&["backends"]).await.stdout;
    assert!(table.lines().next().unwrap().starts_with("NAME "), "{table}");
    for away in ["dead ", "given "] {
        assert!(table.lines().any(|line| line.starts_with(away) && line.contains("down: ")), "{table}");
    }
}

#[tokio::test]
async fn where_no_backend_is_configured_that_is_said() {
    let home = Home::new(&("backends = []\n".to_owned() + &no_backends()));
    for with_node in [false, true] {
        let _node = if with_node { Some(Node::start(&home).await) } else { None };
        let told = home.run(&["backends"]).await;
        assert_eq!((told.code, told.stdout.as_str()), (Some(0), ""), "{}", told.stderr);
        assert_eq!(told.stderr, "no backend is configured\n");
        let explained = home.run(&["route", "--explain"]).await;
        assert_eq!((explained.code, explained.stdout.as_str()), (Some(3), ""), "{}", explained.stderr);
        assert!(explained.stderr.starts_with("no backend is configured\n"), "{}", explained.stderr);
        let quiet = home.run(&["backends", "--quiet"]).await;
        assert_eq!(quiet.stderr, "");
    }
}

#[tokio::test]
async fn both_dialects_carry_an_answer_through_a_second_node() {
    let upstream_home = Home::new(&fake("models = ['far']"));
    let upstream = Node::start(&upstream_home).await;
    for (kind, url) in [("openai", upstream.url("/v1")), ("ollama", upstream.url(""))] {
        let home = Home::new(&(no_backends() + &server(kind, "far-away", &url, "aliases = { near = 'far' }")));
        let alone = home.run(&["ask", "--model", "far", "one two"]).await;
        assert_eq!((alone.code, alone.stdout.as_str()), (Some(0), "one two\n"), "{kind}: {}", alone.stderr);
        let _node = Node::start(&home).await;
        for model in ["far", "near"] {
            let asked = home.run(&["ask", "--json", "--model", model, "one two"]).await;
            let answer: Value = serde_json::from_str(&asked.stdout).unwrap_or_else(|_| panic!("{}", asked.stderr));
            assert_eq!((&answer["answer"], &answer["route"]["backend"]), (&"one two".into(), &"far-away".into()));
        }
    }
}

#[tokio::test]
async fn a_node_that_is_its_own_backend_does_not_start() {
    let address = free_address();
    let config = no_backends().replace("127.0.0.1:0", &address);
    let home = Home::new(&(config + &server("ollama", "me", &format!("http://{address}"), "")));
    let refused = home.run(&["up"]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    for part in ["`backends.0.url`", "this is the node itself", &address] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
}

#[tokio::test]
async fn a_request_does_not_go_round_between_two_nodes() {
    let addresses = [free_address(), free_address()];
    let home = |own: usize| {
        let url = format!("http://{}/v1", addresses[1 - own]);
        let config = no_backends().replace("127.0.0.1:0", &addresses[own]);
        Home::new(&(config + &server("openai", "other", &url, "models = ['round']")))
    };
    let homes = [home(0), home(1)];
    let _nodes = [Node::start(&homes[0]).await, Node::start(&homes[1]).await];
    eventually("each node to see the other", async || {
        by_name(&shown(&homes[0]).await, "other")["ready"] == true
            && by_name(&shown(&homes[1]).await, "other")["ready"] == true
    })
    .await;
    let asked = homes[0].run(&["ask", "--model", "round", "hi"]).await;
    assert_eq!(asked.code, Some(4), "{}", asked.stderr);
    assert!(asked.stderr.contains("this request has come back to this node"), "{}", asked.stderr);
}

#[tokio::test]
async fn a_backend_may_come_after_the_node() {
    let address = free_address();
    let home = Home::new(&(no_backends() + &server("openai", "later", &format!("http://{address}/v1"), "")));
    let _node = Node::start(&home).await;
    let before = home.run(&["ask", "--model", "fake", "hi"]).await;
    assert_eq!(before.code, Some(4), "{}", before.stderr);
    let upstream_home = Home::new(&fake("").replace("127.0.0.1:0", &address));
    let _upstream = Node::start(&upstream_home).await;
    eventually("the backend's models", async || {
        let now = shown(&home).await;
        by_name(&now, "later")["ready"] == true
    })
    .await;
    let after = home.run(&["ask", "--model", "fake", "hi"]).await;
    assert_eq!((after.code, after.stdout.as_str()), (Some(0), "hi\n"), "{}", after.stderr);
}

#[tokio::test]
async fn a_server_that_asks_for_less_is_tried_again_when_it_says() {
    let upstream = Upstream::start().await.unwrap();
    upstream.on("GET /v1/models", Script::json(200, &json!({ "data": [{ "id": "fake" }] })));
    let busy = Script::json(429, &json!({ "error": { "message": "slow down" } })).header("retry-after", "7");
    upstream.on("POST /v1/chat/completions", busy);
    let home = Home::new(&(no_backends() + &server("openai", "busy", &format!("{}/v1", upstream.url()), "")));
    for with_node in [false, true] {
        let _node = if with_node { Some(Node::start(&home).await) } else { None };
        let asked = home.run(&["ask", "hi"]).await;
        assert_eq!(asked.code, Some(4), "{}", asked.stderr);
        assert!(
            asked.stderr.contains("error: all backends of this model have too much to do; try again in 7 s"),
            "{}",
            asked.stderr
        );
    }
}

#[tokio::test]
async fn a_key_is_sent_and_a_wrong_one_is_told() {
    let upstream_home = Home::new(&fake("").replace("[api]", "[api]\nrequire_key = true"));
    let key = upstream_home.run(&["keys", "create", "node"]).await.stdout.trim().to_owned();
    let upstream = Node::start(&upstream_home).await;
    let home =
        Home::new(&(no_backends() + &server("openai", "keyed", &upstream.url("/v1"), "api_key_env = 'THE_KEY'")));
    let with_key = |arguments: &[&str], key: &str| {
        let mut command = home.command(arguments);
        command.env("THE_KEY", key);
        finish(command)
    };
    let right = with_key(&["ask", "hi"], &key).await;
    assert_eq!((right.code, right.stdout.as_str()), (Some(0), "hi\n"), "{}", right.stderr);
    let wrong = with_key(&["ask", "hi"], "bk_wrong").await;
    assert_eq!(wrong.code, Some(4), "{}", wrong.stderr);
    assert!(wrong.stderr.contains("keyed") && !wrong.stderr.contains("bk_wrong"), "{}", wrong.stderr);
    for (key, verdict) in [(key.as_str(), "ok"), ("bk_wrong", "fail")] {
        let report: Value = serde_json::from_str(&with_key(&["doctor", "--json"], key).await.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == "backend keyed").unwrap();
        assert_eq!(check["verdict"], verdict, "{check}");
    }
    let unset = home.run(&["ask", "hi"]).await;
    assert_eq!(unset.code, Some(2), "{}", unset.stderr);
    assert!(unset.stderr.contains("keyed") && unset.stderr.contains("THE_KEY"), "{}", unset.stderr);
}
