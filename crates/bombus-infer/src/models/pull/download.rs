//! One file over HTTP: resumed where it broke off, checked by its hash.

mod partial;

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use super::super::store::{ModelStore, StoreError};
use super::peers::cut_at_first_gap;
use super::secret::Secret;
use super::{PullConfig, PullError, PullProgress, PullStage, Report, check_space};
use crate::upstream::explain;
use partial::Partial;

pub(super) use partial::partial_path;

/// Bytes are written and hashed in pieces of this size, off the threads that serve others.
const PIECE_BYTES: usize = 1 << 20;
/// Largest answer to a question about a model; those for the largest repositories have some megabytes.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// Longest wait between two tries.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(8);

/// Where a file of weights is.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) url: String,
    /// Sent to the host of `url` only, and not where it redirects to.
    pub(super) token: Option<Secret>,
}

/// A file to be fetched.
pub(super) struct Job<'a> {
    pub(super) source: &'a Source,
    pub(super) sha256: &'a str,
    pub(super) size_bytes: u64,
    /// The lock on this file. Writes hold on to it: one that is under way when a pull is dropped must not meet the next pull's.
    pub(super) lock: &'a Arc<File>,
}

/// Why a try did not come to its end.
enum Failure {
    /// Worth another try.
    Passing(String),
    /// Not worth one.
    Lasting(PullError),
}

pub(super) fn client(config: &PullConfig) -> Result<Client, PullError> {
    Client::builder()
        .user_agent(concat!("bombus/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(config.connect_timeout)
        .read_timeout(config.stall_timeout)
        .build()
        .map_err(|error| PullError::Network { url: "the web".to_owned(), reason: explain(&error), kept_bytes: 0 })
}

/// Asks for a JSON document.
pub(super) async fn get_json<T: DeserializeOwned>(
    config: &PullConfig,
    request: RequestBuilder,
    url: &str,
) -> Result<T, PullError> {
    let body = get(config, request, url, ANSWER_BYTES_MAX).await?;
    serde_json::from_slice(&body)
        .map_err(|error| PullError::Protocol { url: url.to_owned(), reason: error.to_string() })
}

/// Asks for something small, which is refused where it has more bytes than this.
pub(super) async fn get(
    config: &PullConfig,
    request: RequestBuilder,
    url: &str,
    bytes_max: usize,
) -> Result<Vec<u8>, PullError> {
    let mut tries = 0;
    loop {
        let request = request.try_clone().expect("a request without a body can be sent again");
        match answer(request, url, bytes_max).await {
            Ok(body) => return Ok(body),
            Err(Failure::Lasting(error)) => return Err(error),
            Err(Failure::Passing(reason)) if tries == config.retries => {
                return Err(PullError::Network { url: url.to_owned(), reason, kept_bytes: 0 });
            }
            Err(Failure::Passing(_)) => {}
        }
        sleep(backoff(config, tries)).await;
        tries += 1;
    }
}

async fn answer(request: RequestBuilder, url: &str, bytes_max: usize) -> Result<Vec<u8>, Failure> {
    let mut response = send(request, url, 0).await?;
    check_status(&response, url)?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Failure::Passing(explain(&error)))? {
        if body.len() + chunk.len() > bytes_max {
            let reason = format!("it is longer than {bytes_max} bytes");
            return Err(Failure::Lasting(PullError::Protocol { url: url.to_owned(), reason }));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Fetches a file into its partial file and returns that once it is whole and has the right hash.
pub(super) async fn fetch(
    store: &ModelStore,
    client: &Client,
    config: &PullConfig,
    &Job { source, sha256, size_bytes, lock }: &Job<'_>,
    report: Report<'_>,
) -> Result<PathBuf, PullError> {
    let path = partial_path(store, sha256);
    // Peers may have sent a part of it, not from the first byte on.
    cut_at_first_gap(store, sha256).map_err(StoreError::io(&path))?;
    let mut partial =
        Partial::open(&path, size_bytes, Arc::clone(lock), report).await.map_err(StoreError::io(&path))?;
    check_space(store, size_bytes - partial.bytes())?;
    let mut may_hold_old_bytes = partial.bytes() > 0;
    let (mut failures, mut most_bytes) = (0, partial.bytes());
    loop {
        if partial.bytes() == size_bytes {
            let found = partial.sha256();
            if found == sha256 {
                return Ok(path);
            }
            if !may_hold_old_bytes {
                return Err(wrong_hash(&path, source, sha256, found));
            }
            // What an earlier pull left may be at fault, so one try is made without it.
            may_hold_old_bytes = false;
            most_bytes = 0;
            partial.restart().map_err(StoreError::io(&path))?;
        }
        let mut transfer = Transfer { store, source, size_bytes, partial: &mut partial, report: &mut *report };
        let reason = match transfer.run(client).await {
            Ok(()) => continue,
            Err(Failure::Lasting(error)) => return Err(error),
            Err(Failure::Passing(reason)) => reason,
        };
        if partial.bytes() > most_bytes {
            most_bytes = partial.bytes();
            failures = 0;
        }
        tracing::debug!(url.host = host_of(&source.url), reason, done_bytes = partial.bytes(), "a download broke off");
        if failures == config.retries {
            return Err(PullError::Network { url: source.url.clone(), reason, kept_bytes: partial.bytes() });
        }
        sleep(backoff(config, failures)).await;
        failures += 1;
    }
}

fn wrong_hash(path: &std::path::Path, source: &Source, expected: &str, found: String) -> PullError {
    if let Err(error) = fs::remove_file(path) {
        return StoreError::io(path)(error).into();
    }
    PullError::WrongHash { what: source.url.clone(), expected: expected.to_owned(), found }
}

/// One try to bring a partial file to its end.
struct Transfer<'a> {
    store: &'a ModelStore,
    source: &'a Source,
    size_bytes: u64,
    partial: &'a mut Partial,
    report: Report<'a>,
}

impl Transfer<'_> {
    async fn run(&mut self, client: &Client) -> Result<(), Failure> {
        let offset = self.partial.bytes();
        let mut request = client.get(&self.source.url);
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        if let Some(token) = &self.source.token {
            request = request.bearer_auth(token.reveal());
        }
        let response = send(request, &self.source.url, offset).await?;
        let resumes = match response.status() {
            StatusCode::PARTIAL_CONTENT => starts_at(&response, offset),
            StatusCode::RANGE_NOT_SATISFIABLE => false,
            _ => {
                check_status(&response, &self.source.url)?;
                offset == 0
            }
        };
        if !resumes {
            self.partial.restart().map_err(|error| self.cannot_write(error))?;
            if response.status() != StatusCode::OK {
                return Err(Failure::Passing("the server cannot go on where it broke off".to_owned()));
            }
        }
        self.receive(response).await
    }

    async fn receive(&mut self, mut response: Response) -> Result<(), Failure> {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let end = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => piece.extend_from_slice(&chunk),
                Ok(None) => break Ok(()),
                Err(error) => break Err(Failure::Passing(explain(&error))),
            }
            let done_bytes = self.partial.bytes() + piece.len() as u64;
            if done_bytes > self.size_bytes {
                return Err(self.too_long());
            }
            (self.report)(PullProgress::new(PullStage::Downloading, done_bytes, Some(self.size_bytes)));
            if piece.len() >= PIECE_BYTES {
                piece = self.write(piece).await?;
            }
        };
        self.write(piece).await?;
        end?;
        if self.partial.bytes() < self.size_bytes {
            return Err(Failure::Passing("the answer ended early".to_owned()));
        }
        Ok(())
    }

    /// Writes a piece and returns its memory.
    async fn write(&mut self, piece: Vec<u8>) -> Result<Vec<u8>, Failure> {
        self.partial.append(piece).await.map_err(|error| self.cannot_write(error))
    }

    fn cannot_write(&self, error: std::io::Error) -> Failure {
        let left_bytes = self.size_bytes - self.partial.bytes();
        Failure::Lasting(self.store.write_error(self.partial.path(), error, left_bytes).into())
    }

    fn too_long(&mut self) -> Failure {
        let reason = format!("it sends more than the {} bytes that the file has", self.size_bytes);
        match self.partial.restart() {
            Ok(()) => Failure::Lasting(PullError::Protocol { url: self.source.url.clone(), reason }),
            Err(error) => self.cannot_write(error),
        }
    }
}

