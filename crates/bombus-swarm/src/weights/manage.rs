//! Does what other nodes ask with this node's models, where its owner allows that.

use std::io;
use std::sync::Arc;

use bombus_core::identity::NodeId;
use bombus_core::model::ModelName;
use bombus_infer::{BackendError, Backends, Listed, NamedBackend, Progress, ProgressStream, PullRequest};
use bombus_net::NetStream;
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::wire::{self, FailureKind, ManageAnswer, ManageRequest, REQUEST_MAX};
use super::{MANAGE_PROTOCOL, Shared};
use crate::places::Places;
use crate::streams::answer_each;
use crate::supervised::PartEnded;

/// Longest name of a model to fetch, in bytes: one may be an address.
pub(super) const NAME_BYTES_MAX: usize = 512;
/// Most streams at a time, those that are told to come back included.
const STREAMS_MAX: usize = 16;
/// How many of them may be one peer's.
const STREAMS_PER_PEER_MAX: usize = 4;
/// How many works a peer may have going on.
const WORKS_PER_PEER_MAX: usize = 1;

/// Answers requests until `stop`.
pub(super) async fn serve_all(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), PartEnded> {
    let incoming = shared.net.accept(MANAGE_PROTOCOL)?;
    let places = Places::new(STREAMS_MAX, STREAMS_PER_PEER_MAX);
    let works = Places::new(shared.config.works_max, WORKS_PER_PEER_MAX);
    answer_each(incoming, &places, stop, MANAGE_PROTOCOL, |peer, stream| {
        let (shared, works) = (Arc::clone(shared), Arc::clone(&works));
        async move { answer(&shared, &works, &peer, stream).await }
    })
    .await
}

async fn answer(shared: &Shared, works: &Arc<Places>, peer: &NodeId, mut stream: NetStream) -> io::Result<()> {
    let limit = shared.config.answer_limit;
    let read = timeout(limit, wire::read(&mut stream, REQUEST_MAX)).await.map_err(io::Error::other)?;
    let last = match read {
        Ok(request) => match work(shared, works, peer, request, &mut stream).await? {
            Ok(()) => ManageAnswer::Done {},
            Err(failure) => failure,
        },
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            failed(FailureKind::Refused, format!("this version does not understand the request: {error}"))
        }
        Err(error) => return Err(error),
    };
    let told = async {
        wire::write(&mut stream, &last).await?;
        stream.shutdown().await
    };
    timeout(limit, told).await.map_err(io::Error::other)?
}

fn failed(kind: FailureKind, message: String) -> ManageAnswer {
    ManageAnswer::Failed { kind, message }
}

/// Does a work and tells its steps; the outer error is the stream's, which ends the work.
async fn work(
    shared: &Shared,
    works: &Arc<Places>,
    peer: &NodeId,
    request: ManageRequest,
    stream: &mut NetStream,
) -> io::Result<Result<(), ManageAnswer>> {
    if let Err(reason) = shared.access.may_manage(peer) {
        return Ok(Err(failed(FailureKind::Refused, reason)));
    }
    let Some(_place) = works.take(peer) else {
        let reason = "it is busy with other works on its models; try again later".to_owned();
        return Ok(Err(failed(FailureKind::Busy, reason)));
    };
    let (ManageRequest::Pull { name } | ManageRequest::Remove { name }) = &request;
    if name.len() > NAME_BYTES_MAX {
        return Ok(Err(failed(FailureKind::Failed, format!("a name has at most {NAME_BYTES_MAX} bytes"))));
    }
    tracing::info!(peer.id = %peer, model.name = name, pull = matches!(request, ManageRequest::Pull { .. }), "a peer changes the models of this node");
    let mut steps = match request {
        ManageRequest::Pull { name } => pull(shared.backends.clone(), name),
        ManageRequest::Remove { name } => remove(shared.backends.clone(), name),
    };
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut alive = interval(shared.config.alive_every);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let limit = shared.config.write_limit;
    loop {
        let told = tokio::select! {
            biased;
            // The peer has nothing more to say: this is its end, and with it that of the work.
            _ = reader.read_u8() => return Err(io::ErrorKind::ConnectionAborted.into()),
            step = steps.next() => match step {
                Some(Ok(step)) => ManageAnswer::from(step),
                Some(Err(error)) => return Ok(Err(failure_of(&error))),
                None => return Ok(Ok(())),
            },
            _ = alive.tick() => ManageAnswer::Alive {},
        };
        timeout(limit, wire::write(&mut writer, &told)).await.map_err(io::Error::other)??;
    }
}

