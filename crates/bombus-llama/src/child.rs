//! The node's side of one engine process.

mod log;
#[cfg(test)]
#[cfg(unix)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bombus_core::chat::{ChatEvent, ChatRequest, EmbedInput, EmbedResponse};
use futures::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use self::log::{LastLines, death_reason, read_lines};
use crate::platform;
use crate::protocol::{
    FromWorker, LoadFailure, LoadOptions, MESSAGE_BYTES_MAX, RunError, RunId, ToWorker, encode_message,
};

/// Events of one run that may wait for their client. Then the run pauses until the client has taken half of them.
const CREDIT_EVENTS: u32 = 256;
/// Events that may come without credit: what was held back, a word that it waits, and the end.
const CREDIT_SLACK: usize = 64;
/// Messages to the process that may wait. When it is full, requests wait.
const OUTBOX_MESSAGES_MAX: usize = 256;
/// Time for a process whose output has ended to end by itself, and for its last log lines to be read.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Says why a run has no (further) events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RunFailure {
    /// The run itself failed; the process goes on.
    Run(RunError),
    /// The process died. Says how.
    Died(String),
}

/// Says why a process does not have its model loaded. The process is gone by then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoadError {
    /// The process, or the system that should start it, gave a reason.
    #[error("{}", .0.reason)]
    Failed(LoadFailure),
    /// The process died. Says how.
    #[error("{0}")]
    Died(String),
}

enum Pending {
    Chat(mpsc::Sender<Result<ChatEvent, RunFailure>>),
    Embed(oneshot::Sender<Result<EmbedResponse, RunFailure>>),
}

/// A running engine process with a loaded model. Dropping the last handle ends it.
#[derive(Clone)]
pub(crate) struct EngineProcess(Arc<Shared>);

/// Tells how many requests an engine process has, and does not keep it alive.
pub(crate) struct RequestCount(Arc<RunTable>);

struct Shared {
    outbox: mpsc::Sender<Outgoing>,
    runs: Arc<RunTable>,
    next_id: AtomicU64,
    stop: CancellationToken,
}

/// A message on its way to the process.
struct Outgoing {
    /// The run that it begins, if it begins one.
    begins: Option<RunId>,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct RunTable {
    runs: Mutex<Runs>,
    /// Wakes the writer to tell the process which runs are cancelled.
    cancelled: Notify,
}

#[derive(Default)]
struct Runs {
    pending: HashMap<RunId, Pending>,
    /// Runs that the process is still to be told to cancel: at most one entry for each run that it has.
    cancelled: Vec<RunId>,
    /// Set once the process is dead: how it died.
    death: Option<String>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl RequestCount {
    /// Returns how many there are now, those that wait for a slot included.
    pub(crate) fn get(&self) -> usize {
        self.0.lock().pending.len()
    }
}

impl EngineProcess {
    /// Starts a process and waits until its model is loaded. What it logs while it lives stands in the span. The receiver gets the reason
    /// when the process ends, for whatever reason.
    ///
    /// # Errors
    ///
    /// Says why the model could not be loaded.
    pub(crate) async fn start(
        program: &Path,
        options: LoadOptions,
        timeout: Duration,
        span: Span,
    ) -> Result<(Self, oneshot::Receiver<String>), LoadError> {
        let failed = |reason: String| LoadError::Failed(LoadFailure::from(reason));
        let mut command = Command::new(program);
        platform::name_process(&mut command, "bombus");
        platform::keep_from_terminal(&mut command);
        let mut child = command
            .arg("engine-worker")
            // An assertion of GGML would start a debugger otherwise.
            .env("GGML_NO_BACKTRACE", "1")
            // How often threads look for each other at a barrier before they sleep. Never to sleep (libgomp's default is near that) is
            // many times slower where the cores are busy with other work, and to sleep at once halves the speed where they are not.
            .env("GOMP_SPINCOUNT", "10000")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                failed(format!("the engine process {} could not be started: {error}", program.display()))
            })?;
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");

        let (outbox, messages) = mpsc::channel(OUTBOX_MESSAGES_MAX);
        let (stop, runs) = (CancellationToken::new(), Arc::<RunTable>::default());
        let shared = Shared { outbox, runs: Arc::clone(&runs), next_id: AtomicU64::new(0), stop: stop.clone() };
        let process = Self(Arc::new(shared));
        let (loaded_sender, loaded) = oneshot::channel();
        let (exited_sender, exited) = oneshot::channel();
        let lines = LastLines::default();
        // Each of these tasks ends with the process, whose end the watcher reports.
        tokio::spawn(write_messages(stdin, messages, Arc::clone(&runs)));
        let reader = tokio::spawn(read_lines(stderr, lines.clone()).instrument(span.clone()));
        let watcher = Watcher { runs, lines, reader, stop, loaded: Some(loaded_sender) };
        tokio::spawn(watcher.watch(child, stdout, exited_sender).instrument(span));

