//! Has other nodes fetch and remove models.

use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_infer::{BackendError, Progress, ProgressStream};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::timeout;

use super::manage::{self, NAME_BYTES_MAX};
use super::wire::{self, ANSWER_MAX, FailureKind, ManageAnswer, ManageRequest};
use super::{MANAGE_PROTOCOL, WeightsHandle};

/// After how many missed signs of life a node that works on its models is given up.
const MISSED_MAX: u32 = 6;

/// How a work on models goes on at another node. It is done when the stream ends without an error; dropping it ends the work.
pub type RemoteSteps = BoxStream<'static, Result<Progress, ManageError>>;

/// Says why another node did not fetch or remove a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManageError {
    /// Its owner does not let this node change its models.
    #[error("it does not let this node change its models: {0}")]
    Refused(String),
    /// There is no such model.
    #[error("{0}")]
    NotFound(String),
    /// Too much is being done there.
    #[error("{0}")]
    Busy(String),
    /// It cannot be reached, or fell silent.
    #[error("{0}")]
    Unreachable(String),
    /// It went wrong there.
    #[error("{0}")]
    Failed(String),
}

impl WeightsHandle {
    /// Has a node fetch a model: another one, which needs its owner's leave, or this one.
    #[must_use]
    pub fn pull_at(&self, node: &NodeId, name: &str) -> RemoteSteps {
        let name = name.to_owned();
        if node == self.shared.net.node_id() {
            return own(manage::pull(self.shared.backends.clone(), name));
        }
        self.ask(node.clone(), ManageRequest::Pull { name })
    }

    /// Has a node remove a model: another one, which needs its owner's leave, or this one.
    #[must_use]
    pub fn remove_at(&self, node: &NodeId, name: &str) -> RemoteSteps {
        let name = name.to_owned();
        if node == self.shared.net.node_id() {
            return own(manage::remove(self.shared.backends.clone(), name));
        }
        self.ask(node.clone(), ManageRequest::Remove { name })
    }

    fn ask(&self, node: NodeId, request: ManageRequest) -> RemoteSteps {
        let shared = self.shared.clone();
        let silence_max = shared.config.alive_every.max(Duration::from_millis(1)) * MISSED_MAX;
        let limit = shared.config.answer_limit;
        Box::pin(async_stream::try_stream! {
            let (ManageRequest::Pull { name } | ManageRequest::Remove { name }) = &request;
            if name.len() > NAME_BYTES_MAX {
                Err(ManageError::Failed(format!("a name has at most {NAME_BYTES_MAX} bytes")))?;
            }
            let broke = |error: std::io::Error| ManageError::Unreachable(format!("the connection to it broke: {error}"));
            let opened = shared.net.open_stream(&node, MANAGE_PROTOCOL).await;
            let mut stream = opened.map_err(|error| ManageError::Unreachable(error.to_string()))?;
            let silent = |limit: Duration| ManageError::Unreachable(format!("it said nothing for {} s", limit.as_secs()));
            timeout(limit, wire::write(&mut stream, &request)).await.map_err(|_| silent(limit))?.map_err(broke)?;
            loop {
                let answer = timeout(silence_max, wire::read(&mut stream, ANSWER_MAX)).await;
                match answer.map_err(|_| silent(silence_max))?.map_err(broke)? {
                    ManageAnswer::Step { status, sha256, total_bytes, completed_bytes } => {
                        yield Progress { status, sha256, total_bytes, completed_bytes };
                    }
                    ManageAnswer::Alive {} => {}
                    ManageAnswer::Done {} => break,
                    ManageAnswer::Failed { kind, message } => Err(match kind {
                        FailureKind::Refused => ManageError::Refused(message),
                        FailureKind::NotFound => ManageError::NotFound(message),
                        FailureKind::Busy => ManageError::Busy(message),
                        FailureKind::Failed => ManageError::Failed(message),
                    })?,
                }
            }
        })
    }
}

/// Tells the steps of a work at this node like those of others.
fn own(steps: ProgressStream) -> RemoteSteps {
    let translated = steps.map(|step| {
        step.map_err(|error| match error {
            BackendError::ModelNotFound { .. } => ManageError::NotFound(error.to_string()),
            other => ManageError::Failed(other.to_string()),
        })
    });
    translated.boxed()
}
