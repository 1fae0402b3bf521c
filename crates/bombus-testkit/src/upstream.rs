//! A server that answers by script, and goes wrong by script: a double for the servers that backends ask.
//!
//! It writes to the socket itself, so that it can do what no proper server does: hang, reset, break off in a chunk, answer nonsense.

mod connection;
mod script;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use script::Script;

/// Longest wait for something that a test expects to happen.
const EXPECTED_WITHIN: Duration = Duration::from_secs(20);

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Method and target, for example `GET /v1/models`.
    pub line: String,
    /// Headers, names in lower case.
    pub headers: HashMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
    /// Which connection it came by, from 0.
    pub connection: usize,
    /// How its answer stands.
    pub outcome: Outcome,
}

impl Received {
    /// Returns a header by its lower-case name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Reads the body as JSON; `null` where it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// How the answer to a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The script is still running.
    Running,
    /// The script came to its end.
    Finished,
    /// The client closed the connection before that.
    Abandoned,
}

/// The server. It ends, with all its connections, when it is dropped.
pub struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
    running: Mutex<CancellationToken>,
}

struct Shared {
    scripts: Mutex<HashMap<String, Scripts>>,
    requests: watch::Sender<Vec<Received>>,
    connections: watch::Sender<usize>,
}

/// What one kind of request is answered with.
#[derive(Default)]
struct Scripts {
    next: VecDeque<Script>,
    always: Option<Script>,
}

impl Shared {
    fn script_for(&self, line: &str) -> Script {
        let key = line.split('?').next().unwrap_or_default();
        let mut scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            scripts.get_mut(key).and_then(|scripts| scripts.next.pop_front().or_else(|| scripts.always.clone()));
        known.unwrap_or_else(|| Script::text(404, "404 page not found"))
    }
}

impl Upstream {
    /// Starts a server that answers every request with status 404.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            scripts: Mutex::default(),
            requests: watch::Sender::new(Vec::new()),
            connections: watch::Sender::new(0),
        });
        let running = Mutex::new(listen(listener, &shared));
        Ok(Self { address, shared, running })
    }

    /// Returns an address at which nobody listens.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub async fn refusing() -> io::Result<String> {
        let address = TcpListener::bind(("127.0.0.1", 0)).await?.local_addr()?;
        Ok(format!("http://{address}"))
    }

    /// Returns the base URL, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers all requests of one kind, for example `GET /v1/models`, by this script, after those of [`Upstream::once`]. A query is no part of
    /// the kind.
    pub fn on(&self, line: &str, script: Script) {
        self.with_scripts(line, |scripts| scripts.always = Some(script));
    }

    /// Answers the next request of one kind by this script; called several times, one after the other.
    pub fn once(&self, line: &str, script: Script) {
        self.with_scripts(line, |scripts| scripts.next.push_back(script));
    }

    fn with_scripts(&self, line: &str, change: impl FnOnce(&mut Scripts)) {
        let mut scripts = self.shared.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        change(scripts.entry(line.to_owned()).or_default());
    }

    /// Goes away: open connections end, new ones are refused.
    pub fn stop(&self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).cancel();
    }

    /// Comes back at the same address after [`Upstream::stop`].
    ///
    /// # Errors
    ///
    /// When somebody else has the port.
    pub async fn restart(&self) -> io::Result<()> {
        self.stop();
        // The old listener is closed by its task, which may not have run yet.
        let bind = async {
            loop {
                match TcpListener::bind(self.address).await {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => tokio::task::yield_now().await,
                    bound => return bound,
                }
            }
        };
        let listener = timeout(EXPECTED_WITHIN, bind).await??;
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = listen(listener, &self.shared);
        Ok(())
    }

    /// Returns the requests that came so far, in their order.
    #[must_use]
    pub fn requests(&self) -> Vec<Received> {
        self.shared.requests.borrow().clone()
    }

    /// Returns the number of connections that were made so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        *self.shared.connections.borrow()
    }

    /// Waits until so many requests have come, and returns them.
    ///
    /// # Panics
    ///
    /// When they do not come within 20 s.
    pub async fn received(&self, count: usize) -> Vec<Received> {
        self.wait(&format!("{count} requests"), |requests| requests.len() >= count).await
    }

    /// Waits until a client has closed its connection before the end of its answer, and returns its request.
    ///
    /// # Panics
    ///
    /// When none does within 20 s.
    pub async fn abandoned(&self) -> Received {
        let is_abandoned = |request: &Received| request.outcome == Outcome::Abandoned;
        let requests = self.wait("a client that goes away", |requests| requests.iter().any(is_abandoned)).await;
        requests.into_iter().find(is_abandoned).expect("the wait was for one")
    }

    async fn wait(&self, what: &str, is_there: impl Fn(&[Received]) -> bool) -> Vec<Received> {
        let mut requests = self.shared.requests.subscribe();
        let found = timeout(EXPECTED_WITHIN, requests.wait_for(|requests| is_there(requests))).await;
        let found = found.unwrap_or_else(|_| panic!("waited for {what}, but had only {:?}", self.requests()));
        found.expect("the sender lives as long as this server").clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop();
    }
}

fn listen(listener: TcpListener, shared: &Arc<Shared>) -> CancellationToken {
    let running = CancellationToken::new();
    // Its end is the token's: a test that is over needs no answers, and a failed accept shows as a refused connection.
    tokio::spawn(accept(listener, Arc::clone(shared), running.clone()));
    running
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, running: CancellationToken) {
    while let Some(Ok((stream, _))) = running.run_until_cancelled(listener.accept()).await {
        let mut connection = 0;
        shared.connections.send_modify(|count| {
            connection = *count;
            *count += 1;
        });
        let (shared, running) = (Arc::clone(&shared), running.clone());
        // A connection that fails is the client's to notice.
        tokio::spawn(async move { running.run_until_cancelled(connection::serve(stream, connection, &shared)).await });
    }
}

#[cfg(test)]
mod tests;
