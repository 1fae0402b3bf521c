use std::net::TcpListener;
use std::time::Duration;

use futures::StreamExt;

use crate::harness::{Home, Node, Process, Signal, client, fake, take_environment, within};

#[tokio::test]
async fn a_node_says_where_it_is_until_it_stops() {
    let home = Home::new(&fake(""));
    let node = Node::start_with(&home, &["--name", "queen"]).await;
    assert_eq!(node.record()["name"], "queen");
    assert_eq!(node.record()["version"], env!("CARGO_PKG_VERSION"));
    assert!(node.id().starts_with("12D3KooW"));
    let models: serde_json::Value = node.get("/v1/models").await.json().await.unwrap();
    assert_eq!(models["data"][0]["id"], "fake:latest");
    node.stop().await;
    assert_eq!(home.node_json(), None);
}

#[tokio::test]
async fn a_node_keeps_its_id_and_both_aliases_start_it() {
    let home = Home::new(&fake(""));
    let first = Node::start(&home).await;
    let id = first.id().to_owned();
    first.stop().await;
    for alias in ["start", "daemon"] {
        let node = Node::start_command(&home, home.command(&[alias])).await;
        assert_eq!(node.id(), id);
        node.stop().await;
    }
}

#[tokio::test]
async fn a_second_node_on_one_data_directory_is_told_who_has_it() {
    let home = Home::new(&fake(""));
    let node = Node::start(&home).await;
    let second = home.run(&["up"]).await;
    assert_eq!(second.code, Some(1));
    let pid = node.record()["pid"].as_u64().unwrap();
    assert!(second.stderr.contains(&format!("another node (pid {pid})")), "{}", second.stderr);
    assert!(second.stderr.contains("hint: ") && second.stderr.contains("--data-dir"), "{}", second.stderr);
    assert_eq!(home.node_json().as_ref(), Some(node.record()), "the second node left the first one's file alone");
}

#[tokio::test]
async fn a_crashed_node_leaves_nothing_that_stops_the_next_one() {
    let home = Home::new(&fake(""));
    let node = Node::start(&home).await;
    let id = node.id().to_owned();
    node.crash().await;
    assert!(home.node_json().is_some());
    let next = Node::start(&home).await;
    assert_eq!(next.id(), id);
}

#[tokio::test]
async fn a_running_answer_finishes_when_the_node_is_told_to_stop() {
    let home = Home::new(&fake("reply = 'one two three four five six seven eight'\ntoken_ms = 50"));
    let mut node = Node::start(&home).await;
    let mut stream = node.chat_stream("hi").await.bytes_stream();
    let mut text = within("the first bytes", stream.next()).await.unwrap().unwrap().to_vec();
    node.process().signal(Signal::Terminate);
    while let Some(bytes) = within("the rest of the stream", stream.next()).await {
        text.extend_from_slice(&bytes.unwrap());
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("eight") && text.trim_end().ends_with("data: [DONE]"), "{text}");
    drop(stream);
    assert_eq!(node.process().ended().await.code(), Some(0), "{}", node.process().stderr());
    assert_eq!(home.node_json(), None);
}

#[tokio::test]
async fn an_answer_that_outlives_the_grace_time_is_cut_off() {
    let home =
        Home::new(&fake("tokens = 1000000\ntoken_ms = 20").replace("[api]", "[api.limits]\ngrace_ms = 100\n[api]"));
    let mut node = Node::start(&home).await;
    let mut stream = node.chat_stream("hi").await.bytes_stream();
    within("the first bytes", stream.next()).await.unwrap().unwrap();
    node.process().signal(Signal::Terminate);
    assert_eq!(node.process().ended().await.code(), Some(0), "{}", node.process().stderr());
}

#[tokio::test]
async fn a_second_signal_ends_the_node_at_once() {
    let home =
        Home::new(&fake("tokens = 1000000\ntoken_ms = 20").replace("[api]", "[api.limits]\ngrace_ms = 600000\n[api]"));
    let mut node = Node::start(&home).await;
    let mut stream = node.chat_stream("hi").await.bytes_stream();
    within("the first bytes", stream.next()).await.unwrap().unwrap();
    node.process().signal(Signal::Terminate);
    node.process().stderr_shows("stopping").await;
    node.process().signal(Signal::Terminate);
    assert_eq!(node.process().ended().await.code(), Some(143), "{}", node.process().stderr());
}

#[tokio::test]
async fn a_data_directory_of_a_newer_format_is_refused() {
    let home = Home::new(&fake(""));
    std::fs::create_dir(home.data_dir()).unwrap();
    std::fs::write(home.data_dir().join("format"), "99\n").unwrap();
    for arguments in [["up", "--quiet"], ["ask", "hi"], ["models", "list"], ["keys", "list"]] {
        let refused = home.run(&arguments).await;
        assert_eq!(refused.code, Some(2), "{arguments:?}: {}", refused.stderr);
        assert!(refused.stderr.contains("has format 99"), "{}", refused.stderr);
    }
    let left: Vec<_> = std::fs::read_dir(home.data_dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["format"]);
}

