use bombus_core::identity::NodeId;
use bombus_core::model::ModelName;

/// Who may have what of this node's models: the owner of the machine decides.
pub trait Access: Send + Sync + 'static {
    /// Says whether a peer may have the weights of a model.
    ///
    /// # Errors
    ///
    /// Why not, for the person at the other end.
    fn may_fetch(&self, peer: &NodeId, model: &ModelName) -> Result<(), String>;

    /// Says whether a peer may have this node fetch and remove models.
    ///
    /// # Errors
    ///
    /// Why not, for the person at the other end.
    fn may_manage(&self, peer: &NodeId) -> Result<(), String>;
}
