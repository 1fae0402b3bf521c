use bombus_core::identity::NodeId;
use bombus_http::mesh::{ModelSteps, ModelsError, RemoteModels};
use bombus_swarm::weights::{ManageError, RemoteSteps, WeightsHandle};
use futures::{StreamExt, stream};

/// The models of all nodes, as far as their owners let this one change them.
pub(super) struct SwarmModels(WeightsHandle);

impl SwarmModels {
    pub(super) fn new(weights: WeightsHandle) -> Self {
        Self(weights)
    }

    fn at(&self, node_id: &str, work: impl FnOnce(&WeightsHandle, &NodeId) -> RemoteSteps) -> ModelSteps {
        match NodeId::parse(node_id) {
            Ok(node) => work(&self.0, &node).map(|step| step.map_err(of_manage)).boxed(),
            Err(error) => {
                let error = ModelsError { code: "not_found", message: error.to_string() };
                stream::iter([Err(error)]).boxed()
            }
        }
    }
}

impl RemoteModels for SwarmModels {
    fn pull(&self, node_id: &str, model: &str) -> ModelSteps {
        self.at(node_id, |weights, node| weights.pull_at(node, model))
    }

    fn remove(&self, node_id: &str, model: &str) -> ModelSteps {
        self.at(node_id, |weights, node| weights.remove_at(node, model))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is handed to map_err")]
fn of_manage(error: ManageError) -> ModelsError {
    let code = match &error {
        ManageError::Refused(_) => "refused",
        ManageError::NotFound(_) => "not_found",
        ManageError::Busy(_) => "busy",
        ManageError::Unreachable(_) => "unreachable",
        ManageError::Failed(_) => "failed",
    };
    ModelsError { code, message: error.to_string() }
}
