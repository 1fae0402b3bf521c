use serde_json::Value;

use crate::harness::{Home, Node, client, fake, free_address, server, within};

/// A text that occurs nowhere but in a prompt.
const PROMPT: &str = "xyzzy-plugh-4711";

#[tokio::test]
async fn a_requests_lines_carry_its_id_and_never_its_prompt() {
    let home = Home::new(&fake(""));
    let mut node = Node::start(&home).await;
    let body = serde_json::json!({ "model": "fake", "messages": [{ "role": "user", "content": PROMPT }] });
    let chat = client().post(node.url("/v1/chat/completions")).header("x-request-id", "my-request-1").json(&body);
    let answer = within("a chat", chat.send()).await.unwrap();
    assert_eq!(answer.headers()["x-request-id"], "my-request-1");
    assert!(answer.text().await.unwrap().contains(PROMPT));

    node.process().stderr_shows("my-request-1").await;
    let log = node.process().stderr();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("my-request-1")).collect();
    for line in lines {
        let line: Value = serde_json::from_str(line).expect("without a terminal every log line is JSON");
        assert!(line["level"].is_string() && line["timestamp"].is_string(), "{line}");
    }
    assert!(!log.contains(PROMPT), "{log}");
    node.stop().await;
}

#[tokio::test]
async fn a_log_file_gets_everything_and_stderr_only_warnings() {
    let home = Home::new(&format!("{}[log]\nfile = 'logs/node.log'\nlevel = 'debug'\n", fake("")));
    let mut node = Node::start(&home).await;
    node.get("/health").await;
    assert!(!node.process().stderr().contains("\"level\":\"INFO\""), "{}", node.process().stderr());
    node.stop().await;
    let files: Vec<_> = std::fs::read_dir(home.path("logs")).unwrap().map(|entry| entry.unwrap()).collect();
    let [file] = files.as_slice() else { panic!("{files:?}") };
    let name = file.file_name().into_string().unwrap();
    assert!(name.starts_with("node.log."), "{name} has the day in its name");
    let text = std::fs::read_to_string(file.path()).unwrap();
    assert!(text.contains("serving") && text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{text}");
}

#[tokio::test]
async fn commands_that_end_by_themselves_log_only_when_asked_to() {
    let home = Home::new(&fake(""));
    let silent = home.run(&["ask", "--quiet", "hi"]).await;
    assert_eq!(silent.stderr, "");
    let loud = home.run(&["ask", "--quiet", "--log-level", "trace", "hi"]).await;
    assert!(
        loud.stderr.lines().count() > 0 && loud.stderr.lines().all(|line| line.starts_with('{')),
        "{}",
        loud.stderr
    );
    assert_eq!(loud.stdout, "hi\n");
}

#[tokio::test]
async fn a_backend_that_cannot_be_asked_is_told_by_the_command_alone() {
    let dead = server("openai", "dead", &format!("http://{}", free_address()), "");
    let home = Home::new(&(fake("") + &dead));
    for arguments in [&["backends"][..], &["models", "list"], &["route", "--explain"], &["ask", "hi"]] {
        let quiet = home.run(&[arguments, &["--quiet"]].concat()).await;
        assert_eq!((quiet.code, quiet.stderr.as_str()), (Some(0), ""), "{arguments:?}");
    }
    let table = home.run(&["backends", "--quiet"]).await.stdout;
    assert!(table.lines().any(|line| line.starts_with("dead ") && line.contains("down: ")), "{table}");
    let models = home.run(&["models", "list"]).await;
    assert!(models.stdout.contains("fake:latest"), "{}", models.stdout);
    assert!(models.stderr.starts_with("note: the models of dead are not known: "), "{}", models.stderr);

    let asked_for = home.run(&["backends", "--quiet", "--log-level", "warn"]).await;
    for message in ["upstream request failed", "models could not be listed"] {
        assert!(asked_for.stderr.contains(message), "{}", asked_for.stderr);
    }
}
