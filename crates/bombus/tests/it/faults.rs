//! What goes wrong with a real engine, and that it goes no further. `BOMBUS_FAULT_ROUNDS` repeats each loop more often.

use std::time::{Duration, Instant};

use futures::future::join_all;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};

use crate::harness::{Node, client, take_environment, within};
use crate::model::{
    MODEL, chat, eventually, find, home_with_changed_model, home_with_model, own_weights, text_of, ticks, with,
};

/// How often the tests of faults repeat their loops.
pub(crate) fn rounds() -> usize {
    std::env::var("BOMBUS_FAULT_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2)
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(pid.try_into().unwrap()).unwrap()
}

/// Ends a process at once.
pub(crate) fn kill(pid: u32) {
    // It may have ended by itself in this moment.
    let _ = kill_process(pid_of(pid), Signal::KILL);
}

/// Waits until a process no longer runs.
async fn gone(pid: u32) {
    let runs = || {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        test_kill_process(pid_of(pid)).is_ok() && !state.contains(") Z ")
    };
    eventually("the end of the process", async || !runs()).await;
}

#[tokio::test]
async fn an_engine_killed_while_idle_is_back_for_the_next_request() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    node.answer(&chat("Hi", 2)).await;
    let pid = node.engine().await;
    kill(pid);
    gone(pid).await;
    node.answer(&chat("Hi", 2)).await;
    assert_ne!(node.engine().await, pid);
    node.stop().await;
}

#[tokio::test]
async fn an_engine_killed_while_it_reads_a_prompt_is_replaced_and_the_request_answered() {
    for _ in 0..rounds() {
        let home = home_with_model("").await;
        let node = Node::start(&home).await;
        node.answer(&chat("Hi", 1)).await;
        let pid = node.engine().await;
        let before = ticks(pid);
        let long = with(chat(&"many words ".repeat(600), 3), &json!({ "ignore_eos": true }));
        let answer = node.answer(&long);
        let killed = async {
            eventually("work of the engine", async || ticks(pid) >= before + 30).await;
            kill(pid);
        };
        let (answer, ()) = tokio::join!(answer, killed);
        assert_eq!(answer["usage"]["completion_tokens"], 3);
        assert_ne!(node.engine().await, pid);
        node.stop().await;
    }
}

#[tokio::test]
async fn an_answer_goes_on_in_a_new_engine_process_when_its_own_is_killed() {
    for _ in 0..rounds() {
        let home = home_with_model("").await;
        let node = Node::start(&home).await;
        let mut stream = node.stream(with(chat("Tell me a long story.", 120), &json!({ "ignore_eos": true }))).await;
        stream.first_text().await;
        kill(node.engine().await);
        let rest = stream.rest().await;
        assert_eq!(rest.last().map(String::as_str), Some("[DONE]"), "{rest:?}");
        assert!(
            rest.iter().any(|event| event.contains("engine process was killed")),
            "who took over is told: {rest:?}"
        );
        node.stop().await;
    }
}

#[tokio::test]
async fn an_engine_killed_while_it_answers_ends_the_stream_with_an_error_where_nothing_is_continued() {
    let home = home_with_model("[route]\ncontinuations_max = 0").await;
    let node = Node::start(&home).await;
    for round in 0..rounds() {
        if round > 0 {
            // From the second death on the engine pauses before it starts again, and says so.
            let answers = async || node.post("/v1/chat/completions", &chat("Hi", 1)).await.0 == 200;
            eventually("the end of the pause", answers).await;
        }
        let mut stream = node.stream(with(chat("Tell me a long story.", 4_000), &json!({ "ignore_eos": true }))).await;
        stream.first_text().await;
        kill(node.engine().await);
        let rest = stream.rest().await;
        let last: Value =
            serde_json::from_str(rest.last().unwrap()).expect("the stream does not end as if it were whole");
        let message = last["error"]["message"].as_str().expect("the last event is an error");
        assert!(message.contains("engine process was killed"), "{message}");
    }
    node.stop().await;
}

/// Kills a node and expects its engine process to be gone long before it would have ended what it does.
async fn crash_with_engine(node: Node, engine: u32) {
    let killed = Instant::now();
    node.crash().await;
    gone(engine).await;
    assert!(killed.elapsed() < Duration::from_secs(15), "the engine outlived its node by {:?}", killed.elapsed());
}

#[tokio::test]
async fn an_engine_that_loads_its_model_ends_with_its_node() {
    for _ in 0..rounds() {
        let home = home_with_model("").await;
        let node = Node::start(&home).await;
        let asking = tokio::spawn(client().post(node.url("/v1/chat/completions")).json(&chat("Hi", 1)).send());
        let engine = node.engine().await;
        let maps = async || std::fs::read_to_string(format!("/proc/{engine}/maps")).unwrap_or_default();
        eventually("the model's file in the process", async || maps().await.contains("models/blobs")).await;
        assert!(!asking.is_finished());
        crash_with_engine(node, engine).await;
        assert!(asking.await.unwrap().is_err(), "the node died before it answered");
    }
}

#[tokio::test]
async fn engines_end_with_their_node_however_it_ends() {
    for _ in 0..rounds() {
        let home = home_with_model("").await;
        let node = Node::start(&home).await;
        let mut stream = node.stream(with(chat("Tell me a long story.", 8_000), &json!({ "ignore_eos": true }))).await;
        stream.first_text().await;
        let pid = node.engine().await;
        crash_with_engine(node, pid).await;

        let node = Node::start(&home).await;
        node.answer(&chat("Hi", 1)).await;
        let pid = node.engine().await;
        node.stop().await;
        gone(pid).await;
    }
}