/// Sends a request. A host that cannot be reached is not tried again unless something came from it already.
async fn send(request: RequestBuilder, url: &str, offset: u64) -> Result<Response, Failure> {
    request.send().await.map_err(|error| {
        let reason = explain(&error);
        if error.is_connect() && offset == 0 {
            Failure::Lasting(PullError::Network { url: url.to_owned(), reason, kept_bytes: 0 })
        } else {
            Failure::Passing(reason)
        }
    })
}

fn check_status(response: &Response, url: &str) -> Result<(), Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) {
        return Err(Failure::Passing(format!("it answers with status {status}")));
    }
    let hint = match status.as_u16() {
        401 | 403 => "it wants credentials, or does not let you have this",
        404 | 410 => "there is no such thing",
        _ => "this version of bombus may be too old for it",
    };
    Err(Failure::Lasting(PullError::Refused { url: url.to_owned(), status: status.as_u16(), hint: hint.to_owned() }))
}

/// Says whether a part of a file begins where it was asked to: `Content-Range: bytes 5-9/10` (RFC 9110, 14.4).
fn starts_at(response: &Response, offset: u64) -> bool {
    response
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("bytes ")?.split('-').next()?.parse().ok())
        == Some(offset)
}

fn backoff(config: &PullConfig, failures: u32) -> Duration {
    config.retry_after.saturating_mul(2_u32.saturating_pow(failures)).min(RETRY_AFTER_MAX)
}

fn host_of(url: &str) -> &str {
    url.split('/').nth(2).unwrap_or_default()
}
