use std::pin::pin;

use bombus_core::model::ModelInfo;
use bombus_core::placement::{Need, Scope};
use bombus_infer::{BackendError, Listed, Route};
use tokio::time::{Instant, sleep_until};

use crate::Metrics;
use crate::app::App;
use crate::error::ApiError;
use crate::metrics::ModelLabels;

/// What a request goes to.
pub(crate) struct Target {
    /// Where it may go, best first.
    pub(crate) route: Route,
    /// The model's name as the client wrote it.
    pub(crate) model: String,
}

impl Target {
    /// Decides where a request for a model may go, or for the default model where none is named.
    ///
    /// # Errors
    ///
    /// No name at all; what [`bombus_infer::Backends::route`] says.
    pub(crate) async fn find(app: &App, model: Option<String>, need: Need) -> Result<Self, ApiError> {
        let model = name(app, model)?;
        let backends = &app.services.backends;
        match backends.route(&model, &need).await {
            Ok(route) => Ok(Self { route, model }),
            Err(error @ BackendError::ModelNotFound { .. }) if need.scope != Scope::Anywhere => {
                let elsewhere = backends.find(&model).await.ok();
                Err(elsewhere.map_or_else(|| error.into(), |listed| out_of_scope(&model, &listed)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes note of how many answers each prompt gets. Of several, one that breaks off ends: nobody could tell which of them a comment
    /// at the seam is about.
    pub(crate) fn for_answers(self, count: u32) -> Self {
        let Self { route, model } = self;
        Self { route: if count > 1 { route.without_continuation() } else { route }, model }
    }

    /// Returns what the backend that is asked first says about the model.
    pub(crate) fn info(&self) -> &ModelInfo {
        self.route.best().1
    }

    /// Waits for what comes of its route all at once, as long as for a first token, and as long again after each sign that a backend is at
    /// work on it.
    ///
    /// # Errors
    ///
    /// What the backends say; a timeout; the end of the node.
    pub(crate) async fn wait<T>(
        &self,
        app: &App,
        work: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, ApiError> {
        let after = app.config.limits.first_token_time();
        let mut work = pin!(work);
        let spent = async {
            let mut since = Instant::now();
            loop {
                sleep_until(since + after).await;
                match self.route.last_sign() {
                    Some(sign) if sign > since => since = sign,
                    _ => return,
                }
            }
        };
        tokio::select! {
            biased;
            () = app.cut.cancelled() => Err(ApiError::shutting_down()),
            done = &mut work => Ok(done?),
            () = spent => Err(self.route.give_up(after).into()),
        }
    }

    /// Names model and backend as metrics do, as long as nothing has answered yet.
    pub(crate) fn labels(&self, metrics: &Metrics) -> ModelLabels {
        let (named, info) = self.route.best();
        metrics.labels(&info.name, named.peer.as_ref().map(|peer| peer.node()), &named.name)
    }
}

/// Says where a model is that the scope of a request leaves out.
fn out_of_scope(model: &str, listed: &Listed) -> ApiError {
    let place = match &listed.node_name {
        Some(name) => format!("node '{name}'"),
        None => "this node".to_owned(),
    };
    let message = format!("model '{model}' not found within the scope of the request; it is on {place}");
    ApiError { message, ..ApiError::model_not_found(model) }
}

/// Returns the model that is named, or the default one.
///
/// # Errors
///
/// There is neither.
pub(crate) fn name(app: &App, model: Option<String>) -> Result<String, ApiError> {
    let named = model.filter(|name| !name.is_empty()).or_else(|| app.services.default_model.clone());
    named.ok_or_else(|| ApiError::missing("model", "'model' is missing; GET /v1/models lists the models there are"))
}
