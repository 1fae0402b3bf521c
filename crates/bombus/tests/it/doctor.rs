use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use bombus_testkit::gguf::tiny_model;
use serde_json::Value;

use crate::harness::{Home, Node, fake, finish, free_address, no_backends, server};

/// Runs `bombus doctor --json` and returns (exit code, its checks by name).
async fn examine(home: &Home, arguments: &[&str]) -> (i32, Value) {
    let mut command = home.command(&[&["doctor", "--json"], arguments].concat());
    command.env("PATH", std::env::var_os("PATH").unwrap());
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
