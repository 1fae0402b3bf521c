#[cfg(test)]
mod tests;

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::Response;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::get;
use bytes::Bytes;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::{App, SharedApp};
use crate::error::ApiError;
use crate::{HttpConfig, Services, auth, native, observe, ollama, openai, openapi, origin, via};

/// The route of a model's description, for ids that clients send with their slashes as they are. The API document cannot describe
/// it: a path parameter there has no slashes.
const MODEL_WITH_SLASHES: &str = "/v1/models/{id}/{*rest}";
const MODEL: &str = "/v1/models/{id}";

/// Lists every route with its description.
fn routes() -> OpenApiRouter<SharedApp> {
    OpenApiRouter::with_openapi(openapi::frame())
        .routes(routes!(native::health))
        .routes(routes!(native::status))
        .routes(routes!(native::identity))
        .routes(routes!(native::metrics))
        .routes(routes!(native::backends::list))
        .routes(routes!(native::backends::route))
        .routes(routes!(native::models::list))
        .routes(routes!(native::sharing::state))
        .routes(routes!(native::sharing::pause))
        .routes(routes!(native::sharing::resume))
        .routes(routes!(native::sharing::drain))
        .routes(routes!(native::sharing::undrain))
        .routes(routes!(native::remote_models::pull))
        .routes(routes!(native::remote_models::remove))
        .routes(routes!(native::peers::list))
        .routes(routes!(native::peers::swarm))
        .routes(routes!(native::events::stream))
        .routes(routes!(native::mesh::invite))
        .routes(routes!(native::mesh::join))
        .routes(routes!(native::mesh::leave))
        .routes(routes!(native::mesh::kick))
        .routes(routes!(native::mesh::rekey))
        .routes(routes!(native::mesh::owner))
        .routes(routes!(native::mesh::ping))
        .routes(routes!(native::mesh::report))
        .routes(routes!(native::tasks::submit))
        .routes(routes!(native::tasks::info, native::tasks::cancel))
        .routes(routes!(native::tasks::stream::stream))
        .routes(routes!(native::tasks::list))
        .routes(routes!(native::tasks::prune::prune))
        .routes(routes!(native::databases::list, native::databases::open))
        .routes(routes!(native::databases::info, native::databases::drop))
        .routes(routes!(native::databases::close))
        .routes(routes!(native::databases::grant))
        .routes(routes!(native::databases::revoke))
        .routes(routes!(native::databases::rows::put))
        .routes(routes!(native::databases::rows::del))
        .routes(routes!(native::databases::rows::add))
        .routes(routes!(native::databases::rows::get))
        .routes(routes!(native::databases::rows::all))
        .routes(routes!(native::databases::rows::query))
        .routes(routes!(native::databases::watch::watch))
        .routes(routes!(native::databases::transfer::export))
        .routes(routes!(native::databases::transfer::import))
        .routes(routes!(openapi::document))
        .routes(routes!(openai::models::list))
        .routes(routes!(openai::models::describe))
        .routes(routes!(openai::chat::create))
        .routes(routes!(openai::completions::create))
        .routes(routes!(openai::embeddings::create))
        .routes(routes!(openai::files::list, openai::files::create))
        .routes(routes!(openai::files::describe, openai::files::delete))
        .routes(routes!(openai::files::content))
        .routes(routes!(openai::batches::list, openai::batches::create))
        .routes(routes!(openai::batches::describe))
        .routes(routes!(openai::batches::cancel))
        .routes(routes!(ollama::node::root))
        .routes(routes!(ollama::node::version))
        .routes(routes!(ollama::node::status))
        .routes(routes!(ollama::models::list))
        .routes(routes!(ollama::models::running))
        .routes(routes!(ollama::models::show))
        .routes(routes!(ollama::generate::create))
        .routes(routes!(ollama::chat::create))
        .routes(routes!(ollama::embed::create))
        .routes(routes!(ollama::embed::create_one))
        .routes(routes!(ollama::manage::create))
        .routes(routes!(ollama::manage::copy))
        .routes(routes!(ollama::manage::delete))
        .routes(routes!(ollama::manage::pull))
        .routes(routes!(ollama::manage::push))
        .routes(routes!(ollama::blobs::find, ollama::blobs::create))
        .route(MODEL_WITH_SLASHES, get(openai::models::describe_with_slashes))
}

/// Builds the router and what its handlers share.
pub(crate) fn build(config: HttpConfig, services: Services, bound: SocketAddr) -> (Router, SharedApp) {
    let (mut router, mut document) = routes().split_for_parts();
    openapi::complete(&mut document);
    let document = document.to_json().expect("an API document has a JSON form");
    if let Some(mesh) = &services.mesh {
        native::sharing::report(mesh, &services.metrics);
    }
    if let Some(tasks) = &services.tasks {
        native::tasks::report(tasks, &services.metrics);
    }
    let app = Arc::new(App::new(config, services, bound, Bytes::from(document)));

    router = router.fallback(unknown_route).method_not_allowed_fallback(method_not_allowed).layer(from_fn(via::follow));
    if app.config.needs_key(bound) {
        router = router.layer(from_fn_with_state(app.clone(), auth::require_key));
    }
    if let Some(cors) = origin::cors(&app.config) {
        router = router.layer(cors);
    }
    if bound.ip().is_loopback() {
        router = router.layer(from_fn_with_state(app.clone(), origin::check));
    }
    let router = router
        .layer(CatchPanicLayer::custom(answer_panic))
        .layer(from_fn_with_state(app.clone(), observe::observe))
        .with_state(app.clone());
    (router, app)
}

/// Names a route as logs and metrics do.
pub(crate) fn route_template(matched: &str) -> &str {
    if matched == MODEL_WITH_SLASHES { MODEL } else { matched }
}

async fn unknown_route(request: Request) -> ApiError {
    ApiError::unknown_route(request.method().as_str(), request.uri().path())
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::method_not_allowed(request.method().as_str(), request.uri().path())
}

#[expect(clippy::needless_pass_by_value, reason = "the layer hands the panic over by value")]
fn answer_panic(panic: Box<dyn Any + Send + 'static>) -> Response<axum::body::Body> {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic.message = text.unwrap_or("not a text"), "a handler panicked");
    ApiError::internal().into_response()
}