impl From<Progress> for ManageAnswer {
    fn from(step: Progress) -> Self {
        let Progress { status, sha256, total_bytes, completed_bytes } = step;
        Self::Step { status, sha256, total_bytes, completed_bytes }
    }
}

fn failure_of(error: &BackendError) -> ManageAnswer {
    let kind = match error {
        BackendError::ModelNotFound { .. } => FailureKind::NotFound,
        _ => FailureKind::Failed,
    };
    failed(kind, error.to_string())
}

/// Fetches a model at this node: at the backend that has one of this name, or the most preferred one that takes weights.
pub(super) fn pull(backends: Backends, name: String) -> ProgressStream {
    Box::pin(async_stream::try_stream! {
        let having = having(&backends, &name).await.map(|(named, _)| named);
        let mut managing = having.filter(NamedBackend::takes_weights);
        if managing.is_none() {
            managing = backends.all().into_iter().find(NamedBackend::takes_weights);
        }
        let named = managing.ok_or_else(unmanaged)?;
        let library = named.backend.library().ok_or_else(unmanaged)?;
        let mut steps = library.pull(PullRequest::new(name)).await?;
        while let Some(step) = steps.next().await {
            yield step?;
        }
        // Whoever hears the end asks for the model next.
        backends.refresh(&named.name).await;
    })
}

/// Removes a model from the backend that a request for it would find.
pub(super) fn remove(backends: Backends, name: String) -> ProgressStream {
    Box::pin(async_stream::try_stream! {
        let parsed = ModelName::parse(&name).map_err(|error| BackendError::InvalidRequest {
            param: Some("model"),
            message: error.to_string(),
        })?;
        let missing = || BackendError::model_not_found(&parsed);
        let (named, name_there) = having(&backends, &name).await.ok_or_else(missing)?;
        let library = named.backend.library().ok_or_else(unmanaged)?;
        if !library.delete(&name_there).await? {
            Err(missing())?;
        }
        backends.refresh(&named.name).await;
        yield Progress { status: "success".to_owned(), ..Progress::default() };
    })
}

/// Finds the backend of this node that has a model and manages its models, and the model's name there.
async fn having(backends: &Backends, name: &str) -> Option<(NamedBackend, ModelName)> {
    let places = backends.having(name).await.ok()?;
    let place = Listed::managed(&places)?;
    Some((place.backend.clone(), place.name_there()))
}

fn unmanaged() -> BackendError {
    BackendError::Unsupported { param: "model", message: "no backend of this node manages models".to_owned() }
}

#[cfg(test)]
mod tests {
    use bombus_infer::NamingBackend;
    use bombus_infer::fake::{FakeBackend, FakeConfig};
    use futures::TryStreamExt;
    use tempfile::TempDir;

    use super::*;

    #[tokio::test]
    async fn a_backend_that_keeps_names_alone_fetches_nothing_and_lets_its_names_go() {
        let folder = TempDir::new().unwrap();
        let server = Arc::new(FakeBackend::new(FakeConfig::default()));
        let naming = NamingBackend::open("far", folder.path(), server).unwrap();
        let backends = Backends::new(vec![NamedBackend::new("far", "openai", Arc::new(naming))]);
        let error = pull(backends.clone(), "fake".to_owned()).try_collect::<Vec<_>>().await.unwrap_err();
        assert_eq!(error, unmanaged());

        let name = |text: &str| ModelName::parse(text).unwrap();
        let named = backends.named("far").unwrap();
        let library = named.backend.library().unwrap();
        assert_eq!(library.copy(&name("fake"), &name("second")).await, Ok(true));
        backends.refresh("far").await;
        remove(backends.clone(), "second".to_owned()).try_collect::<Vec<_>>().await.unwrap();
        let left: Vec<_> = backends.models().await.into_iter().map(|listed| listed.info.name).collect();
        assert_eq!(left, [name("fake")]);
        for alike in ["fake", "library/Fake"] {
            let error = remove(backends.clone(), alike.to_owned()).try_collect::<Vec<_>>().await.unwrap_err();
            assert!(error.to_string().contains("tools of that server"), "{error}");
        }
    }
}
