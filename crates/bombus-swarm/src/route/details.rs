//! What peers are told of models beside the lists: everything about one, and which are in memory.

use bombus_core::model::{ModelDetails, ModelName};
use bombus_infer::BackendError;
use futures::future::join_all;
use serde_json::Value;

use super::wire::{MODELS_MAX, Reply};
use super::{Shared, share};

/// Longest list of a model's file that travels: its vocabulary has some hundred thousand entries.
const LIST_LENGTH_MAX: usize = 16;
/// Most bytes of all texts about a model, counted as JSON.
const DETAILS_BYTES_MAX: usize = 512 * 1024;

/// Tells everything about a model that peers may use, without long lists.
pub(super) async fn of(shared: &Shared, model: &ModelName) -> Result<Reply, BackendError> {
    let known = shared.backends.known();
    let shares = |listed: &bombus_infer::Listed| share::shares(&shared.config.share, listed);
    let not_found = || BackendError::model_not_found(model);
    let listed = known.into_iter().find(|listed| listed.info.name == *model && shares(listed)).ok_or_else(not_found)?;
    let details = listed.backend.backend.details(&listed.name_there()).await?.ok_or_else(not_found)?;
    Ok(Reply::Details(Box::new(bounded(details))))
}

/// Tells which models are in memory, of those that peers may use.
pub(super) async fn loaded(shared: &Shared) -> Result<Reply, BackendError> {
    let own = shared.backends.own();
    let lists = join_all(own.iter().map(|named| named.backend.running())).await;
    let known = shared.backends.known();
    // One that cannot tell is left out, as it is at this node itself.
    let loaded = lists.into_iter().filter_map(Result::ok).flatten();
    let may = loaded.filter(|model| share::shares_name(&shared.config.share, &model.info.name, &known));
    Ok(Reply::Loaded(may.take(MODELS_MAX).collect()))
}

fn bounded(mut details: ModelDetails) -> ModelDetails {
    let keys = details.metadata.values_mut().chain(details.projector.values_mut());
    for list in keys.filter_map(Value::as_array_mut) {
        if list.len() > LIST_LENGTH_MAX {
            list.clear();
        }
    }
    let bytes = |details: &ModelDetails| serde_json::to_vec(details).map_or(usize::MAX, |text| text.len());
    if bytes(&details) > DETAILS_BYTES_MAX {
        details.licenses.clear();
        details.projector.clear();
        details.metadata.retain(|_, value| value.is_number() || value.is_boolean());
    }
    if bytes(&details) > DETAILS_BYTES_MAX { ModelDetails::default() } else { details }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_model_fits_into_a_message() {
        let mut details = ModelDetails { template: "{{ .Prompt }}".into(), ..ModelDetails::default() };
        details.metadata.insert("llama.embedding_length".into(), 576.into());
        details.metadata.insert("tokenizer.ggml.tokens".into(), vec!["token"; 200_000].into());
        details.metadata.insert("general.languages".into(), vec!["en", "de"].into());
        details.projector.insert("clip.vision.image_mean".into(), vec![0.5_f64; 200_000].into());
        let told = bounded(details.clone());
        assert_eq!(told.projector["clip.vision.image_mean"], serde_json::json!([]));
        assert_eq!(told.metadata["llama.embedding_length"], 576);
        assert_eq!(told.metadata["tokenizer.ggml.tokens"], serde_json::json!([]));
        assert_eq!(told.metadata["general.languages"], serde_json::json!(["en", "de"]));
        details.licenses = vec!["l".repeat(DETAILS_BYTES_MAX)];
        let told = bounded(details.clone());
        assert_eq!((told.licenses.len(), told.template.as_str()), (0, "{{ .Prompt }}"));
        assert!(told.projector.is_empty());
        assert_eq!(told.metadata["llama.embedding_length"], 576);
        details.system = "s".repeat(DETAILS_BYTES_MAX);
        assert_eq!(bounded(details), ModelDetails::default());
    }
}
