//! The HTTP client behind the backends that ask other servers: bounded, timed, logged, and with one reading of how servers fail.

mod error;
mod settings;

use std::error::Error as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, VIA};
use reqwest::{Body, Client, Method, Response, Url, redirect};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tokio::time::{Instant, timeout};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::io::StreamReader;

use crate::via;

pub(crate) use error::{ADVICE, UpstreamError};
pub(crate) use settings::{KeySource, base_url, headers};

/// Longest wait for a connection.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// Longest accepted line of a stream; a server that sends a whole answer with a picture in one line stays under it.
const LINE_BYTES_MAX: usize = 8 << 20;
/// How much of the body of a refusal is read.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// Idle connections are given up before the 5 s after which Uvicorn and Node close theirs: a request that meets such a close fails.
const POOL_IDLE_TIME_MAX: Duration = Duration::from_secs(4);
/// The same with TLS, where making a connection is dear and servers wait longer.
const POOL_IDLE_TIME_MAX_TLS: Duration = Duration::from_secs(50);
/// A kept connection that the server has closed just then breaks off at once: then the request is sent anew, once.
const STALE_TIME_MAX: Duration = Duration::from_millis(50);

/// A shorter value of a header is taken for no secret.
const SECRET_BYTES_MIN: usize = 8;

/// What is asked of a server, as logs show it.
struct Ask<'a> {
    method: Method,
    path: &'a str,
    /// The model that is asked for, where one is.
    model: Option<&'a str>,
    /// Whether it is only to see that the server answers: then a refusal is no error.
    is_probe: bool,
}

/// What an [`UpstreamClient`] needs to know.
pub(crate) struct UpstreamOptions {
    /// The backend's name, for logs.
    pub(crate) name: String,
    /// What paths are appended to, see [`base_url`].
    pub(crate) base: Url,
    /// Sent with every request, see [`headers`].
    pub(crate) headers: HeaderMap,
    /// Longest wait for the status, and for each piece of a body after it.
    pub(crate) timeout: Duration,
}

/// A client of one server. Follows no redirects, so that a key never goes elsewhere.
pub(crate) struct UpstreamClient {
    name: String,
    base: Url,
    client: Client,
    timeout: Duration,
    /// What no server's words may bring into an error: the key, and the values of other headers that are as long as one.
    secrets: Vec<String>,
    /// Whether the server could not be reached the last time. One that stays away is logged once.
    away: AtomicBool,
}

