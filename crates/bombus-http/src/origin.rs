//! The defence of loopback listeners against web pages: a page may make a browser send requests to this machine, by a foreign origin or
//! by a name of its own that resolves to 127.0.0.1 (DNS rebinding).

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::app::SharedApp;
use crate::error::ApiError;
use crate::{HttpConfig, HttpError};

pub(crate) async fn check(State(app): State<SharedApp>, request: Request, next: Next) -> Response {
    match allowed(request.headers(), &app.config) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn allowed(headers: &HeaderMap, config: &HttpConfig) -> Result<(), ApiError> {
    // Browsers always name a host, so a request without one (HTTP/1.0) comes from no web page.
    if let Some(host) = headers.get(header::HOST)
        && !host.to_str().map(host_of).is_ok_and(|host| is_local(host, config) || is_unownable(host))
    {
        let message = "this listener is for the machine itself; a host name it may be reached by has to be named in allowed_hosts";
        return Err(ApiError::forbidden("host_not_allowed", message));
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let listed = config.cors_origins.iter().any(|known| known == "*" || known == origin);
    let local = origin.split_once("://").is_some_and(|(_, authority)| is_local(host_of(authority), config));
    if listed || local {
        return Ok(());
    }
    let message = "requests from this web page are not accepted; its origin has to be named in cors_origins";
    Err(ApiError::forbidden("origin_not_allowed", message))
}

/// Returns the host of an authority, without its port.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => authority,
    }
}

/// Returns whether a host is this machine, so that pages of it come from here.
fn is_local(host: &str, config: &HttpConfig) -> bool {
    // A name that resolves to loopback is not enough, an address of it is: no web page can have it for a name of its own.
    address(host).is_some_and(|address| address.is_loopback())
        || ["localhost", "localhost."].iter().any(|name| host.eq_ignore_ascii_case(name))
        || is_under(host, ".localhost")
        || config.allowed_hosts.iter().any(|name| host.eq_ignore_ascii_case(name))
}

/// Returns whether nobody on the internet can own a host and have it lead here: it is an address, of whatever machine, or a name that only private
/// networks give, as Docker does with `host.docker.internal`. Pages that come from there may be anybody's.
fn is_unownable(host: &str) -> bool {
    address(host).is_some() || is_under(host, ".internal")
}

fn address(host: &str) -> Option<IpAddr> {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host).parse().ok()
}

/// Returns whether a host is a name with this ending.
fn is_under(host: &str, ending: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let name = host.strip_suffix('.').unwrap_or(&host).strip_suffix(ending);
    name.is_some_and(|name| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    })
}

/// Checks that listed origins have the form in which browsers write them: `scheme://host[:port]` in lower case (RFC 6454, 6.2).
pub(crate) fn check_configured(origins: &[String]) -> Result<(), HttpError> {
    let sane = |origin: &str| {
        let Some((scheme, authority)) = origin.split_once("://") else { return false };
        let uri = origin.parse::<Uri>().ok();
        let plain = |byte: u8| !byte.is_ascii_uppercase() && !b"/?#@".contains(&byte);
        !scheme.is_empty()
            && scheme.bytes().all(plain)
            && authority.bytes().all(plain)
            && uri.and_then(|uri| Some(uri.host()?.len())).is_some_and(|length| length > 0)
    };
    match origins.iter().find(|origin| *origin != "*" && !sane(origin)) {
        Some(origin) => Err(HttpError::BadOrigin { origin: origin.clone() }),
        None => Ok(()),
    }
}

/// Builds the CORS answers for the listed origins; `None` where none is listed.
pub(crate) fn cors(config: &HttpConfig) -> Option<CorsLayer> {
    if config.cors_origins.is_empty() {
        return None;
    }
    let origins = if config.cors_origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(config.cors_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let request_id = HeaderName::from_static("x-request-id");
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
        // Clients send headers of their own (those of OpenAI's library begin with `x-stainless-`), and none of them does harm here.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([
            request_id,
            HeaderName::from_static("x-bombus-route"),
            HeaderName::from_static("x-bombus-truncated"),
        ]);
    Some(layer)
}
