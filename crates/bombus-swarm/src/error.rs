//! Why something was not told to the swarm.

use bombus_core::topics::BoundsError;
use bombus_net::PublishError;

/// Why a message was not published.
#[derive(Debug, thiserror::Error)]
pub enum TellError {
    /// A field is larger than messages may have it; every peer would reject it.
    #[error(transparent)]
    TooLarge(#[from] BoundsError),
    /// The message names another node as its sender; every peer would reject it.
    #[error("the message names {0:?} as its sender, and this node may speak for itself only")]
    NotOwn(String),
    /// The mesh did not take it.
    #[error(transparent)]
    Mesh(#[from] PublishError),
}
