//! Models that come into memory and leave it, and what a request for one of them goes to.

use axum::http::HeaderValue;
use bombus_core::chat::{ChatRequest, KeepAlive, Think};
use bombus_core::model::ModelCapability;
use bombus_core::placement::{Need, Scope};
use bombus_infer::{Listed, LoadRequest, Routed};
use futures::future::join_all;

use super::answer::{Form, Head};
use super::places;
use crate::app::App;
use crate::error::ApiError;
use crate::inference::{Target, route_header};

/// Returns whether a model is to leave memory at once.
pub(super) fn ends_at_once(keep_alive: Option<KeepAlive>) -> bool {
    keep_alive == Some(KeepAlive::Seconds(0))
}

/// Finds what a request goes to. A model that can think does so unless it is told not to.
pub(super) async fn target(
    app: &App,
    head: &Head,
    request: &mut ChatRequest,
    mut capabilities: Vec<ModelCapability>,
    scope: &Scope,
) -> Result<Target, ApiError> {
    if matches!(request.think, Some(Think::On | Think::Level(_))) {
        capabilities.push(ModelCapability::Thinking);
    }
    let need = Need { context_tokens: request.context_tokens, ..Need::of(capabilities).within(scope.clone()) };
    let target = Target::find(app, Some(head.model.clone()), need).await.map_err(|error| unable(error, head))?;
    if request.think.is_none() && target.info().capabilities.contains(&ModelCapability::Thinking) {
        request.think = Some(Think::On);
    }
    Ok(target)
}

/// Tells of a model that does not generate text in the words that clients know.
fn unable(error: ApiError, head: &Head) -> ApiError {
    if error.code != Some("unsupported_parameter") || error.param.as_deref() != Some("model") {
        return error;
    }
    let what = match head.form {
        Form::Generate => "generate",
        Form::Chat => "chat",
    };
    ApiError { message: format!("{:?} does not support {what}", head.model), ..error }
}

/// Brings a model into memory where its requests go, and returns what names that backend in the answer.
pub(super) async fn load(app: &App, target: &Target, request: LoadRequest) -> Result<HeaderValue, ApiError> {
    let routed = target.wait(app, target.route.load(request)).await?;
    Ok(route_header(app, &routed))
}

/// Takes a model out of the memory of every backend here that has it, and returns what names the most preferred of them in the answer.
/// What other nodes have in memory is theirs to decide.
pub(super) async fn unload(app: &App, model: &str, scope: &Scope) -> Result<HeaderValue, ApiError> {
    let mut places = places::within(app, model, scope).await?;
    if places.iter().all(|place| place.node.is_some()) {
        let message = format!(
            "model '{model}' is on {}, which decides itself what it keeps in memory",
            places::node_names(&places)
        );
        return Err(ApiError::unsupported("keep_alive", message));
    }
    places.retain(|place| place.node.is_none());
    let unloads = places.iter().map(async |place| {
        let name = place.name_there();
        places::wait(app, places::ASK_TIME_MAX, place.backend.backend.unload(name.as_str())).await
    });
    // Of several troubles, that of the most preferred backend is told.
    join_all(unloads).await.into_iter().collect::<Result<(), _>>()?;
    let Listed { node, backend, .. } = &places[0];
    let (node, backend, model) = (node.clone(), backend.name.clone(), places[0].name_there());
    Ok(route_header(app, &Routed { value: (), node, backend, model, reason: "unload".to_owned() }))
}