#[tokio::test]
async fn a_taken_port_is_a_clear_error() {
    let home = Home::new(&fake(""));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = home.run(&["up", "--api", &address]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains(&address) && refused.stderr.contains("in use"), "{}", refused.stderr);
    assert_eq!(home.node_json(), None);
}

#[tokio::test]
async fn an_address_that_is_none_is_answered_with_an_example() {
    let home = Home::new(&fake(""));
    let refused = home.run(&["up", "--api", "localhost:7890"]).await;
    assert_eq!(refused.code, Some(2));
    for part in ["flag --api", "expected ADDR:PORT, for example 127.0.0.1:7890"] {
        assert!(refused.stderr.contains(part), "{:?} lacks {part:?}", refused.stderr);
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_node_may_open_as_many_files_as_the_system_allows() {
    let home = Home::new(&fake(""));
    let up = home.command(&["up"]);
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", "ulimit -Sn 256 && exec \"$0\" up"]).arg(up.as_std().get_program()).kill_on_drop(true);
    take_environment(&mut command, &up);
    let node = Node::start_command(&home, command).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", node.record()["pid"])).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let [soft, hard]: [&str; 2] = line.split_whitespace().take(2).collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(soft, hard);
    assert_ne!(hard, "256", "the shell lowers the soft limit alone");
    node.stop().await;
}

#[tokio::test]
async fn beyond_loopback_a_node_wants_keys() {
    let home = Home::new(&fake(""));
    let refused = home.run(&["up", "--api", "0.0.0.0:0"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("bombus keys create"), "{}", refused.stderr);

    let key = home.run(&["keys", "create", "laptop"]).await.stdout.trim().to_owned();
    let node = Node::start_with(&home, &["--api", "0.0.0.0:0"]).await;
    let status = |name: &'static str, value: String| {
        let request = client().get(node.url("/v1/models")).header(name, value);
        async { within("a request", request.send()).await.unwrap().status().as_u16() }
    };
    assert_eq!(node.get("/v1/models").await.status(), 401);
    assert_eq!(node.get("/health").await.status(), 200);
    assert_eq!(status("authorization", format!("Bearer {key}")).await, 200);
    assert_eq!(status("x-api-key", key.clone()).await, 200);
    assert_eq!(status("authorization", format!("Bearer {key}x")).await, 401);

    assert_eq!(crate::harness::mode(&home.data_dir().join("session.key")), 0o600);
    assert_eq!(home.run(&["ask", "hi"]).await.stdout, "hi\n", "commands on the node's own data directory need no key");

    assert_eq!(home.run(&["keys", "revoke", "laptop"]).await.code, Some(0));
    assert_eq!(status("x-api-key", key).await, 401);
    node.stop().await;
    assert!(!home.data_dir().join("session.key").exists());
}

#[tokio::test]
async fn ctrl_c_stops_a_node_cleanly() {
    let home = Home::new(&fake(""));
    let mut process = Process::start(home.command(&["up"]));
    process.stderr_shows(" serves on ").await;
    process.signal(Signal::Interrupt);
    assert_eq!(process.ended().await.code(), Some(0));
    assert_eq!(process.stdout_rest().await, "", "what a node says goes to stderr");
}

#[tokio::test]
async fn idle_connections_do_not_hold_a_stopping_node() {
    // With so much time it would wait until the connection has rested for a minute.
    let home = Home::new(&fake("").replace("[api]", "[api.limits]\ngrace_ms = 600000\n[api]"));
    let mut node = Node::start(&home).await;
    let held = client();
    held.get(node.url("/health")).send().await.unwrap();
    node.process().signal(Signal::Terminate);
    let status = tokio::time::timeout(Duration::from_secs(30), node.process().ended()).await;
    assert_eq!(status.expect("it did not wait for the idle connection").code(), Some(0));
    drop(held);
}

#[cfg(not(feature = "embedded"))]
#[tokio::test]
async fn a_build_without_the_engine_serves_what_others_have_and_says_so() {
    let home = Home::new("[api]\nlisten = '127.0.0.1:0'\n");
    let mut node = Node::start(&home).await;
    node.process().stderr_shows("this build of bombus has no embedded engine").await;
    let listed: serde_json::Value = node.get("/v1/models").await.json().await.unwrap();
    assert_eq!(listed["data"], serde_json::json!([]));
    node.stop().await;

    let home = Home::new(&fake(""));
    let mut node = Node::start(&home).await;
    assert!(!node.process().stderr().contains("no embedded engine"), "{}", node.process().stderr());
    node.stop().await;

    let home = Home::new("[[backends]]\nkind = 'embedded'\n");
    for arguments in [["up", "--api=127.0.0.1:0"], ["ask", "hi"]] {
        let refused = home.run(&arguments).await;
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(
            refused.stderr.contains("no embedded engine") && refused.stderr.contains("hint: "),
            "{}",
            refused.stderr
        );
    }
}
