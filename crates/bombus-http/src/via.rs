//! The defence against requests that go round: a backend may be a node, and lead back to this one. Each node adds itself to the header `Via`
//! of what it asks, and refuses what it finds itself in.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bombus_infer::Via;
use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::error::ApiError;

pub(crate) async fn follow(request: Request, next: Next) -> Response {
    let told = request.headers().get_all(header::VIA).iter().filter_map(|value| value.to_str().ok());
    match Via::read(told) {
        Ok(None) => next.run(request).await,
        Ok(Some(via)) => {
            let response = via.clone().scope(next.run(request)).await;
            response.map(|body| Body::new(FollowedBody { via, body }))
        }
        Err(error) => ApiError::loop_detected(error.to_string()).into_response(),
    }
}

/// A response body during whose polls it is known how the request came: an answer that breaks off goes on elsewhere.
struct FollowedBody {
    via: Via,
    body: Body,
}

impl http_body::Body for FollowedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { via, body } = self.get_mut();
        via.sync_scope(|| Pin::new(body).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::Request;
    use axum::middleware::from_fn;
    use axum::routing::get;
    use bombus_infer::OllamaClient;
    use bombus_infer::fake::FakeConfig;
    use bombus_testkit::upstream::{Script, Upstream};
    use futures::stream;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{fake, loopback, send};

    /// A server, and a route that asks it before an answer begins and again while it is handed on.
    async fn asking() -> (Upstream, Router) {
        let upstream = Upstream::start().await.unwrap();
        upstream.on("GET /api/version", Script::json(200, &json!({"version": "0.24.0"})));
        let client = OllamaClient::builder().url(upstream.url()).build().unwrap();
        let answer = move || {
            let client = client.clone();
            async move {
                client.version().await.unwrap();
                Body::from_stream(stream::once(async move { client.version().await }))
            }
        };
        (upstream, Router::new().route("/", get(answer)).layer(from_fn(follow)))
    }

    fn request(path: &str, via: &str) -> Request<Body> {
        Request::get(path).header("via", via).body(Body::empty()).unwrap()
    }

    /// What servers were told so far.
    fn told(upstream: &Upstream) -> Vec<String> {
        upstream.requests().iter().map(|request| request.header("via").unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn servers_that_are_asked_for_a_request_are_told_how_it_came() {
        let (upstream, router) = asking().await;
        for via in ["1.1 proxy.example", "1.1 bombus-a, 1.1 proxy.example, 1.1 bombus-b"] {
            let answer = send(&router, request("/", via)).await;
            assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "0.24.0"), "{via}");
        }
        let told = told(&upstream);
        let [own, own_again, before, meanwhile] = told.as_slice() else { panic!("{told:?}") };
        assert!(own.starts_with("1.1 bombus-") && !own.contains(',') && own == own_again, "{told:?}");
        let came = format!("1.1 bombus-a, 1.1 bombus-b, {own}");
        assert_eq!((before, meanwhile), (&came, &came));
    }

    #[tokio::test]
    async fn a_request_that_comes_back_is_refused_in_the_dialect_of_its_route() {
        let (upstream, asking) = asking().await;
        send(&asking, request("/", "")).await;
        let own = told(&upstream).remove(0);
        let router = loopback(fake(FakeConfig::default()));
        for (path, place) in [("/v1/models", "/error/message"), ("/api/tags", "/error"), ("/status", "/detail")] {
            let answer = send(&router, request(path, &format!("1.1 bombus-a, {own}"))).await;
            let body = answer.json();
            let message = body.pointer(place).and_then(Value::as_str).unwrap_or_default();
            assert!(answer.status == 508 && message.contains("has come back to this node"), "{path}: {body}");
            assert_eq!(send(&router, request(path, "1.1 bombus-a")).await.status, 200, "{path}");
        }
        let answer = send(&router, request("/v1/models", &own)).await;
        assert_eq!(answer.json()["error"]["code"], "loop_detected");
    }
}