#[tokio::test]
async fn a_node_whose_program_file_was_replaced_still_starts_engines() {
    let home = home_with_model("").await;
    let program = home.path("bombus");
    std::fs::copy(env!("CARGO_BIN_EXE_bombus"), &program).unwrap();
    let mut command = tokio::process::Command::new(&program);
    let up = home.command(&["up"]);
    command.arg("up").kill_on_drop(true);
    take_environment(&mut command, &up);
    let node = Node::start_command(&home, command).await;
    std::fs::remove_file(&program).unwrap();
    std::fs::write(&program, "a later version").unwrap();
    node.answer(&chat("Hi", 1)).await;
    node.stop().await;
}

#[tokio::test]
async fn a_truncated_and_a_corrupt_model_are_named_and_the_node_lives() {
    let home = home_with_model("").await;
    let weights = own_weights(&home);
    let whole = std::fs::read(&weights).unwrap();
    let node = Node::start(&home).await;

    std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    let (status, error) = node.post("/v1/chat/completions", &chat("Hi", 1)).await;
    let message = error["error"]["message"].as_str().unwrap();
    assert!(status >= 500 && message.contains(MODEL), "{status} {message}");

    let mut corrupt = whole.clone();
    corrupt[24..4_096].fill(0xff);
    std::fs::write(&weights, &corrupt).unwrap();
    let (status, error) = node.post("/v1/chat/completions", &chat("Hi", 1)).await;
    let message = error["error"]["message"].as_str().unwrap();
    assert!(status >= 500 && message.contains(MODEL), "{status} {message}");

    std::fs::write(&weights, &whole).unwrap();
    node.answer(&chat("Hi", 1)).await;
    node.stop().await;
}

#[tokio::test]
async fn an_architecture_that_the_engine_does_not_know_is_named_and_the_node_lives() {
    let home = home_with_changed_model("", "strange", |bytes| {
        let name = find(bytes, b"general.architecture").unwrap() + b"general.architecture".len() + 4 + 8;
        assert_eq!(&bytes[name..name + 5], b"llama");
        bytes[name..name + 5].copy_from_slice(b"zebra");
    })
    .await;
    let node = Node::start(&home).await;
    let (status, error) = node.post("/v1/chat/completions", &with(chat("Hi", 1), &json!({ "model": "strange" }))).await;
    let message = error["error"]["message"].as_str().unwrap();
    assert!(status >= 500 && message.contains("strange") && message.contains("zebra"), "{status} {message}");
    node.answer(&chat("Hi", 1)).await;
    node.stop().await;
}

/// Returns how many requests a node is serving, the one that asks included.
async fn requests_in_flight(node: &Node) -> usize {
    let metrics = within("metrics", async { node.get("/metrics").await.text().await }).await.unwrap();
    let value = metrics.lines().find_map(|line| line.strip_prefix("bombus_http_requests_in_flight ")).unwrap();
    value.parse().unwrap()
}

#[tokio::test]
async fn sixty_four_clients_that_vanish_at_once_leave_nothing_behind() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    for _ in 0..rounds() {
        let request = with(chat("Tell me a long story.", 8_000), &json!({ "ignore_eos": true }));
        let streams = join_all((0..8).map(|_| node.stream(request.clone()))).await;
        let waiting: Vec<_> = (0..56)
            .map(|_| {
                let (url, request) =
                    (node.url("/v1/chat/completions"), with(request.clone(), &json!({ "stream": true })));
                tokio::spawn(client().post(url).json(&request).send())
            })
            .collect();
        eventually("64 requests at the node", async || requests_in_flight(&node).await == 1 + 64).await;
        drop(streams);
        for client in &waiting {
            client.abort();
        }
        join_all(waiting).await;
        eventually("the end of all of them", async || requests_in_flight(&node).await == 1).await;
        // With any of them left, the queue of runs of 8,000 tokens would be minutes long.
        node.answer(&chat("Hi", 1)).await;
    }
    node.stop().await;
}

#[tokio::test]
async fn sigterm_lets_a_real_answer_finish() {
    let home = home_with_model("[api.limits]\ngrace_ms = 120000").await;
    let mut node = Node::start(&home).await;
    let mut stream = node.stream(with(chat("Tell me a story.", 60), &json!({ "ignore_eos": true }))).await;
    let mut text = stream.first_text().await;
    node.process().signal(crate::harness::Signal::Terminate);
    let rest = stream.rest().await;
    text.extend(rest.iter().map(|event| text_of(event)));
    assert_eq!(rest.last().map(String::as_str), Some("[DONE]"), "{text}");
    assert_eq!(node.process().ended().await.code(), Some(0));
}

#[tokio::test]
async fn five_hundred_and_twelve_streams_at_once_all_end_whole() {
    let home = home_with_model("context_tokens = 512").await;
    let node = Node::start(&home).await;
    let request = with(chat("Say a word.", 3), &json!({ "ignore_eos": true }));
    let streams = join_all((0..512).map(|_| async {
        let mut stream = node.stream(request.clone()).await;
        let events = stream.rest().await;
        events.last().is_some_and(|last| last == "[DONE]")
    }))
    .await;
    assert_eq!(streams.iter().filter(|whole| **whole).count(), 512);
    node.stop().await;
}
