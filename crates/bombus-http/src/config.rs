use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where and how a node answers HTTP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Address to listen on; port 0 takes a free one. Anything but loopback needs an API key in the store.
    pub listen: SocketAddr,
    /// Asks for an API key on loopback too, for example behind a proxy on the same machine, whose clients are elsewhere.
    pub require_key: bool,
    /// Origins of web pages that may call the API from a browser, for example `https://chat.example`; `*` lets every page.
    pub cors_origins: Vec<String>,
    /// Host names besides `localhost`, `127.0.0.1` and `[::1]` under which a loopback listener may be addressed, without port.
    pub allowed_hosts: Vec<String>,
    /// Bounds on what a client can take.
    pub limits: Limits,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7890)),
            require_key: false,
            cors_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            limits: Limits::default(),
        }
    }
}

impl HttpConfig {
    /// Returns whether a listener on this address asks for API keys.
    pub(crate) fn needs_key(&self, address: SocketAddr) -> bool {
        self.require_key || !address.ip().is_loopback()
    }
}

/// Bounds on what a client can take from a node: memory, connections and time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest request body in bytes; more is answered with 413.
    pub body_bytes_max: usize,
    /// Memory for all the large request bodies that are being read and parsed at a time, in bytes; further ones wait for it, for at
    /// most `body_ms_max`.
    pub bodies_bytes_max: usize,
    /// Largest request head in bytes; more is answered with 431.
    pub header_bytes_max: usize,
    /// Most header lines in a request; more is answered with 431.
    pub headers_max: usize,
    /// Longest time for a request's head to arrive, counted from the end of the answer before it, in milliseconds. Connections that
    /// rest longer are closed.
    pub header_ms_max: u64,
    /// Longest time for a request's body to arrive in milliseconds; a slower one is answered with 408. Of a file of a model's weights,
    /// which may take hours, the longest wait for its next piece.
    pub body_ms_max: u64,
    /// Longest wait for the first token in milliseconds, loading and queueing included; more is answered with 504.
    pub first_token_ms_max: u64,
    /// Longest wait between two tokens in milliseconds; more ends the stream with an error event.
    pub next_token_ms_max: u64,
    /// Longest time for which a client may take no byte of its answer, in milliseconds; then its connection is cut.
    pub write_stall_ms_max: u64,
    /// Size of the kernel's send buffer for each connection in bytes: how far a model can run ahead of a client that does not read.
    pub send_buffer_bytes: usize,
    /// Largest file of a model's weights that a client may upload, in bytes; more is answered with 413.
    pub blob_bytes_max: u64,
    /// Most connections at a time; further ones wait in the listener's backlog.
    pub connections_max: usize,
    /// How long running answers may go on after a shutdown began, in milliseconds.
    pub grace_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 32 << 20,
            bodies_bytes_max: 256 << 20,
            header_bytes_max: 64 << 10,
            headers_max: 100,
            header_ms_max: 60_000,
            body_ms_max: 120_000,
            first_token_ms_max: 300_000,
            next_token_ms_max: 120_000,
            write_stall_ms_max: 60_000,
            send_buffer_bytes: 128 << 10,
            blob_bytes_max: 256 << 30,
            connections_max: 1_024,
            grace_ms: 10_000,
        }
    }
}

impl Limits {
    pub(crate) fn header_time(&self) -> Duration {
        Duration::from_millis(self.header_ms_max)
    }

    pub(crate) fn body_time(&self) -> Duration {
        Duration::from_millis(self.body_ms_max)
    }

    pub(crate) fn first_token_time(&self) -> Duration {
        Duration::from_millis(self.first_token_ms_max)
    }

    pub(crate) fn next_token_time(&self) -> Duration {
        Duration::from_millis(self.next_token_ms_max)
    }

    pub(crate) fn write_stall_time(&self) -> Duration {
        Duration::from_millis(self.write_stall_ms_max)
    }

    pub(crate) fn grace_time(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }
}
