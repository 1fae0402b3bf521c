use bombus_core::chat::{EmbedRequest, EmbedResponse};
use bombus_infer::Routed;

use super::Target;
use crate::app::App;
use crate::error::ApiError;

/// Makes vectors where the target leads, and counts what they cost.
///
/// # Errors
///
/// What the backends say; a timeout; the end of the node.
pub(crate) async fn embed(app: &App, target: &Target, wanted: EmbedRequest) -> Result<Routed<EmbedResponse>, ApiError> {
    let routed = target.wait(app, target.route.embed(wanted)).await?;
    let labels = app.services.metrics.labels(&target.info().name, routed.node.as_ref(), &routed.backend);
    app.services.metrics.routed(routed.node.is_some());
    app.services.metrics.tokens_read(&labels, routed.value.prompt_tokens, 0);
    Ok(routed)
}
