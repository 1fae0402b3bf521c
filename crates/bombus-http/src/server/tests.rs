//! What only sockets show.

use std::sync::Arc;
use std::time::Duration;

use bombus_core::chat::FinishReason;
use bombus_infer::fake::FakeConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{HttpError, Server, accept};
use crate::testing::{Scripted, capture_log, done, fake, scripted, services, text};
use crate::{HttpConfig, KeyStore, Limits, Services};

/// Longest wait for anything. Nothing that works comes near it.
const PATIENCE: Duration = Duration::from_secs(20);

struct Running {
    address: std::net::SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(limits: Limits, services: Services) -> Self {
        let config = HttpConfig { listen: ([127, 0, 0, 1], 0).into(), limits, ..HttpConfig::default() };
        let server = Server::bind(config, services).await.unwrap();
        let (address, stop) = (server.local_addr(), CancellationToken::new());
        let task = tokio::spawn(server.serve(stop.clone()));
        Self { address, stop, task }
    }

    async fn connect(&self) -> TcpStream {
        timeout(PATIENCE, TcpStream::connect(self.address)).await.expect("connecting hangs").unwrap()
    }

    async fn send(&self, request: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn ask(&self, request: &str) -> String {
        rest(&mut self.send(request).await).await
    }

    async fn end(self) {
        timeout(PATIENCE, self.task).await.expect("the server does not end").unwrap();
    }
}

/// Reads to the end of the connection.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the connection does not end").unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Reads until a text has come.
async fn until(stream: &mut TcpStream, text: &str) -> String {
    let mut got = String::new();
    let read = async {
        let mut buffer = [0; 4096];
        while !got.contains(text) {
            let count = stream.read(&mut buffer).await.unwrap();
            assert_ne!(count, 0, "{text:?} never comes: {got}");
            got += std::str::from_utf8(&buffer[..count]).unwrap();
        }
    };
    timeout(PATIENCE, read).await.expect("nothing more comes");
    got
}

fn chat(version: &str, more: &Value) -> String {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "a b c"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let body = body.to_string();
    format!("POST /v1/chat/completions {version}\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn streamed() -> String {
    chat("HTTP/1.1", &json!({"stream": true}))
}

/// A model that says one word and then nothing more.
fn stuck() -> Scripted {
    scripted(vec![text("word")])
}

#[tokio::test]
async fn an_old_client_gets_its_stream_without_chunks() {
    let running =
        Running::start(Limits::default(), services(scripted(vec![text("a"), done(FinishReason::Stop)]))).await;
    let answer = running.ask(&chat("HTTP/1.0", &json!({"stream": true}))).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
    assert!(body.starts_with("data: {") && body.ends_with("data: [DONE]\n\n"), "{body}");
}

#[tokio::test]
async fn requests_sent_together_are_all_answered_in_order() {
    let running = Running::start(Limits::default(), fake(FakeConfig::default())).await;
    let one = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
    let requests = one("/health", "") + &one("/v1/models", "") + &one("/nowhere", "Connection: close\r\n");
    let answers = running.ask(&requests).await;
    let statuses: Vec<_> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["200", "200", "404"]);
}

#[tokio::test]
async fn a_head_that_never_ends_loses_its_connection() {
    let limits = Limits { header_ms_max: 50, ..Limits::default() };
    let running = Running::start(limits, fake(FakeConfig::default())).await;
    assert_eq!(running.ask("GET /health HTTP/1.1\r\nHost: loc").await, "");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let limits = Limits { header_bytes_max: 10_000, headers_max: 20, ..Limits::default() };
    let running = Running::start(limits, fake(FakeConfig::default())).await;
    let long = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(10_000));
    assert!(running.ask(&long).await.starts_with("HTTP/1.1 431 "));
    let many = format!("GET /health HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: x\r\n".repeat(20));
    assert!(running.ask(&many).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_counted_and_told_under_an_id() {
    let (log, _guard) = capture_log();
    let services = fake(FakeConfig::default());
    let metrics = services.metrics.clone();
    let limits = Limits { header_bytes_max: 10_000, ..Limits::default() };
    let running = Running::start(limits, services).await;
    assert!(running.ask("no request\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    let long = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(10_000));
    assert!(running.ask(&long).await.starts_with("HTTP/1.1 431 "));
    running.stop.cancel();
    running.end().await;
    let counted = metrics.encode().unwrap();
    let line = "bombus_http_requests_total{route=\"unmatched\",method=\"other\",status=\"4xx\"} 2";
    assert!(counted.lines().any(|counted| counted == line), "{counted}");
    let lines = log.lines();
    let told: Vec<_> = lines.iter().filter(|line| line.contains("request refused: its head cannot be read")).collect();
    assert!(told.len() == 2 && told.iter().all(|line| line.contains("request_id=")), "{lines:#?}");
}

#[tokio::test]
async fn a_client_that_sends_too_much_still_reads_why_it_is_refused() {
    let limits = Limits { body_bytes_max: 1_000_000, ..Limits::default() };
    let running = Running::start(limits, fake(FakeConfig::default())).await;
    let body = "x".repeat(1_500_000);
    let request =
        format!("POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut stream = running.send(&request).await;
    assert!(until(&mut stream, "request_too_large").await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_stops_the_model() {
    let backend = stuck();
    let watch = backend.watch.clone();
    let running = Running::start(Limits::default(), services(backend)).await;
    let mut stream = running.send(&streamed()).await;
    until(&mut stream, "word").await;
    watch.until(1).await;
    drop(stream);
    watch.until(0).await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_token_stops_the_model() {
    for request in [streamed(), chat("HTTP/1.1", &json!({})), chat("HTTP/1.1", &json!({"n": 3}))] {
        let backend = scripted(Vec::new());
        let watch = backend.watch.clone();
        let running = Running::start(Limits::default(), services(backend)).await;
        let stream = running.send(&request).await;
        watch.until(if request.contains("\"n\":3") { 3 } else { 1 }).await;
        drop(stream);
        watch.until(0).await;
    }
}

#[tokio::test]
async fn a_client_that_stops_reading_frees_the_model() {
    let backend = Scripted { endless: true, ..scripted(vec![text("word")]) };
    let watch = backend.watch.clone();
    let limits = Limits { write_stall_ms_max: 100, send_buffer_bytes: 16 << 10, ..Limits::default() };
    let running = Running::start(limits, services(backend)).await;
    let mut stream = running.send(&streamed()).await;
    until(&mut stream, "word").await;
    watch.until(1).await;
    watch.until(0).await;
    drop(stream);
}

#[tokio::test]
async fn sixty_four_clients_that_vanish_at_once_free_the_model() {
    let backend = stuck();
    let watch = backend.watch.clone();
    let running = Running::start(Limits::default(), services(backend)).await;
    let mut streams = Vec::new();
    for _ in 0..64 {
        streams.push(running.send(&streamed()).await);
    }
    watch.until(64).await;
    drop(streams);
    watch.until(0).await;
}

#[tokio::test]
async fn a_stream_that_ends_within_the_grace_time_ends_whole() {
    let config = FakeConfig {
        models: vec!["m".to_owned().try_into().unwrap()],
        tokens: Some(20),
        token_ms: 10,
        ..FakeConfig::default()
    };
    let running = Running::start(Limits::default(), fake(config)).await;
    let mut stream = running.send(&streamed()).await;
    until(&mut stream, "assistant").await;
    running.stop.cancel();
    assert!(rest(&mut stream).await.contains("data: [DONE]"));
    running.end().await;
}

#[tokio::test]
async fn a_stream_that_outlives_the_grace_time_ends_with_an_error() {
    let limits = Limits { grace_ms: 50, ..Limits::default() };
    let running = Running::start(limits, services(stuck())).await;
    let mut stream = running.send(&streamed()).await;
    until(&mut stream, "word").await;
    running.stop.cancel();
    let end = rest(&mut stream).await;
    assert!(end.contains("\"code\":\"shutting_down\"") && !end.contains("[DONE]"), "{end}");
    let address = running.address;
    running.end().await;
    assert!(TcpStream::connect(address).await.is_err(), "nothing listens any more");
}

#[tokio::test]
async fn connections_that_ask_nothing_do_not_hold_the_shutdown_up() {
    let limits = Limits { grace_ms: 600_000, ..Limits::default() };
    let running = Running::start(limits, fake(FakeConfig::default())).await;
    let silent = running.connect().await;
    let mut idle = running.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    until(&mut idle, "\"ok\"").await;
    running.stop.cancel();
    running.end().await;
    drop((silent, idle));
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_a_free_place() {
    let limits = Limits { connections_max: 1, ..Limits::default() };
    let running = Running::start(limits, services(stuck())).await;
    let mut first = running.send(&streamed()).await;
    until(&mut first, "word").await;
    let mut second = running.send("GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert!(timeout(Duration::from_millis(100), second.readable()).await.is_err(), "it is answered over the limit");
    drop(first);
    assert!(rest(&mut second).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn five_hundred_and_twelve_streams_at_once_come_whole() {
    raise_file_limit();
    let config = FakeConfig {
        models: vec!["m".to_owned().try_into().unwrap()],
        tokens: Some(30),
        token_ms: 5,
        ..FakeConfig::default()
    };
    let running = Running::start(Limits::default(), fake(config)).await;
    let mut streams = Vec::new();
    for _ in 0..512 {
        streams.push(running.send(&chat("HTTP/1.0", &json!({"stream": true}))).await);
    }
    for stream in &mut streams {
        let answer = rest(stream).await;
        assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("data: [DONE]\n\n"));
        assert_eq!(answer.matches("\"content\":").count(), 31);
    }
}

/// Lets the process open as many files as the system allows: 512 streams take 1024 here, for both of their ends.
fn raise_file_limit() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit).unwrap();
    }
}

#[tokio::test]
async fn an_address_beyond_loopback_needs_a_key() {
    let directory = tempfile::tempdir().unwrap();
    let keys = KeyStore::open(directory.path().join("keys.json"));
    let services = Services { keys: keys.clone(), ..fake(FakeConfig::default()) };
    let config = HttpConfig { listen: ([0, 0, 0, 0], 0).into(), ..HttpConfig::default() };
    let refused = Server::bind(config.clone(), services.clone()).await.err().expect("there is no key");
    assert!(refused.to_string().contains("bombus keys create NAME"), "{refused}");

    keys.create("a").unwrap();
    assert!(Server::bind(config.clone(), services.clone()).await.is_ok());

    std::fs::write(directory.path().join("keys.json"), "garbage").unwrap();
    assert!(matches!(Server::bind(config, services).await.err(), Some(HttpError::Keys(_))));
}

#[tokio::test]
async fn loopback_needs_a_key_where_it_is_told_to_ask_for_one() {
    let directory = tempfile::tempdir().unwrap();
    let keys = KeyStore::open(directory.path().join("keys.json"));
    let services = Services { keys: keys.clone(), ..fake(FakeConfig::default()) };
    let config = HttpConfig { listen: ([127, 0, 0, 1], 0).into(), require_key: true, ..HttpConfig::default() };
    let refused = Server::bind(config.clone(), services.clone()).await.err().expect("there is no key");
    assert!(refused.to_string().contains("api.require_key"), "{refused}");
    keys.create("a").unwrap();
    assert!(Server::bind(config, services).await.is_ok());
}

#[tokio::test]
async fn origins_that_would_never_match_are_refused() {
    let bind = |origin: &str| {
        let listen = ([127, 0, 0, 1], 0).into();
        let config = HttpConfig { listen, cors_origins: vec![origin.to_owned()], ..HttpConfig::default() };
        Server::bind(config, fake(FakeConfig::default()))
    };
    for origin in ["*", "https://chat.example", "http://localhost:3000", "app://obsidian.md", "http://[::1]:3000"] {
        assert!(bind(origin).await.is_ok(), "{origin}");
    }
    for origin in [
        "chat.example",
        "https://chat.example/",
        "https://Chat.example",
        "HTTPS://chat.example",
        "https://",
        "",
        "null",
        "https://a b",
    ] {
        let refused = bind(origin).await.err();
        assert!(matches!(refused, Some(HttpError::BadOrigin { .. })), "{origin}");
    }
}

/// Nagle's algorithm with delayed acknowledgements costs 40 ms for a token.
#[tokio::test]
async fn no_connection_holds_back_small_writes() {
    let config = HttpConfig { listen: ([127, 0, 0, 1], 0).into(), ..HttpConfig::default() };
    let server = Server::bind(config, fake(FakeConfig::default())).await.unwrap();
    let _client = timeout(PATIENCE, TcpStream::connect(server.local_addr())).await.expect("connecting hangs").unwrap();
    let slots = Arc::new(Semaphore::new(1));
    let limits = Limits::default();
    let accepted = accept(&server.listener, &slots, &limits);
    let (socket, _slot) = timeout(PATIENCE, accepted).await.expect("accepting hangs").expect("a client came");
    assert!(socket.nodelay().unwrap(), "{socket:?}");
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let running = Running::start(Limits::default(), fake(FakeConfig::default())).await;
    let config = HttpConfig { listen: running.address, ..HttpConfig::default() };
    let refused = Server::bind(config, fake(FakeConfig::default())).await.err().expect("the address is taken");
    assert!(refused.to_string().contains(&running.address.to_string()), "{refused}");
}

#[tokio::test]
async fn a_crowd_that_connects_at_once_waits_and_is_not_sent_away() {
    // A busy machine may need as long as whoever is sent away waits. It has some tries.
    for _ in 0..5 {
        let config = HttpConfig { listen: ([127, 0, 0, 1], 0).into(), ..HttpConfig::default() };
        let server = Server::bind(config, fake(FakeConfig::default())).await.unwrap();
        // Nobody accepts yet. Who finds no place in the queue would only get one a second later.
        let crowd = futures::future::join_all((0..512).map(|_| TcpStream::connect(server.local_addr())));
        if let Ok(crowd) = timeout(Duration::from_millis(900), crowd).await {
            return crowd.into_iter().for_each(|connected| drop(connected.unwrap()));
        }
    }
    panic!("some are sent away");
}
