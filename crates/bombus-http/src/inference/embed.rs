use std::pin::pin;

use bombus_core::chat::{EmbedRequest, EmbedResponse};
use bombus_infer::{BackendError, Routed};
use tokio::time::sleep;

use super::Target;
use crate::app::App;
use crate::error::ApiError;

/// Makes vectors where the target leads, and counts what they cost.
///
/// # Errors
///
/// What the backends say; a timeout; the end of the node.
pub(crate) async fn embed(app: &App, target: &Target, wanted: EmbedRequest) -> Result<Routed<EmbedResponse>, ApiError> {
    let after = app.config.limits.first_token_time();
    let mut work = pin!(target.route.embed(wanted));
    let routed = tokio::select! {
        biased;
        () = app.cut.cancelled() => return Err(ApiError::shutting_down()),
        answer = &mut work => answer?,
        () = sleep(after) => {
            target.route.give_up();
            return Err(BackendError::TimedOut { after }.into());
        }
    };
    let labels = app.services.metrics.labels(&target.info().name, routed.node.as_ref(), &routed.backend);
    app.services.metrics.routed(routed.node.is_some());
    app.services.metrics.tokens_read(&labels, routed.value.prompt_tokens, 0);
    Ok(routed)
}
