//! What this node has, and how busy it is.

use std::sync::Arc;

use bombus_core::chat::{ChatRequest, Prompt, ResponseFormat};
use bombus_core::identity::NodeId;
use bombus_core::model::{ModelInfo, ModelName};
use bombus_infer::Listed;

use super::wire::{Load, MODELS_MAX, NAME_BYTES_MAX, cut};
use super::{Shared, share};

/// What there is to tell now, whoever is told.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Own {
    /// What may be shared with those that get anything.
    pub(super) models: Arc<Vec<ModelInfo>>,
    /// Those of them that go on with answers of others by the text alone.
    pub(super) by_text: Arc<Vec<ModelName>>,
    load: Load,
}

impl Own {
    /// Looks what there is.
    pub(super) fn look(shared: &Shared) -> Self {
        let config = &shared.config;
        let known = shared.backends.known();
        let models = known.into_iter().filter(|listed| listed.first && share::shares(&config.share, listed));
        let models: Vec<Listed> = models.take(MODELS_MAX).collect();
        let by_text = models.iter().filter(|listed| goes_on_by_text_alone(listed));
        let by_text: Vec<ModelName> = by_text.map(|listed| listed.info.name.clone()).collect();
        let models: Vec<ModelInfo> = models.into_iter().map(|listed| bounded(listed.info)).collect();
        let (mut running, mut waiting) = (0_u32, 0_u32);
        for state in shared.backends.states().iter().filter(|state| state.node.is_none()) {
            running = running.saturating_add(state.running);
            waiting = waiting.saturating_add(state.waiting);
        }
        let state = shared.standing.now();
        // What others ask for counts from its acceptance on, which is a little earlier than in the registry.
        let running = running.max(state.running);
        // Own clients take slots of the backends, but none of those that are kept for others.
        let own_clients = running - state.running;
        let slots = config.slots().saturating_add(own_clients);
        let slots = if config.backend_slots > 0 { slots.min(config.backend_slots.max(config.slots())) } else { slots };
        let load = Load {
            running,
            waiting: waiting.saturating_add(state.waiting),
            ours: 0,
            slots: Some(slots),
            draining: state.draining,
            paused: state.paused,
        };
        Self { models: Arc::new(models), by_text: Arc::new(by_text), load }
    }

    /// Returns how busy this node is, as one peer is told.
    pub(super) fn load_for(&self, shared: &Shared, peer: &NodeId) -> Load {
        Load { ours: shared.slots.of(peer), ..self.load }
    }
}

/// Says whether a model goes on with some answers, and not with one that has to have a form, as all do that read tokens.
fn goes_on_by_text_alone(listed: &Listed) -> bool {
    let prompt = Prompt::Raw(String::new());
    let of_a_form = ChatRequest {
        response_format: ResponseFormat::JsonObject,
        ..ChatRequest::new(listed.name_there().as_str(), prompt)
    };
    listed.info.continues && !listed.backend.backend.can_resume(&of_a_form)
}

/// Cuts what comes from the files of models, so that all of it fits into a message.
fn bounded(info: ModelInfo) -> ModelInfo {
    let short = |text: String| cut(text, NAME_BYTES_MAX);
    ModelInfo { family: info.family.map(short), quantization: info.quantization.map(short), ..info }
}