impl UpstreamClient {
    /// Makes a client. No connection is made yet.
    ///
    /// # Errors
    ///
    /// [`UpstreamError::Config`] where TLS cannot be set up.
    pub(crate) fn new(options: UpstreamOptions) -> Result<Self, UpstreamError> {
        let tls = options.base.scheme() == "https";
        let secrets = secrets_in(&options.headers);
        let mut builder = Client::builder()
            .user_agent(concat!("bombus/", env!("CARGO_PKG_VERSION")))
            .default_headers(options.headers)
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIME_MAX)
            .pool_idle_timeout(if tls { POOL_IDLE_TIME_MAX_TLS } else { POOL_IDLE_TIME_MAX })
            .redirect(redirect::Policy::none());
        if is_loopback(&options.base) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| UpstreamError::Config { reason: explain(&error) })?;
        Ok(Self {
            name: options.name,
            base: options.base,
            client,
            timeout: options.timeout,
            secrets,
            away: AtomicBool::new(false),
        })
    }

    /// Returns the backend's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the server's address.
    pub(crate) fn url(&self) -> &str {
        self.base.as_str()
    }

    /// Returns the longest wait for a piece of an answer, for [`UpstreamClient::lines`].
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Asks for a JSON document of at most `limit_bytes`.
    ///
    /// # Errors
    ///
    /// Any [`UpstreamError`] but `Config`.
    pub(crate) async fn get_json<T: DeserializeOwned>(
        &self,
        path: &str,
        limit_bytes: usize,
    ) -> Result<T, UpstreamError> {
        let (begun, ask) = (Instant::now(), Ask { method: Method::GET, path, model: None, is_probe: false });
        let response = self.send(Method::GET, path, None, None::<&()>).await?;
        self.logged(&ask, begun, self.json(response, limit_bytes).await)
    }

    /// Sends a JSON document, which asks for a model where one is named, and reads one of at most `limit_bytes`.
    ///
    /// # Errors
    ///
    /// Any [`UpstreamError`] but `Config`.
    pub(crate) async fn post_json<B: Serialize + ?Sized + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        model: Option<&str>,
        body: &B,
        limit_bytes: usize,
    ) -> Result<T, UpstreamError> {
        let (begun, ask) = (Instant::now(), Ask { method: Method::POST, path, model, is_probe: false });
        let response = self.send(Method::POST, path, model, Some(body)).await?;
        self.logged(&ask, begun, self.json(response, limit_bytes).await)
    }

    /// Sends a request, with a JSON document where there is one, and returns the answer as soon as its status is there. One that met the end of
    /// a kept connection is sent once more. `model` is what it asks for, for the log.
    /// Dropping the answer, or this future, closes the connection.
    ///
    /// # Errors
    ///
    /// [`UpstreamError::Status`] for every status but 2xx; `Connect`, `Timeout`, `Broken`, `Garbage`.
    pub(crate) async fn send<B: Serialize + ?Sized + Sync>(
        &self,
        method: Method,
        path: &str,
        model: Option<&str>,
        body: Option<&B>,
    ) -> Result<Response, UpstreamError> {
        let body = body.map(serde_json::to_vec).transpose();
        let body = body.map_err(|error| UpstreamError::Config { reason: format!("not to be had as JSON: {error}") })?;
        self.send_anew(&Ask { method, path, model, is_probe: false }, body.map(Bytes::from)).await
    }

    /// Asks for what is at a path, to see that the server answers; what it answers is not read.
    ///
    /// # Errors
    ///
    /// As [`UpstreamClient::send`].
    pub(crate) async fn probe(&self, path: &str) -> Result<(), UpstreamError> {
        self.send_anew(&Ask { method: Method::GET, path, model: None, is_probe: true }, None).await.map(drop)
    }

    /// Sends a request, and once more where it met the end of a kept connection.
    async fn send_anew(&self, ask: &Ask<'_>, body: Option<Bytes>) -> Result<Response, UpstreamError> {
        let send = async || {
            let json = HeaderValue::from_static("application/json");
            self.ask(ask, body.clone().map(|body| (Body::from(body), json))).await
        };
        let begun = Instant::now();
        match send().await {
            // What is asked with these two may be asked twice.
            Err(UpstreamError::Broken { .. })
                if begun.elapsed() < STALE_TIME_MAX && matches!(ask.method, Method::GET | Method::POST) =>
            {
                send().await
            }
            answer => answer,
        }
    }

    /// As [`UpstreamClient::send`], with a body of any kind and its content type.
    ///
    /// # Errors
    ///
    /// As [`UpstreamClient::send`].
    pub(crate) async fn send_bytes(
        &self,
        method: Method,
        path: &str,
        body: Option<(Body, HeaderValue)>,
    ) -> Result<Response, UpstreamError> {
        self.ask(&Ask { method, path, model: None, is_probe: false }, body).await
    }

    async fn ask(&self, ask: &Ask<'_>, body: Option<(Body, HeaderValue)>) -> Result<Response, UpstreamError> {
        let begun = Instant::now();
        let answer = self.try_send(ask.method.clone(), ask.path, body).await;
        let ms = milliseconds_since(begun);
        let Ask { method, path, model, is_probe } = ask;
        let (backend, url) = (self.name.as_str(), self.base.as_str());
        let answered = match &answer {
            Ok(response) => Some(response.status().as_u16()),
            Err(error) => error.status().filter(|_| *is_probe),
        };
        if let Some(status) = answered {
            tracing::debug!(
                backend.name = backend,
                upstream.url = url,
                %method,
                path,
                model.name = model,
                status,
                ms,
                "upstream answered"
            );
        }
        if !matches!(answer, Err(UpstreamError::Connect { .. })) {
            self.away.store(false, Ordering::Relaxed);
        } else if self.away.swap(true, Ordering::Relaxed) {
            tracing::debug!(
                backend.name = backend,
                upstream.url = url,
                %method,
                path,
                model.name = model,
                ms,
                "upstream is still away"
            );
            return answer;
        }
        if answered.is_some() {
            return answer;
        }
        self.logged(ask, begun, answer)
    }

    async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: Option<(Body, HeaderValue)>,
    ) -> Result<Response, UpstreamError> {
        let url = self.base.join(path.trim_start_matches('/')).map_err(|error| {
            let reason = format!("{path:?} is not a path on {}: {error}", self.base);
            UpstreamError::Config { reason }
        })?;
        let mut request = self.client.request(method, url).header(VIA, via::header());
        if let Some((body, content_type)) = body {
            request = request.header(CONTENT_TYPE, content_type).body(body);
        }
        let response = timeout(self.timeout, request.send())
            .await
            .map_err(|_| UpstreamError::Timeout { after: self.timeout })?
            .map_err(|error| self.sending_failed(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (status, headers) = (response.status(), response.headers().clone());
        // What is wrong is known by the status; a refusal whose body breaks off says no less.
        let body = self.read(response, REFUSAL_BYTES_MAX).await.unwrap_or_default();
        Err(self.without_secrets(UpstreamError::of_response(status, &headers, &body)))
    }

    /// Blots out what the words of a server quote of the headers that it got, and cuts them: they go to whoever asked.
    pub(crate) fn without_secrets(&self, error: UpstreamError) -> UpstreamError {
        error.without(&self.secrets)
    }

    fn sending_failed(&self, error: &reqwest::Error) -> UpstreamError {
        let reason = explain(error);
        if error.is_connect() {
            UpstreamError::Connect { reason: format!("no connection to {}: {reason}", self.base) }
        } else if is_parse_error(error) {
            UpstreamError::Garbage { reason: format!("{} does not answer in HTTP: {reason}", self.base) }
        } else {
            UpstreamError::Broken { reason: format!("the connection to {} broke off: {reason}", self.base) }
        }
    }

    async fn json<T: DeserializeOwned>(&self, response: Response, limit_bytes: usize) -> Result<T, UpstreamError> {
        let body = self.read(response, limit_bytes).await?;
        serde_json::from_slice(&body).map_err(|error| UpstreamError::Garbage {
            reason: format!("{} answers something else than the JSON expected: {}", self.base, unreadable(&error)),
        })
    }

    /// Reads a body of at most `limit_bytes`.
    ///
    /// # Errors
    ///
    /// [`UpstreamError::Garbage`] where it is longer; `Timeout` where nothing comes for too long; `Broken`.
    pub(crate) async fn read(&self, mut response: Response, limit_bytes: usize) -> Result<Vec<u8>, UpstreamError> {
        let mut body = Vec::new();
        loop {
            let piece = timeout(self.timeout, response.chunk())
                .await
                .map_err(|_| UpstreamError::Timeout { after: self.timeout })?
                .map_err(|error| UpstreamError::Broken { reason: explain(&error) })?;
            let Some(piece) = piece else { return Ok(body) };
            if body.len() + piece.len() > limit_bytes {
                return Err(UpstreamError::Garbage { reason: format!("it answers more than {limit_bytes} bytes") });
            }
            body.extend_from_slice(&piece);
        }
    }

    /// Reads a body line by line, without the line ends. Ends after the first error: [`UpstreamError::Timeout`] where nothing comes for
    /// `idle`, `Garbage` for a line of more than 8 MiB or one that is not UTF-8, `Broken`. Dropping the stream closes the connection.
    pub(crate) fn lines(
        response: Response,
        idle: Duration,
    ) -> impl Stream<Item = Result<String, UpstreamError>> + Send + 'static {
        let bytes = StreamReader::new(response.bytes_stream().map_err(io::Error::other));
        let mut lines = FramedRead::new(bytes, LinesCodec::new_with_max_length(LINE_BYTES_MAX));
        async_stream::stream! {
            loop {
                match timeout(idle, lines.next()).await {
                    Ok(Some(Ok(line))) => yield Ok(line),
                    Ok(Some(Err(error))) => {
                        yield Err(reading_failed(&error));
                        return;
                    }
                    Ok(None) => return,
                    Err(_) => {
                        yield Err(UpstreamError::Timeout { after: idle });
                        return;
                    }
                }
            }
        }
    }

    /// Logs a failure. Nothing of what was asked or answered stands in the log.
    fn logged<T>(&self, ask: &Ask<'_>, begun: Instant, answer: Result<T, UpstreamError>) -> Result<T, UpstreamError> {
        if let Err(error) = &answer {
            let (backend, url, kind) = (self.name.as_str(), self.base.as_str(), error.kind());
            let (status, ms) = (error.status(), milliseconds_since(begun));
            let Ask { method, path, model, .. } = ask;
            tracing::error!(
                backend.name = backend,
                upstream.url = url,
                %method,
                path,
                model.name = model,
                status,
                ms,
                error.kind = kind,
                "upstream request failed"
            );
        }
        answer
    }
}