        process.send(None, &ToWorker::Load(options)).await.map_err(|error| failed(error.to_string()))?;
        let failure = match tokio::time::timeout(timeout, loaded).await {
            Ok(Ok(Ok(()))) => return Ok((process, exited)),
            Ok(Ok(Err(failure))) => Some(LoadError::Failed(failure)),
            Ok(Err(_)) => None,
            Err(_) => Some(failed(format!("the model was not loaded within {} s", timeout.as_secs()))),
        };
        // Ends the process where it still runs. Its memory is free only once it is gone.
        drop(process);
        let reason = exited.await.unwrap_or_else(|_| "the engine process ended".into());
        Err(failure.unwrap_or(LoadError::Died(reason)))
    }

    /// Starts a chat run.
    pub(crate) async fn chat(&self, request: ChatRequest) -> Result<ChatRun, RunFailure> {
        let (sender, events) = mpsc::channel(CREDIT_EVENTS as usize + CREDIT_SLACK);
        let id = self.register(Pending::Chat(sender))?;
        let run = ChatRun { process: self.clone(), id, events, taken: 0, ended: false };
        let message = ToWorker::Chat { id, credit: CREDIT_EVENTS, request: Box::new(request) };
        self.send(Some(id), &message).await.map_err(|error| too_long("messages", &error))?;
        Ok(run)
    }

    /// Makes embedding vectors.
    pub(crate) async fn embed(&self, inputs: Vec<EmbedInput>, truncate: bool) -> Result<EmbedResponse, RunFailure> {
        let (sender, response) = oneshot::channel();
        let id = self.register(Pending::Embed(sender))?;
        let _cancel = CancelOnDrop { process: self, id };
        self.send(Some(id), &ToWorker::Embed { id, inputs, truncate })
            .await
            .map_err(|error| too_long("inputs", &error))?;
        response.await.unwrap_or_else(|_| Err(self.died()))
    }

    /// Returns what tells how many requests the process has.
    pub(crate) fn requests(&self) -> RequestCount {
        RequestCount(Arc::clone(&self.0.runs))
    }

    /// Returns how the process died, if it did.
    pub(crate) fn death(&self) -> Option<String> {
        self.0.runs.lock().death.clone()
    }

    fn register(&self, pending: Pending) -> Result<RunId, RunFailure> {
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let mut runs = self.0.runs.lock();
        match &runs.death {
            Some(reason) => Err(RunFailure::Died(reason.clone())),
            None => {
                runs.pending.insert(id, pending);
                Ok(id)
            }
        }
    }

    /// Sends a message, which may be the one that begins a run.
    async fn send(&self, begins: Option<RunId>, message: &ToWorker) -> io::Result<()> {
        let bytes = encode_message(message)?;
        // The channel is closed only when the process is dead, which every run hears of by itself.
        let _ = self.0.outbox.send(Outgoing { begins, bytes }).await;
        Ok(())
    }

    /// Forgets a run and has the process told, without waiting.
    fn cancel(&self, id: RunId) {
        let known = self.0.runs.lock().pending.remove(&id).is_some();
        if known {
            self.0.runs.cancel(id);
        }
    }

    fn died(&self) -> RunFailure {
        RunFailure::Died(self.death().unwrap_or_else(|| "the engine process ended".into()))
    }
}

/// The error of a request that does not fit into a message.
fn too_long(param: &str, error: &io::Error) -> RunFailure {
    RunFailure::Run(RunError::invalid(param, format!("the request is too long for the engine: {error}")))
}

impl RunTable {
    fn lock(&self) -> MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the process told to cancel a run.
    fn cancel(&self, id: RunId) {
        let mut runs = self.lock();
        if runs.death.is_none() {
            runs.cancelled.push(id);
            self.cancelled.notify_one();
        }
    }

    fn deliver(&self, message: FromWorker) {
        match message {
            FromWorker::Event { id, event } => {
                let ends = matches!(event, ChatEvent::Done { .. });
                let known = self.lock().send_chat(id, event, ends);
                if !known && !ends {
                    self.cancel(id);
                }
            }
            FromWorker::Waiting { ids } => {
                let runs = self.lock();
                ids.into_iter().for_each(|id| runs.tell_waiting(id));
            }
            FromWorker::Failed { id, error } => match self.lock().pending.remove(&id) {
                Some(Pending::Chat(sender)) => drop(sender.try_send(Err(RunFailure::Run(error)))),
                Some(Pending::Embed(sender)) => drop(sender.send(Err(RunFailure::Run(error)))),
                None => {}
            },
            FromWorker::Embedded { id, response } => {
                if let Some(Pending::Embed(sender)) = self.lock().pending.remove(&id) {
                    drop(sender.send(Ok(response)));
                }
            }
            FromWorker::Loaded | FromWorker::LoadFailed(_) => {}
        }
    }
}

impl Runs {
    /// Hands an event to its run. Returns whether somebody waits for it. The channel has room for all the credit, so a full one means
    /// a process that broke the rules, whose run is given up.
    fn send_chat(&mut self, id: RunId, event: ChatEvent, ends: bool) -> bool {
        let Some(Pending::Chat(sender)) = self.pending.get(&id) else { return false };
        let sent = sender.try_send(Ok(event)).is_ok();
        if ends || !sent {
            self.pending.remove(&id);
        }
        sent
    }

