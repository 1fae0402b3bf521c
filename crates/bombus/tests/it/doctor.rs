use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use bombus_testkit::gguf::tiny_model;
use serde_json::Value;

use crate::harness::{Home, Node, Signal, fake, finish, free_address, no_backends, server};
use crate::model::eventually;

/// Runs `bombus doctor --json` and returns (exit code, its checks by name).
async fn examine(home: &Home, arguments: &[&str]) -> (i32, Value) {
    examine_with(home, arguments, &[]).await
}

/// Does the same with more variables in the environment.
async fn examine_with(home: &Home, arguments: &[&str], variables: &[(&str, &str)]) -> (i32, Value) {
    let mut command = home.command(&[&["doctor", "--json"], arguments].concat());
    command.env("PATH", std::env::var_os("PATH").unwrap());
    command.envs(variables.iter().copied());
    let finished = finish(command).await;
    let report: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{}", finished.stderr));
    let code = finished.code.unwrap();
    assert_eq!(report["ok"], code == 0);
    let checks = report["checks"].as_array().unwrap();
    (code, checks.iter().map(|check| (check["name"].as_str().unwrap().to_owned(), check.clone())).collect())
}

fn assert_check(checks: &Value, name: &str, verdict: &str, found: &str) {
    let check = &checks[name];
    assert_eq!(check["verdict"], verdict, "{name}: {check}");
    assert!(check["found"].as_str().unwrap().contains(found), "{name}: {check} lacks {found:?}");
    assert_eq!(check["remedy"].is_string(), verdict != "ok", "every finding comes with what to do: {check}");
}

/// Asserts that what to do about a finding has some words.
fn assert_remedy(checks: &Value, name: &str, words: &str) {
    let remedy = &checks[name]["remedy"];
    assert!(remedy.as_str().is_some_and(|remedy| remedy.contains(words)), "{name}: {remedy} lacks {words:?}");
}

#[tokio::test]
async fn a_fresh_machine_is_in_order_and_stays_untouched() {
    let home = Home::new(&fake(""));
    let (code, checks) = examine(&home, &[]).await;
    assert_eq!(code, 0, "{checks}");
    assert_check(&checks, "data directory", "ok", "not there yet");
    assert_check(&checks, "configuration", "ok", "");
    assert_check(&checks, "node", "ok", "none runs");
    assert_check(&checks, "default model", "ok", "scripted");
    assert!(!home.data_dir().exists());
}

#[tokio::test]
async fn a_running_node_is_seen() {
    let home = Home::new(&fake(""));
    let node = Node::start(&home).await;
    let api = node.url("").replace("http://", "");
    let (_, checks) = examine(&home, &[]).await;
    assert_check(&checks, "node", "ok", &api);
    node.crash().await;
    let (code, checks) = examine(&home, &[]).await;
    assert_eq!(code, 0);
    assert_check(&checks, "node", "warn", "left over");
}

#[tokio::test]
async fn a_mistake_in_the_configuration_is_found() {
    let home = Home::new("nmae = 'x'\n");
    let (code, checks) = examine(&home, &[]).await;
    assert_eq!(code, 1);
    assert_check(&checks, "configuration", "fail", "unknown key `nmae`");
}

#[tokio::test]
async fn a_taken_port_and_its_owner_are_found() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let home = Home::new(&fake("").replace("127.0.0.1:0", &format!("127.0.0.1:{port}")));
    let (code, checks) = examine(&home, &[]).await;
    assert_eq!(code, 1);
    assert_check(&checks, "port", "fail", &format!("(process {})", std::process::id()));
}

#[tokio::test]
async fn a_port_taken_by_another_node_is_found() {
    let other_home = Home::new(&fake(""));
    let other = Node::start(&other_home).await;
    let address = other.url("").replace("http://", "");
    let home = Home::new(&fake("").replace("127.0.0.1:0", &address));
    let (code, checks) = examine(&home, &[]).await;
    assert_eq!(code, 1);
    assert_check(&checks, "port", "fail", other.id());
}