fn milliseconds_since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}

/// Finds what in the headers of requests is a secret: keys, without the word before them.
fn secrets_in(headers: &HeaderMap) -> Vec<String> {
    let values = headers.values().filter(|value| value.is_sensitive()).filter_map(|value| value.to_str().ok());
    let secret = |value: &str| value.rsplit(' ').next().unwrap_or(value).to_owned();
    values.map(secret).filter(|secret| secret.len() >= SECRET_BYTES_MIN).collect()
}

/// Says why JSON could not be read, without anything of what stands in it.
pub(crate) fn unreadable(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(", expected ") {
        _ if error.classify() != Category::Data || text.starts_with("missing field") => text,
        Some((_, expected)) => format!("expected {expected}"),
        None => format!("another form at line {} column {}", error.line(), error.column()),
    }
}

fn reading_failed(error: &LinesCodecError) -> UpstreamError {
    match error {
        LinesCodecError::MaxLineLengthExceeded => {
            UpstreamError::Garbage { reason: format!("it sends a line of more than {} MiB", LINE_BYTES_MAX >> 20) }
        }
        LinesCodecError::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<reqwest::Error>()) {
            Some(error) => UpstreamError::Broken { reason: explain(error) },
            None => UpstreamError::Garbage { reason: "it sends text that is not UTF-8".to_owned() },
        },
    }
}

