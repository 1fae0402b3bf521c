//! Listening, connections and the end of both.

mod connection;
mod stall;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::app::SharedApp;
use crate::keys::KeyError;
use crate::{HttpConfig, Limits, Services, origin, platform, router};

/// Wait after an accept that failed for want of something, for example of file descriptors: it comes back when connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that may wait to be accepted. Those beyond it would try again only after a second.
const BACKLOG: u32 = 4096;
/// How long connections have to write their error events when the grace time is over.
const CUT_TIME: Duration = Duration::from_secs(1);

/// Says why a node cannot answer HTTP.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is open to other machines, or the configuration asks for keys, and there is none.
    #[error(
        "{listen} {}, and there is none; make one with: bombus keys create NAME",
        if listen.ip().is_loopback() { "needs an API key as api.require_key says" } else { "can be reached from other machines, so that it needs an API key" }
    )]
    NoKeys {
        /// The address.
        listen: SocketAddr,
    },
    /// A listed origin is none, so that it would never match.
    #[error(
        "'{origin}' in api.cors_origins is no origin: write 'https://chat.example', without a path, or '*' for every page"
    )]
    BadOrigin {
        /// What is listed.
        origin: String,
    },
    /// The keys that an open address needs cannot be read.
    #[error("API keys cannot be read: {0}")]
    Keys(#[from] KeyError),
    /// The address cannot be listened on.
    #[error("cannot listen on {listen}: {source}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// A listener with everything that answers on it.
pub struct Server {
    listener: TcpListener,
    router: Router,
    app: SharedApp,
}

impl Server {
    /// Listens, without answering yet.
    ///
    /// # Errors
    ///
    /// [`HttpError::NoKeys`] and [`HttpError::Keys`] where keys are needed; [`HttpError::BadOrigin`]; [`HttpError::Listen`].
    pub async fn bind(config: HttpConfig, services: Services) -> Result<Self, HttpError> {
        let listen = config.listen;
        origin::check_configured(&config.cors_origins)?;
        if config.needs_key(listen) && services.keys.list()?.is_empty() {
            return Err(HttpError::NoKeys { listen });
        }
        let failed = |source| HttpError::Listen { listen, source };
        let listener = listen_on(listen).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let (router, app) = router::build(config, services, bound);
        Ok(Self { listener, router, app })
    }

    /// Returns the address that is listened on, with the port that port 0 became.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.app.bound
    }

    /// Answers until `stop` is cancelled. Then no connection is accepted any more, and running answers may go on for the grace time;
    /// after it they end with an error event.
    pub async fn serve(self, stop: CancellationToken) {
        let limits = &self.app.config.limits;
        let slots = Arc::new(Semaphore::new(limits.connections_max));
        let draining = self.app.stopping.clone();
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = connections.join_next() => note_end(ended),
                accepted = accept(&self.listener, &slots, limits) => if let Some((stream, slot)) = accepted {
                    let app = self.app.clone();
                    let router = self.router.clone();
                    let draining = draining.clone();
                    connections.spawn(async move {
                        connection::serve(stream, router, &app, draining).await;
                        drop(slot);
                    });
                },
            }
        }
        drop(self.listener);
        draining.cancel();
        let grace = self.app.config.limits.grace_time();
        if timeout(grace, drain(&mut connections)).await.is_ok() {
            return;
        }
        tracing::warn!(
            connections = connections.len(),
            grace_ms = grace.as_millis() as u64,
            "answers are cut off: the grace time is over"
        );
        self.app.cut.cancel();
        if timeout(CUT_TIME, drain(&mut connections)).await.is_err() {
            connections.shutdown().await;
        }
    }
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    platform::take_over_address(&socket)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn drain(connections: &mut JoinSet<()>) {
    while let Some(ended) = connections.join_next().await {
        note_end(ended);
    }
}

/// A connection that panics takes only itself down; the reason is told here.
fn note_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection panicked");
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    limits: &Limits,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
    match listener.accept().await {
        Ok((stream, _)) => {
            prepare(&stream, limits);
            Some((stream, slot))
        }
        Err(error) if is_peers_fault(&error) => None,
        Err(error) => {
            tracing::error!(%error, "connections cannot be accepted");
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// Has every token leave at once, and bounds how many of them the kernel keeps for a client that does not read.
fn prepare(stream: &TcpStream, limits: &Limits) {
    let tuned =
        stream.set_nodelay(true).and_then(|()| SockRef::from(stream).set_send_buffer_size(limits.send_buffer_bytes));
    if let Err(error) = tuned {
        tracing::debug!(%error, "socket options could not be set");
    }
}

fn is_peers_fault(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
