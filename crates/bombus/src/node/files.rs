//! The files of requests and batches of the swarm that this node belongs to, as the HTTP API needs them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bombus_core::batches::{BatchInfo, Endpoint, FileInfo, NewBatch, Page};
use bombus_core::tasks::WholeRequest;
use bombus_http::files::{FileContent, FileFilter, FileUpload, Files, FilesError, read_batch_body};
use bombus_net::membership::{MembershipError, MembershipHandle};
use bombus_swarm::SwarmHandle;
use bombus_swarm::db::DbHandle;
use bombus_swarm::files::{BodyReader, BodyRefusal, Content, FileQuery, FilesHandle, Upload, files as files_of_swarm};
use bombus_swarm::tasks::{TasksConfig, TasksHandle};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longest wait for files that are being opened.
const OPENING_WAIT_MAX: Duration = Duration::from_secs(10);

/// The files and batches, for whoever uses them.
#[derive(Clone)]
pub(super) struct SwarmFiles {
    /// None while they are being opened, or cannot be used.
    current: watch::Receiver<Option<FilesHandle>>,
    membership: MembershipHandle,
}

/// What keeps the files and batches of one swarm after the other going, each beside its tasks.
pub(super) struct SwarmFilesService {
    current: watch::Sender<Option<FilesHandle>>,
    reader: Arc<Reader>,
}

/// Makes the two halves of the files. `default_model` is for the lines of batches that name none.
pub(super) fn files(default_model: String, membership: MembershipHandle) -> (SwarmFiles, SwarmFilesService) {
    let (sender, current) = watch::channel(None);
    (
        SwarmFiles { current, membership },
        SwarmFilesService { current: sender, reader: Arc::new(Reader { default_model }) },
    )
}

/// Reads the lines of batches as the API reads requests.
struct Reader {
    default_model: String,
}

impl BodyReader for Reader {
    fn read(&self, endpoint: Endpoint, body: &str) -> Result<WholeRequest, BodyRefusal> {
        read_batch_body(endpoint, body, Some(&self.default_model))
            .map_err(|(status, body)| BodyRefusal { status, body })
    }
}

impl SwarmFilesService {
    /// Keeps the files beside these tasks going until `stop`; it ends with that alone.
    pub(super) async fn run(
        &self,
        config: &TasksConfig,
        db: DbHandle,
        swarm: SwarmHandle,
        tasks: TasksHandle,
        stop: CancellationToken,
    ) {
        let (handle, service) = files_of_swarm(config, db, swarm, tasks, self.reader.clone());
        self.current.send_replace(Some(handle));
        service.run(stop).await;
        self.current.send_replace(None);
    }
}

impl SwarmFiles {
    /// Returns the files once they can be used; while they are being opened, as at the start of the node, it waits for a moment.
    async fn handle(&self) -> Result<FilesHandle, FilesError> {
        let mut current = self.current.clone();
        let opened = timeout(OPENING_WAIT_MAX, current.wait_for(Option::is_some)).await;
        let handle = opened.ok().and_then(|opened| opened.ok()?.clone());
        handle.ok_or_else(|| {
            FilesError::Unavailable("files and batches are being opened, or cannot be used; ask again".into())
        })
    }
}

#[async_trait]
impl Files for SwarmFiles {
    async fn upload(&self) -> Result<Box<dyn FileUpload>, FilesError> {
        let upload = self.handle().await?.upload().await.map_err(refused)?;
        Ok(Box::new(OneUpload { upload, membership: self.membership.clone() }))
    }

    async fn file(&self, id: &str) -> Result<FileInfo, FilesError> {
        self.handle().await?.file(id).await.map_err(refused)
    }

    async fn files(&self, filter: FileFilter) -> Result<Page<FileInfo>, FilesError> {
        let FileFilter { purpose, after, limit, oldest_first } = filter;
        let query = FileQuery { purpose, after, limit, oldest_first };
        self.handle().await?.files(&query).await.map_err(refused)
    }

    async fn content(&self, id: &str) -> Result<FileContent, FilesError> {
        Ok(match self.handle().await?.content(id).await.map_err(refused)? {
            Content::Bytes(pieces) => {
                FileContent::Bytes(pieces.map(|piece| piece.map(Bytes::from).map_err(refused)).boxed())
            }
            Content::Lines(lines) => FileContent::Lines(lines.map(|line| line.map_err(refused)).boxed()),
        })
    }

    async fn remove(&self, id: &str) -> Result<(), FilesError> {
        self.handle().await?.remove(id).await.map_err(refused)
    }

    async fn create_batch(&self, batch: NewBatch) -> Result<BatchInfo, FilesError> {
        let made = self.handle().await?.create_batch(batch).await.map_err(refused)?;
        self.membership.mark_used().await.map_err(|error| unmarked(&error))?;
        Ok(made)
    }

    async fn batch(&self, id: &str) -> Result<BatchInfo, FilesError> {
        self.handle().await?.batch(id).await.map_err(refused)
    }

    async fn batches(&self, after: Option<&str>, limit: usize) -> Result<Page<BatchInfo>, FilesError> {
        self.handle().await?.batches(after, limit).await.map_err(refused)
    }

    async fn cancel(&self, id: &str) -> Result<BatchInfo, FilesError> {
        self.handle().await?.cancel(id).await.map_err(refused)
    }
}

struct OneUpload {
    upload: Upload,
    membership: MembershipHandle,
}

#[async_trait]
impl FileUpload for OneUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), FilesError> {
        self.upload.write(&bytes).await.map_err(refused)
    }

    async fn finish(self: Box<Self>, filename: &str) -> Result<FileInfo, FilesError> {
        let file = self.upload.finish(filename).await.map_err(refused)?;
        self.membership.mark_used().await.map_err(|error| unmarked(&error))?;
        Ok(file)
    }
}

fn unmarked(error: &MembershipError) -> FilesError {
    FilesError::Unavailable(error.to_string())
}

fn refused(error: bombus_swarm::files::FilesError) -> FilesError {
    use bombus_swarm::files::FilesError as Refusal;
    let message = error.to_string();
    match error {
        Refusal::UnknownFile(_) => FilesError::UnknownFile(message),
        Refusal::UnknownBatch(_) => FilesError::UnknownBatch(message),
        Refusal::Invalid { param, message } => FilesError::Invalid { param, message },
        Refusal::TooLarge(bytes_max) => FilesError::TooLarge(bytes_max),
        Refusal::Ended(_) => FilesError::Ended(message),
        Refusal::Unavailable | Refusal::Unreached(_) | Refusal::NoRoom(_) => FilesError::Unavailable(message),
        Refusal::Db(_) | Refusal::Document(_) => FilesError::Failed(message),
    }
}