#[tokio::test]
async fn an_api_open_to_others_without_keys_is_found() {
    let home = Home::new(&fake("").replace("127.0.0.1:0", "0.0.0.0:0"));
    let (code, checks) = examine(&home, &[]).await;
    assert_eq!(code, 1);
    assert_check(&checks, "API keys", "fail", "no API key");
    home.run(&["keys", "create", "a"]).await;
    let (_, checks) = examine(&home, &[]).await;
    assert_check(&checks, "API keys", "ok", "1 key");
}

#[tokio::test]
async fn keys_that_are_wanted_on_this_machine_too_have_to_be_there() {
    let home = Home::new(&fake("").replace("[api]", "[api]\nrequire_key = true"));
    let (code, checks) = examine(&home, &[]).await;
    assert_eq!(code, 1);
    assert_check(&checks, "API keys", "fail", "require_key");
    home.run(&["keys", "create", "a"]).await;
    let (_, checks) = examine(&home, &[]).await;
    assert_check(&checks, "API keys", "ok", "1 key");
}

#[tokio::test]
async fn servers_that_are_backends_are_asked() {
    let upstream_home = Home::new(&fake(""));
    let upstream = Node::start(&upstream_home).await;
    let config = no_backends()
        + &server("ollama", "works", &upstream.url(""), "")
        + &server("openai", "dead", &format!("http://{}", free_address()), "")
        + &server("openai", "keyless", &upstream.url("/v1"), "api_key_env = 'A_KEY_THAT_IS_NOT_SET'");
    let (code, checks) = examine(&Home::new(&config), &[]).await;
    assert_eq!(code, 1);
    assert_check(&checks, "backend works", "ok", "1 models");
    assert_check(&checks, "backend dead", "fail", "");
    assert_check(&checks, "backend keyless", "fail", "A_KEY_THAT_IS_NOT_SET");
}

#[tokio::test]
async fn secrets_that_others_can_read_are_found() {
    let home = Home::new(&fake(""));
    home.run(&["keys", "create", "a"]).await;
    let _node = Node::start(&home).await;
    let (_, checks) = examine(&home, &[]).await;
    assert_check(&checks, "secret files", "ok", "");
    std::fs::write(home.data_dir().join("chat_history"), "").unwrap();
    for name in ["keys.json", "identity.key", "seal.key", "session.key", "chat_history"] {
        let file = home.data_dir().join(name);
        std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        let (code, checks) = examine(&home, &[]).await;
        assert_eq!(code, 1);
        assert_check(&checks, "secret files", "fail", &format!("{name} (mode 644)"));
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    }
}

#[tokio::test]
async fn a_data_directory_that_others_can_enter_is_remarked_upon() {
    let home = Home::new(&fake(""));
    home.run(&["keys", "create", "a"]).await;
    std::fs::set_permissions(home.data_dir(), Permissions::from_mode(0o755)).unwrap();
    let (code, checks) = examine(&home, &[]).await;
    assert_eq!(code, 0);
    assert_check(&checks, "data directory", "warn", "open to others (mode 755)");
}

#[tokio::test]
async fn a_newer_or_damaged_data_directory_is_found() {
    let home = Home::new(&fake(""));
    std::fs::create_dir(home.data_dir()).unwrap();
    for (format, found) in [("99\n", "has format 99"), ("x", "should hold a number")] {
        std::fs::write(home.data_dir().join("format"), format).unwrap();
        let (code, checks) = examine(&home, &[]).await;
        assert_eq!(code, 1);
        assert_check(&checks, "data directory", "fail", found);
    }
}

#[tokio::test]
async fn a_cut_model_file_is_found() {
    let home = Home::new(&fake(""));
    let file = home.path("tiny.gguf");
    std::fs::write(&file, tiny_model("tiny", 4096)).unwrap();
    assert_eq!(home.run(&["models", "import", file.to_str().unwrap()]).await.code, Some(0));
    let (code, checks) = examine(&home, &[]).await;
    assert_eq!(code, 0, "{checks}");
    assert_check(&checks, "stored models", "ok", "1");

    let listed: Value = serde_json::from_str(&home.run(&["models", "list", "--json"]).await.stdout).unwrap();
    let blob = std::fs::OpenOptions::new().write(true).open(listed[0]["path"].as_str().unwrap()).unwrap();
    blob.set_len(100).unwrap();
    let (code, checks) = examine(&home, &[]).await;
    assert_eq!(code, 1);
    assert_check(&checks, "stored models", "fail", "tiny");
}

