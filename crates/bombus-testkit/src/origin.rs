//! A web server of fixed answers, with byte ranges and scripted faults.
//!
//! It writes its answers to the socket itself, so that it can break off in the middle of one.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Largest request head that is read.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What goes wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection closes after so many bytes of the body.
    CutAfter(usize),
    /// Nothing comes after so many bytes of the body, and the connection stays open.
    HangAfter(usize),
    /// Not even a status comes, and the connection stays open.
    Hang,
    /// The whole is sent with status 200 whatever range was asked for.
    IgnoreRange,
    /// Every range is answered with status 416.
    RefuseRange,
    /// This status, with an empty body.
    Status(u16),
}

/// What stands under a path.
#[derive(Debug, Clone)]
pub struct Resource {
    status: u16,
    headers: Vec<(String, String)>,
    body: Arc<[u8]>,
    /// Faults of the coming answers, first first; when they are used up, answers are right.
    faults: Vec<Fault>,
    /// The fault of all answers after those.
    always: Option<Fault>,
}

impl Resource {
    /// A body with status 200.
    #[must_use]
    pub fn of(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: Vec::new(), body: body.into().into(), faults: Vec::new(), always: None }
    }

    /// A redirect with status 302.
    #[must_use]
    pub fn redirect(location: &str) -> Self {
        Self { status: 302, ..Self::of("") }.header("Location", location)
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Lets the next answers go wrong, one fault for each.
    #[must_use]
    pub fn then(mut self, faults: impl IntoIterator<Item = Fault>) -> Self {
        self.faults.extend(faults);
        self
    }

    /// Lets every answer go wrong, after those of [`Resource::then`].
    #[must_use]
    pub fn always(mut self, fault: Fault) -> Self {
        self.always = Some(fault);
        self
    }

    fn next_fault(&mut self) -> Option<Fault> {
        if self.faults.is_empty() { self.always } else { Some(self.faults.remove(0)) }
    }
}

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Path and query.
    pub target: String,
    /// Headers, names in lower case.
    pub headers: HashMap<String, String>,
}

impl Request {
    /// Returns a header by its lower-case name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Returns the first byte that a `Range: bytes=N-` asks for.
    #[must_use]
    pub fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// The server. It ends, with all its connections, when it is dropped.
pub struct Origin {
    url: String,
    state: Arc<Mutex<State>>,
    _running: DropGuard,
}

#[derive(Default)]
struct State {
    resources: HashMap<String, Resource>,
    requests: Vec<Request>,
}

impl Origin {
    /// Starts a server without any resource: all paths answer 404.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let state = Arc::new(Mutex::new(State::default()));
        let running = CancellationToken::new();
        // Its end is the token's: a test that is over needs no answers, and a failed accept shows as a refused connection.
        tokio::spawn(accept(listener, Arc::clone(&state), running.clone()));
        Ok(Self { url, state, _running: running.drop_guard() })
    }

    /// Returns the base URL, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Puts a resource under a path, with its query if it has one.
    pub fn put(&self, target: &str, resource: Resource) {
        self.with(|state| state.resources.insert(target.to_owned(), resource));
    }

    /// Returns the requests that came so far, in their order.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.with(|state| state.requests.clone())
    }

    /// Returns the requests for one path.
    #[must_use]
    pub fn requests_for(&self, target: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.target == target).collect()
    }

    fn with<T>(&self, access: impl FnOnce(&mut State) -> T) -> T {
        access(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>, running: CancellationToken) {
    while let Some(Ok((stream, _))) = running.run_until_cancelled(listener.accept()).await {
        let (state, running) = (Arc::clone(&state), running.clone());
        // A connection that fails is the client's to notice.
        tokio::spawn(async move { running.run_until_cancelled(serve(stream, &state)).await });
    }
}

/// Answers one request and closes.
async fn serve(mut stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let Some(request) = read_request(&mut stream).await? else { return Ok(()) };
    let (resource, fault) = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let resource =
            state.resources.get_mut(&request.target).map(|resource| (resource.clone(), resource.next_fault()));
        state.requests.push(request.clone());
        resource.unwrap_or_else(|| (Resource { status: 404, ..Resource::of("not found") }, None))
    };
    answer(&mut stream, &request, resource, fault).await
}

async fn answer(
    stream: &mut TcpStream,
    request: &Request,
    mut resource: Resource,
    fault: Option<Fault>,
) -> io::Result<()> {
    let whole = Arc::clone(&resource.body);
    let mut body = &whole[..];
    match (fault, request.range_start()) {
        (Some(Fault::Hang), _) => return std::future::pending().await,
        (Some(Fault::Status(status)), _) => (resource.status, body) = (status, &[]),
        (Some(Fault::IgnoreRange), _) | (_, None) => {}
        (Some(Fault::RefuseRange), Some(_)) => (resource.status, body) = (416, &[]),
        (_, Some(start)) if resource.status == 200 && start < whole.len() => {
            resource.status = 206;
            body = &whole[start..];
            let range = format!("bytes {start}-{}/{}", whole.len() - 1, whole.len());
            resource = resource.header("Content-Range", &range);
        }
        (_, Some(_)) if resource.status == 200 => (resource.status, body) = (416, &[]),
        (_, Some(_)) => {}
    }
    let mut head = format!("HTTP/1.1 {} x\r\nContent-Length: {}\r\nConnection: close\r\n", resource.status, body.len());
    for (name, value) in &resource.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    match fault {
        Some(Fault::CutAfter(bytes)) => stream.write_all(&body[..bytes.min(body.len())]).await?,
        Some(Fault::HangAfter(bytes)) => {
            stream.write_all(&body[..bytes.min(body.len())]).await?;
            return std::future::pending().await;
        }
        _ => stream.write_all(body).await?,
    }
    stream.shutdown().await
}

/// Reads a request's head; `None` where the client closes before it is whole.
async fn read_request(stream: &mut TcpStream) -> io::Result<Option<Request>> {
    let mut bytes = Vec::new();
    while bytes.len() < HEAD_BYTES_MAX {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        if request.parse(&bytes).map_err(io::Error::other)?.is_complete() {
            let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
            return Ok(Some(Request {
                target: request.path.unwrap_or_default().to_owned(),
                headers: request.headers.iter().map(|h| (h.name.to_ascii_lowercase(), text(h.value))).collect(),
            }));
        }
    }
    Err(io::Error::other("the request's head is too long"))
}
