use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

async fn connect(upstream: &Upstream, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(upstream.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn read_to_end(mut stream: TcpStream) -> io::Result<String> {
    let mut bytes = Vec::new();
    timeout(EXPECTED_WITHIN, stream.read_to_end(&mut bytes)).await??;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[tokio::test]
async fn bodies_are_read_by_length_and_by_chunks() {
    let upstream = Upstream::start().await.unwrap();
    let requests = "POST /a HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}POST /a?x=1 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    upstream.once("POST /a", Script::json(200, &json!({})));
    upstream.once("POST /a", Script::text(200, "last").then_cut());
    let answer = read_to_end(connect(&upstream, requests).await).await.unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    let bodies: Vec<_> = upstream.received(2).await.into_iter().map(|request| request.body).collect();
    assert_eq!(bodies, [b"{}".to_vec(), b"abcde".to_vec()]);
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn a_client_that_goes_away_is_noticed_while_the_script_hangs() {
    let upstream = Upstream::start().await.unwrap();
    upstream.on("GET /", Script::hang());
    let client = connect(&upstream, "GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(upstream.received(1).await[0].outcome, Outcome::Running);
    drop(client);
    assert_eq!(upstream.abandoned().await.line, "GET /");
}

#[tokio::test]
async fn a_script_waits_for_its_token_and_resets() {
    let upstream = Upstream::start().await.unwrap();
    let token = CancellationToken::new();
    upstream.on("GET /", Script::stream("text/plain").piece("a").wait_for(&token).piece("b").then_reset());
    let mut client = connect(&upstream, "GET / HTTP/1.1\r\n\r\n").await;
    let mut begin = [0; 20];
    client.read_exact(&mut begin).await.unwrap();
    token.cancel();
    let error = read_to_end(client).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_server_that_went_comes_back_at_its_address() {
    let upstream = Upstream::start().await.unwrap();
    upstream.on("GET /", Script::text(200, "here").then_cut());
    upstream.restart().await.unwrap();
    let answer = read_to_end(connect(&upstream, "GET / HTTP/1.1\r\n\r\n").await).await.unwrap();
    assert!(answer.contains("here"));
}