/// Returns whether what came was no HTTP at all, or broke its rules.
fn is_parse_error(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(deeper) = cause {
        if deeper.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            return true;
        }
        cause = deeper.source();
    }
    false
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Says whether a server is beyond this network: at a public address, or under a name that may well be public. Names of one word and those
/// that no public server has are near.
pub(crate) fn is_beyond(url: &Url) -> bool {
    /// Shared by providers and their customers, and by networks over the internet such as Tailscale's: 100.64.0.0/10.
    const SHARED: (u32, u32) = (0x6440_0000, 0xffc0_0000);
    /// Endings of names that are given at home, or by networks over the internet.
    const NEAR: [&str; 8] = ["local", "localhost", "lan", "internal", "intranet", "home", "home.arpa", "ts.net"];
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let is_public_v4 = |address: Ipv4Addr| {
        let is_shared = u32::from(address) & SHARED.1 == SHARED.0;
        let is_near = address.is_private() || address.is_loopback() || address.is_link_local();
        !is_near && !is_shared && !address.is_unspecified()
    };
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => is_public_v4(address),
        Ok(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
            Some(address) => is_public_v4(address),
            None => {
                let is_near = address.is_unique_local() || address.is_unicast_link_local();
                !is_near && !address.is_loopback() && !address.is_unspecified()
            }
        },
        Err(_) => {
            let name = host.trim_end_matches('.').to_ascii_lowercase();
            let ends = |ending: &str| name.strip_suffix(ending).is_some_and(|rest| rest.ends_with('.'));
            name.contains('.') && !NEAR.iter().any(|ending| ends(ending))
        }
    }
}

/// Tells an error by what caused it, without the URL, which may hold a secret.
pub(crate) fn explain(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return if error.is_connect() { "no connection in time" } else { "nothing came for too long" }.to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Reads a request with a JSON object; false where the connection ends.
    async fn reads_request(stream: &mut TcpStream) -> bool {
        let mut read = Vec::new();
        while !read.ends_with(b"}") {
            match stream.read_buf(&mut read).await {
                Ok(0) | Err(_) => return false,
                Ok(_) => {}
            }
        }
        true
    }

    #[tokio::test]
    async fn a_kept_connection_that_the_server_closes_just_then_fails_no_request() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let requests = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&requests);
        let server = async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let counted = Arc::clone(&counted);
                tokio::spawn(async move {
                    // The second one gets no answer.
                    while reads_request(&mut stream).await && counted.fetch_add(1, Ordering::Relaxed) != 1 {
                        let answer =
                            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
                        stream.write_all(answer).await.unwrap();
                    }
                });
            }
        };
        let options =
            UpstreamOptions { name: "b".into(), base, headers: HeaderMap::new(), timeout: Duration::from_secs(10) };
        let client = UpstreamClient::new(options).unwrap();
        let asked = async {
            for _ in 0..2 {
                let told: Value = client.post_json("ask", None, &json!({ "a": 1 }), 1_000).await.unwrap();
                assert_eq!(told, json!({}));
            }
        };
        tokio::select! {
            () = server => {}
            () = asked => {}
        }
        assert_eq!(requests.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn what_is_beyond_this_network_is_told_by_its_address() {
        for (host, beyond) in [
            ("api.openai.com", true),
            ("8.8.8.8", true),
            ("[2606:4700::1111]", true),
            ("127.0.0.1", false),
            ("localhost:8000", false),
            ("192.168.1.7:1234", false),
            ("100.101.102.103", false),
            ("[::1]", false),
            ("[fd7a:115c::1]", false),
            ("tower", false),
            ("tower.local", false),
            ("tower.home.arpa", false),
            ("tower.tail1234.ts.net", false),
            ("notlocal.example.org", true),
        ] {
            let url: Url = format!("http://{host}/v1/").parse().unwrap();
            assert_eq!(is_beyond(&url), beyond, "{host}");
        }
    }
}