#[tokio::test]
async fn a_missing_default_model_is_found() {
    let home = Home::new("default_model = 'qwen3:8b'\n[[backends]]\nkind = 'fake'\n");
    let (code, checks) = examine(&home, &[]).await;
    assert_eq!(code, 0);
    assert_check(&checks, "default model", "warn", "qwen3:8b is not here");
    assert!(checks["default model"]["remedy"].as_str().unwrap().contains("bombus models pull qwen3:8b"));
}

#[tokio::test]
async fn a_machine_without_python_is_told_what_it_misses() {
    let home = Home::new(&fake(""));
    std::fs::create_dir(home.path("empty")).unwrap();
    let mut command = home.command(&["doctor", "--json"]);
    command.env("PATH", home.path("empty"));
    let report: Value = serde_json::from_str(&finish(command).await.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let pip = checks.iter().find(|check| check["name"] == "pip").unwrap();
    assert_eq!(pip["verdict"], "warn");
    assert!(pip["found"].as_str().unwrap().contains("no python3"), "{pip}");
}

#[tokio::test]
async fn the_text_for_people_has_a_line_for_each_check() {
    let home = Home::new("nmae = 'x'\n");
    let finished = home.run(&["doctor"]).await;
    assert_eq!(finished.code, Some(1));
    assert!(finished.stdout.contains("FAIL  configuration: unknown key `nmae`"), "{}", finished.stdout);
    assert!(finished.stdout.contains("\n      -> "), "{}", finished.stdout);
    assert_eq!(finished.stderr, "");
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_found() {
    let home = Home::new(&fake(""));
    let mut node = Node::start(&home).await;
    node.process().signal(Signal::Pause);
    let (code, checks) = examine(&home, &[]).await;
    node.process().signal(Signal::Resume);
    assert_eq!(code, 1, "{checks}");
    assert_check(&checks, "node", "fail", "does not answer");
    node.stop().await;
}

#[tokio::test]
async fn a_node_that_does_not_tell_of_the_mesh_is_found() {
    let home = Home::new(&fake("").replace("[api]", "[api]\nrequire_key = true"));
    home.run(&["keys", "create", "a"]).await;
    let _node = Node::start(&home).await;
    let (code, checks) = examine(&home, &[]).await;
    assert_eq!(code, 0, "{checks}");
    assert_check(&checks, "mesh", "ok", "no other node is connected");
    // Commands on the data directory show this key to the node.
    std::fs::remove_file(home.data_dir().join("session.key")).unwrap();
    let (code, checks) = examine(&home, &[]).await;
    assert_eq!(code, 1, "{checks}");
    assert_check(&checks, "node", "ok", "answers");
    assert_check(&checks, "mesh", "fail", "an API key is needed");
    assert_remedy(&checks, "mesh", "logs");
}

#[tokio::test]
async fn a_port_for_nodes_that_cannot_be_had_is_found() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let home = Home::new(&fake(""));
    // The second address is one of documentation, which no machine has.
    for (listen, found, remedy) in [
        (taken.as_str(), "is in use", "--p2p ADDR:PORT"),
        ("192.0.2.7:7891", "cannot be listened on", "--p2p ADDR:PORT"),
        ("", "no address is configured", "p2p.listen"),
    ] {
        let (code, checks) = examine_with(&home, &[], &[("BOMBUS_P2P__LISTEN", listen)]).await;
        assert_eq!(code, 0, "{checks}");
        assert_check(&checks, "port for nodes", "warn", found);
        assert_remedy(&checks, "port for nodes", remedy);
    }
    let (_, checks) = examine(&home, &[]).await;
    assert_check(&checks, "port for nodes", "ok", "free");
}

#[tokio::test]
async fn a_configuration_without_a_swarm_key_is_remarked_upon() {
    let home = Home::new(&fake(""));
    let (_, checks) = examine(&home, &[]).await;
    assert_check(&checks, "mesh", "ok", "no swarm yet");
    let (code, checks) = examine_with(&home, &[], &[("BOMBUS_P2P__OPEN", "true")]).await;
    assert_eq!(code, 0, "{checks}");
    assert_check(&checks, "mesh", "warn", "p2p.open is set");
    assert_remedy(&checks, "mesh", "closed networks");
}

#[tokio::test]
async fn a_node_that_runs_without_a_swarm_key_is_told_loudly() {
    let home = Home::new(&fake(""));
    let node = Node::start_with(&home, &["--open"]).await;
    let (code, checks) = examine(&home, &[]).await;
    assert_eq!(code, 0, "{checks}");
    assert_check(&checks, "mesh", "warn", "whoever reaches it may take part");
    assert_remedy(&checks, "mesh", "start it without --open");
    let shown = home.run(&["doctor"]).await.stdout;
    assert!(shown.contains("warn  mesh: it runs without a swarm key (--open)"), "{shown}");
    node.stop().await;
    let _closed = Node::start(&home).await;
    let (_, checks) = examine(&home, &[]).await;
    assert_check(&checks, "mesh", "ok", "swarm ");
}

#[tokio::test]
async fn a_damaged_membership_is_found_and_the_node_says_the_same() {
    for (file, content, found) in [
        ("membership.json", "{", "membership.json"),
        ("membership.json", "{ \"format\": 99 }", "has format 99"),
        ("swarm.key", "x", "swarm.key"),
    ] {
        let home = Home::new(&fake(""));
        assert_eq!(home.run(&["invite"]).await.code, Some(0));
        let (code, checks) = examine(&home, &[]).await;
        assert_eq!(code, 0, "{checks}");
        assert_check(&checks, "mesh", "ok", "no other member was met yet");

        let swarms = home.data_dir().join("swarms");
        let id = std::fs::read_to_string(swarms.join("current")).unwrap();
        std::fs::write(swarms.join(id.trim()).join(file), content).unwrap();
        let (code, checks) = examine(&home, &[]).await;
        assert_eq!(code, 1, "{checks}");
        assert_check(&checks, "mesh", "fail", found);
        assert_remedy(&checks, "mesh", "restore the file");
        let refused = home.run(&["up"]).await;
        assert_ne!(refused.code, Some(0));
        assert!(refused.stderr.contains(found), "{}", refused.stderr);
    }
}

#[tokio::test]
async fn seeds_that_lead_nowhere_are_named() {
    let home = Home::new(&fake(""));
    let nowhere = free_address();
    let seed = format!("/ip4/127.0.0.1/tcp/{}", nowhere.rsplit(':').next().unwrap());
    assert_eq!(home.run(&["invite"]).await.code, Some(0));
    let (code, checks) = examine_with(&home, &[], &[("BOMBUS_P2P__SEEDS", seed.as_str())]).await;
    assert_eq!(code, 0, "{checks}");
    assert_check(&checks, &seed, "warn", "nothing listens");
    let _node = Node::start_with(&home, &["--seed", seed.as_str()]).await;
    let tried = async || examine(&home, &[]).await.1["unreached"].is_object();
    eventually("a seed that leads nowhere", tried).await;
    let (code, checks) = examine(&home, &[]).await;
    assert_eq!(code, 0, "{checks}");
    for name in ["seeds", "unreached"] {
        assert_check(&checks, name, "warn", &format!("{seed}: nothing listens at that port"));
        assert_remedy(&checks, name, "bombus doctor ADDRESS");
    }
    let (code, checks) = examine(&home, &[seed.as_str()]).await;
    assert_eq!(code, 10, "{checks}");
    assert_eq!(checks[seed.as_str()]["code"], "nothing_listens", "that says the same: {checks}");
}

#[tokio::test]
async fn a_ticket_without_addresses_is_told_so() {
    let inviting = Home::new(&fake(""));
    let invited = inviting.run(&["invite"]).await.stdout;
    let stranger = Home::new(&fake(""));
    for (home, found) in [(&inviting, "which this node belongs to already"), (&stranger, "with 0 addresses")] {
        let (code, checks) = examine(home, &[invited.trim()]).await;
        assert_eq!(code, 0, "{checks}");
        assert_check(&checks, "ticket", "ok", found);
        assert_check(&checks, "ticket's addresses", "warn", "it has none");
        assert_remedy(&checks, "ticket's addresses", "bombus invite");
    }
}
