//! One connection: requests are read, recorded, and answered by their scripts.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::script::{Ending, Head, Script, Step};
use super::{Outcome, Received, Shared};

/// Largest request head that is read.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Largest request body that is read.
const BODY_BYTES_MAX: usize = 64 << 20;

/// Answers requests until the client closes or a script does.
pub(super) async fn serve(mut stream: TcpStream, connection: usize, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut input, connection).await? {
        let script = shared.script_for(&request.line);
        let mut index = 0;
        shared.requests.send_modify(|requests| {
            index = requests.len();
            requests.push(request);
        });
        let (mut reader, mut writer) = stream.split();
        let outcome = tokio::select! {
            played = play(&script, &mut writer) => match played {
                Ok(()) => Outcome::Finished,
                Err(_) => Outcome::Abandoned,
            },
            () = closed(&mut reader, &mut input) => Outcome::Abandoned,
        };
        // The close comes first, so that whoever waits for the outcome finds the connection closed.
        let open = outcome == Outcome::Finished && script.ending == Ending::Whole;
        if script.ending == Ending::Reset {
            stream.set_zero_linger()?;
        }
        let stream_left = open.then_some(stream);
        shared.requests.send_modify(|requests| requests[index].outcome = outcome);
        match stream_left {
            Some(left) => stream = left,
            None => return Ok(()),
        }
    }
    Ok(())
}

async fn play(script: &Script, writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let chunked = match &script.head {
        Head::Hang => return std::future::pending().await,
        Head::Raw(bytes) => {
            writer.write_all(bytes).await?;
            false
        }
        Head::Status { status, headers } => {
            let mut head = format!("HTTP/1.1 {status} scripted\r\ntransfer-encoding: chunked\r\n");
            for (name, value) in headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            head.push_str("\r\n");
            writer.write_all(head.as_bytes()).await?;
            true
        }
    };
    for step in &script.steps {
        match step {
            Step::Piece(piece) if chunked && !piece.is_empty() => {
                let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
                chunk.extend_from_slice(piece);
                chunk.extend_from_slice(b"\r\n");
                writer.write_all(&chunk).await?;
            }
            Step::Piece(piece) => writer.write_all(piece).await?,
            Step::Pause(time) => sleep(*time).await,
            Step::Await(token) => token.cancelled().await,
        }
    }
    match script.ending {
        Ending::Whole if chunked => writer.write_all(b"0\r\n\r\n").await,
        Ending::Hang => std::future::pending().await,
        Ending::Whole | Ending::Cut | Ending::Reset => Ok(()),
    }
}

/// Returns when the client has closed. What it sends before that is kept.
async fn closed(reader: &mut (impl AsyncRead + Unpin), input: &mut Vec<u8>) {
    while input.len() < BODY_BYTES_MAX {
        match reader.read_buf(input).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Reads a request; `None` where the client closes before it is whole.
async fn read_request(stream: &mut TcpStream, input: &mut Vec<u8>, connection: usize) -> io::Result<Option<Received>> {
    let (mut request, length, body) = loop {
        if let Some((request, length)) = parse_head(input, connection)? {
            let body = Framing::of(&request);
            break (request, length, body);
        }
        if input.len() > HEAD_BYTES_MAX {
            return Err(io::Error::other("the request's head is too long"));
        }
        if stream.read_buf(input).await? == 0 {
            return Ok(None);
        }
    };
    input.drain(..length);
    loop {
        if let Some((bytes, length)) = body.parse(input)? {
            request.body = bytes;
            input.drain(..length);
            return Ok(Some(request));
        }
        if input.len() > BODY_BYTES_MAX {
            return Err(io::Error::other("the request's body is too long"));
        }
        if stream.read_buf(input).await? == 0 {
            return Ok(None);
        }
    }
}

fn parse_head(input: &[u8], connection: usize) -> io::Result<Option<(Received, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = request.parse(input).map_err(io::Error::other)? else { return Ok(None) };
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let received = Received {
        line: format!("{} {}", request.method.unwrap_or_default(), request.path.unwrap_or_default()),
        headers: request.headers.iter().map(|h| (h.name.to_ascii_lowercase(), text(h.value))).collect(),
        body: Vec::new(),
        connection,
        outcome: Outcome::Running,
    };
    Ok(Some((received, length)))
}

/// How a request's body is delimited.
#[derive(Clone, Copy)]
enum Framing {
    Length(usize),
    Chunked,
}

impl Framing {
    fn of(request: &Received) -> Self {
        if request.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            Self::Chunked
        } else {
            Self::Length(request.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0))
        }
    }

    /// Returns the body and the bytes that it takes, once it is whole.
    fn parse(self, input: &[u8]) -> io::Result<Option<(Vec<u8>, usize)>> {
        let mut at = match self {
            Self::Length(length) => return Ok(input.get(..length).map(|body| (body.to_vec(), length))),
            Self::Chunked => 0,
        };
        let mut body = Vec::new();
        loop {
            let rest = &input[at..];
            let size = httparse::parse_chunk_size(rest).map_err(|_| io::Error::other("a chunk without a size"))?;
            let httparse::Status::Complete((head, size)) = size else { return Ok(None) };
            let size = usize::try_from(size).map_err(io::Error::other)?;
            let Some(chunk) = rest.get(head..head.saturating_add(size).saturating_add(2)) else { return Ok(None) };
            body.extend_from_slice(&chunk[..size]);
            at += head + size + 2;
            if size == 0 {
                return Ok(Some((body, at)));
            }
        }
    }
}
