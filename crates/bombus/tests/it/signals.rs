//! Signals that reach more than the node: from a terminal, which signals a whole process group, and from service managers, which
//! signal every process of a service.

use std::os::unix::process::CommandExt;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::json;

use crate::harness::Node;
use crate::model::{chat, home_with_model, with};

/// Starts a node in a process group of its own, as a shell does, and sends signals while it answers. The answer has to end whole.
async fn an_answer_ends_whole_despite(signals: impl FnOnce(Pid, Pid)) {
    let home = home_with_model("[api.limits]\ngrace_ms = 120000").await;
    let mut command = home.command(&["up"]);
    command.as_std_mut().process_group(0);
    let mut node = Node::start_command(&home, command).await;
    let mut stream = node.stream(with(chat("Tell me a story.", 150), &json!({ "ignore_eos": true }))).await;
    stream.first_text().await;
    let engine = node.engine().await;
    let pid_of = |pid: u32| Pid::from_raw(pid.try_into().unwrap()).unwrap();
    signals(pid_of(node.process().pid()), pid_of(engine));
    let rest = stream.rest().await;
    assert_eq!(rest.last().map(String::as_str), Some("[DONE]"), "{rest:?}");
    assert_eq!(node.process().ended().await.code(), Some(0), "{}", node.process().stderr());
}

#[tokio::test]
async fn ctrl_c_in_a_terminal_lets_the_answer_finish() {
    an_answer_ends_whole_despite(|node, _| kill_process_group(node, Signal::INT).unwrap()).await;
}

#[tokio::test]
async fn a_service_manager_that_signals_the_engine_too_lets_the_answer_finish() {
    an_answer_ends_whole_despite(|node, engine| {
        kill_process(engine, Signal::TERM).unwrap();
        kill_process(node, Signal::TERM).unwrap();
    })
    .await;
}
