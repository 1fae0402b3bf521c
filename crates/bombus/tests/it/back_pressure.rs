//! A client that does not read, and what it may not cost.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Duration, Instant};

use crate::harness::{Node, within};
use crate::model::{chat, eventually, home_with_model, ticks, with};

/// Tokens of the answer. With the alternatives of each token an event has kilobytes, so that the sockets and the 256 events that a
/// run may be ahead hold a small part of them.
const TOKENS: usize = 700;

/// Asks over a connection whose receive buffer is as small as the kernel lets it be, and reads nothing.
async fn ask_and_read_nothing(node: &Node, request: &Value) -> TcpStream {
    let address: std::net::SocketAddr = node.url("").strip_prefix("http://").unwrap().parse().unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2_048).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let body = request.to_string();
    // An answer to HTTP/1.0 comes without frames, and its end is the end of the connection.
    let head =
        format!("POST /v1/chat/completions HTTP/1.0\r\nhost: {address}\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    stream
}

/// Waits until a process computes nothing for half a second.
async fn stands_still(pid: u32) -> u64 {
    let mut last = (ticks(pid), Instant::now());
    eventually("the engine's standstill", async || {
        let now = ticks(pid);
        if now != last.0 {
            last = (now, Instant::now());
        }
        last.1.elapsed() > Duration::from_millis(500)
    })
    .await;
    last.0
}

#[tokio::test]
async fn a_client_that_stops_reading_costs_no_computing_and_misses_nothing() {
    let limits = "[api.limits]\nsend_buffer_bytes = 4096\nwrite_stall_ms_max = 600000";
    let home = home_with_model(limits).await;
    let node = Node::start(&home).await;
    node.answer(&chat("Hi", 1)).await;
    let engine = node.engine().await;

    let begun = ticks(engine);
    let more = json!({
        "ignore_eos": true, "logprobs": true, "top_logprobs": 20, "stream": true, "stream_options": { "include_usage": true },
    });
    let mut slow = ask_and_read_nothing(&node, &with(chat("Tell me a long story.", TOKENS as u32), &more)).await;
    eventually("work of the engine", async || ticks(engine) > begun + 10).await;
    let ahead = stands_still(engine).await - begun;

    for _ in 0..5 {
        node.answer(&chat("Hi", 20)).await;
    }
    let held = stands_still(engine).await;

    let mut answer = String::new();
    within("the answer", slow.read_to_string(&mut answer)).await.unwrap();
    let after = ticks(engine) - held;
    assert!(after >= ahead / 2, "most was computed before anyone read it: {ahead} ticks before, {after} after");

    let events: Vec<&str> =
        answer.split("\n\n").filter_map(|event| event.split_once("data: ").map(|(_, data)| data)).collect();
    let (last, events) = events.split_last().unwrap();
    assert_eq!(*last, "[DONE]");
    let events: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], TOKENS);
    let tokens = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(tokens.map(Vec::len).sum::<usize>(), TOKENS);
    node.stop().await;
}
