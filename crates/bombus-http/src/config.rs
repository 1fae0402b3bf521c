use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Most milliseconds of any limit: a year.
const TIME_MS_MAX: u64 = 365 * 24 * 3_600_000;
/// Most bytes of bodies that are counted.
const BODY_BYTES_MAX: u64 = 1 << 38;
/// Larger heads do not fit into the buffer that hyper reads them into.
const HEADER_BYTES_MAX: u64 = 400 << 10;
/// Most header lines: for so many hyper sets memory aside with each request, whether it has them or not.
const HEADERS_MAX: u64 = 4_096;
/// Most connections: each takes a file descriptor.
const CONNECTIONS_MAX: u64 = 1_000_000;

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
    /// Host names under which a loopback listener may be addressed, without port, besides addresses, `localhost`, and names that end with
    /// `.localhost` or `.internal`.
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
    /// Largest request body in bytes, at least 1; more is answered with 413.
    pub body_bytes_max: usize,
    /// Memory for all the large request bodies that are being read and parsed at a time, in bytes, at least 1; further ones wait for it, for
    /// at most `body_ms_max`.
    pub bodies_bytes_max: usize,
    /// Largest request head in bytes, 1,024 to 409,600; more is answered with 431.
    pub header_bytes_max: usize,
    /// Most header lines in a request, 1 to 4,096; more is answered with 431.
    pub headers_max: usize,
    /// Longest time for a request's head to arrive, counted from the end of the answer before it, in milliseconds from 1. Connections that
    /// rest longer are closed.
    pub header_ms_max: u64,
    /// Longest time for a request's body to arrive in milliseconds from 1; a slower one is answered with 408. Of a file of a model's weights,
    /// which may take hours, the longest wait for its next piece.
    pub body_ms_max: u64,
    /// Longest wait for the first token in milliseconds from 1, loading and queueing included; more is answered with 504, and with 429 where the
    /// backend has just said that others are still before the request. Of vectors the longest wait for a piece of them: the embedded engine, here
    /// or at a peer, makes them in pieces of up to 256 inputs and 64 KiB, others all at once.
    pub first_token_ms_max: u64,
    /// Longest wait between two tokens in milliseconds from 1; more ends the stream with an error event. Time in which the backend says that
    /// it is at work on others does not count.
    pub next_token_ms_max: u64,
    /// Longest time for which a client may take no byte of its answer, in milliseconds from 1; then its connection is cut.
    pub write_stall_ms_max: u64,
    /// Size of the kernel's send buffer for each connection in bytes, 1,024 to 1 GiB: how far a model can run ahead of a client that does
    /// not read.
    pub send_buffer_bytes: usize,
    /// Largest file of a model's weights that a client may upload, in bytes; more is answered with 413. 0: none may be.
    pub blob_bytes_max: u64,
    /// Most connections at a time, 1 to 1,000,000; further ones wait in the listener's backlog.
    pub connections_max: usize,
    /// How long running answers may go on after a shutdown began, in milliseconds. 0: not at all.
    pub grace_ms: u64,
}

/// Says that a limit is out of the range in which the node can work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is {value}, but has to be from {least} to {most}")]
pub struct LimitsError {
    /// The limit's name, without that of its section.
    pub setting: &'static str,
    /// What it is set to.
    pub value: u64,
    /// The least that it may be.
    pub least: u64,
    /// The most that it may be.
    pub most: u64,
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
    /// Checks the ranges: with a limit beyond them no request would be answered.
    ///
    /// # Errors
    ///
    /// Names the first limit that is out of its range, and the range.
    pub fn check(&self) -> Result<(), LimitsError> {
        let size = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        let ranges = [
            ("body_bytes_max", size(self.body_bytes_max), 1, BODY_BYTES_MAX),
            ("bodies_bytes_max", size(self.bodies_bytes_max), 1, BODY_BYTES_MAX),
            ("header_bytes_max", size(self.header_bytes_max), 1_024, HEADER_BYTES_MAX),
            ("headers_max", size(self.headers_max), 1, HEADERS_MAX),
            ("header_ms_max", self.header_ms_max, 1, TIME_MS_MAX),
            ("body_ms_max", self.body_ms_max, 1, TIME_MS_MAX),
            ("first_token_ms_max", self.first_token_ms_max, 1, TIME_MS_MAX),
            ("next_token_ms_max", self.next_token_ms_max, 1, TIME_MS_MAX),
            ("write_stall_ms_max", self.write_stall_ms_max, 1, TIME_MS_MAX),
            ("send_buffer_bytes", size(self.send_buffer_bytes), 1_024, 1 << 30),
            ("connections_max", size(self.connections_max), 1, CONNECTIONS_MAX),
            ("grace_ms", self.grace_ms, 0, TIME_MS_MAX),
        ];
        match ranges.into_iter().find(|&(_, value, least, most)| !(least..=most).contains(&value)) {
            Some((setting, value, least, most)) => Err(LimitsError { setting, value, least, most }),
            None => Ok(()),
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    /// A change of the limits, and which of them the error names then.
    type Case = (fn(&mut Limits), &'static str);

    #[test]
    fn limits_with_which_nothing_would_be_answered_are_told() {
        assert_eq!(Limits::default().check(), Ok(()));
        let cases: [Case; 9] = [
            (|limits| limits.connections_max = 0, "connections_max"),
            (|limits| limits.connections_max = usize::MAX, "connections_max"),
            (|limits| limits.first_token_ms_max = 0, "first_token_ms_max"),
            (|limits| limits.write_stall_ms_max = u64::MAX, "write_stall_ms_max"),
            (|limits| limits.body_bytes_max = 0, "body_bytes_max"),
            (|limits| limits.header_bytes_max = 1 << 20, "header_bytes_max"),
            (|limits| limits.headers_max = usize::MAX, "headers_max"),
            (|limits| limits.send_buffer_bytes = usize::MAX, "send_buffer_bytes"),
            (|limits| limits.grace_ms = u64::MAX, "grace_ms"),
        ];
        for (change, setting) in cases {
            let mut limits = Limits::default();
            change(&mut limits);
            assert_eq!(limits.check().unwrap_err().setting, setting);
        }
        assert_eq!(Limits { grace_ms: 0, blob_bytes_max: 0, ..Limits::default() }.check(), Ok(()));
    }
}