    /// Tells a run that others are before it, unless it has something to hear already.
    fn tell_waiting(&self, id: RunId) {
        if let Some(Pending::Chat(sender)) = self.pending.get(&id)
            && sender.capacity() == sender.max_capacity()
        {
            let _ = sender.try_send(Ok(ChatEvent::Waiting {}));
        }
    }
}

/// Cancels an embedding that is no longer waited for.
struct CancelOnDrop<'p> {
    process: &'p EngineProcess,
    id: RunId,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        self.process.cancel(self.id);
    }
}

/// The events of one run. Dropping it cancels the run.
pub(crate) struct ChatRun {
    process: EngineProcess,
    id: RunId,
    events: mpsc::Receiver<Result<ChatEvent, RunFailure>>,
    /// Events taken since credit was last given.
    taken: u32,
    ended: bool,
}

impl ChatRun {
    /// Waits for the next event; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Result<ChatEvent, RunFailure>> {
        if self.ended {
            return None;
        }
        let event = self.events.recv().await.unwrap_or_else(|| Err(self.process.died()));
        self.ended = matches!(event, Ok(ChatEvent::Done { .. }) | Err(_));
        if matches!(event, Ok(ChatEvent::Waiting {})) {
            // It was sent without credit.
            return Some(event);
        }
        self.taken += 1;
        if self.taken == CREDIT_EVENTS / 2 && !self.ended {
            // So short a message always fits.
            let _ = self.process.send(None, &ToWorker::Credit { id: self.id, events: self.taken }).await;
            self.taken = 0;
        }
        Some(event)
    }
}

impl Drop for ChatRun {
    fn drop(&mut self) {
        self.process.cancel(self.id);
    }
}

/// Writes messages until there are no more senders. What is cancelled goes first, and a run that was cancelled before its turn is left
/// out.
async fn write_messages(mut stdin: ChildStdin, mut messages: mpsc::Receiver<Outgoing>, runs: Arc<RunTable>) {
    loop {
        let cancelled = std::mem::take(&mut runs.lock().cancelled);
        for id in cancelled {
            let message = encode_message(&ToWorker::Cancel { id }).expect("so short a message fits");
            if stdin.write_all(&message).await.is_err() {
                return;
            }
        }
        let message = tokio::select! {
            biased;
            () = runs.cancelled.notified() => continue,
            message = messages.recv() => message,
        };
        let Some(message) = message else { return };
        let is_wanted = message.begins.is_none_or(|id| runs.lock().pending.contains_key(&id));
        if is_wanted && stdin.write_all(&message.bytes).await.is_err() {
            return;
        }
    }
}

/// Reads what the process says and notices its end.
struct Watcher {
    runs: Arc<RunTable>,
    lines: LastLines,
    reader: JoinHandle<()>,
    stop: CancellationToken,
    /// Until the model is loaded: who waits for it.
    loaded: Option<oneshot::Sender<Result<(), LoadFailure>>>,
}

impl Watcher {
    async fn watch(mut self, mut child: Child, stdout: ChildStdout, exited: oneshot::Sender<String>) {
        self.read(stdout).await;
        // Its output has ended, or it is to end, or it talks nonsense. A process that is dying by itself shows how in its status.
        if self.stop.is_cancelled() || tokio::time::timeout(LAST_WORDS, child.wait()).await.is_err() {
            let _ = child.start_kill();
        }
        let status = child.wait().await.ok();
        // A process that it started may hold the pipe open.
        let _ = tokio::time::timeout(LAST_WORDS, &mut self.reader).await;
        let reason = death_reason(status, &self.lines);
        {
            let mut runs = self.runs.lock();
            runs.death = Some(reason.clone());
            runs.cancelled.clear();
            // Dropping the senders ends each run, which then asks for the reason.
            runs.pending.clear();
        }
        let _ = exited.send(reason);
    }

    /// Delivers messages until there are no more.
    async fn read(&mut self, stdout: ChildStdout) {
        let codec = LengthDelimitedCodec::builder().max_frame_length(MESSAGE_BYTES_MAX).new_codec();
        let mut messages = FramedRead::new(stdout, codec);
        loop {
            let message = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                message = messages.next() => message,
            };
            let Some(Ok(bytes)) = message else { return };
            let result = match serde_json::from_slice(&bytes) {
                Ok(FromWorker::Loaded) => Ok(()),
                Ok(FromWorker::LoadFailed(failure)) => Err(failure),
                Ok(message) => {
                    self.runs.deliver(message);
                    continue;
                }
                Err(error) => {
                    tracing::error!(%error, "the engine process says what makes no sense and is ended");
                    return;
                }
            };
            if let Some(loaded) = self.loaded.take() {
                let _ = loaded.send(result);
            }
        }
    }
}
