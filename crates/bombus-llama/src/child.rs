//! The node's side of one engine process.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bombus_core::chat::{ChatEvent, ChatRequest, EmbedInput, EmbedResponse};
use futures::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;

use crate::platform;
use crate::protocol::{FromWorker, LoadOptions, MESSAGE_BYTES_MAX, RunError, RunId, ToWorker, encode_message};

/// Events of one run that may wait for their client. Then the run pauses until the client has taken half of them.
const CREDIT_EVENTS: u32 = 256;
/// Events that may come without credit: what was held back, and the end.
const CREDIT_SLACK: usize = 64;
/// Messages to the process that may wait. When it is full, requests wait.
const OUTBOX_MESSAGES_MAX: usize = 256;
/// Last lines of the process's log that are kept to explain its death.
const STDERR_LINES_MAX: usize = 6;

/// Says why a run has no (further) events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RunFailure {
    /// The run itself failed; the process goes on.
    Run(RunError),
    /// The process died. Says how.
    Died(String),
}

enum Pending {
    Chat(mpsc::Sender<Result<ChatEvent, RunFailure>>),
    Embed(oneshot::Sender<Result<EmbedResponse, RunFailure>>),
}

/// A running engine process with a loaded model. Dropping the last handle ends it.
#[derive(Clone)]
pub(crate) struct EngineProcess(Arc<Shared>);

struct Shared {
    outbox: mpsc::Sender<Vec<u8>>,
    runs: Mutex<Runs>,
    next_id: AtomicU64,
    stop: CancellationToken,
}

#[derive(Default)]
struct Runs {
    pending: HashMap<RunId, Pending>,
    /// Set once the process is dead: how it died.
    death: Option<String>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl EngineProcess {
    /// Starts a process and waits until its model is loaded. `on_exit` is called with the reason when a process that had loaded its
    /// model ends without having been told to.
    ///
    /// # Errors
    ///
    /// Says why the model could not be loaded.
    pub(crate) async fn start(
        program: &Path,
        options: LoadOptions,
        timeout: Duration,
        on_exit: impl FnOnce(String) + Send + 'static,
    ) -> Result<Self, String> {
        let mut command = Command::new(program);
        platform::name_process(&mut command, "bombus");
        let mut child = command
            .arg("engine-worker")
            // An assertion of GGML would start a debugger otherwise.
            .env("GGML_NO_BACKTRACE", "1")
            // Threads that wait for each other sleep at once. Where the cores are busy with other work, spinning is 100 times slower.
            .env("OMP_WAIT_POLICY", "passive")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("the engine process {} could not be started: {error}", program.display()))?;
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");

        let (outbox, messages) = mpsc::channel(OUTBOX_MESSAGES_MAX);
        let stop = CancellationToken::new();
        let shared = Shared { outbox, runs: Mutex::default(), next_id: AtomicU64::new(0), stop: stop.clone() };
        let process = Self(Arc::new(shared));
        let (loaded_sender, loaded) = oneshot::channel();
        let lines = LastLines::default();
        let watcher =
            Watcher { shared: Arc::downgrade(&process.0), lines: lines.clone(), stop, loaded: Some(loaded_sender) };
        // Each of these tasks ends with the process, whose end the watcher reports.
        tokio::spawn(write_messages(stdin, messages));
        tokio::spawn(read_lines(stderr, lines));
        tokio::spawn(watcher.watch(child, stdout, on_exit));

        process.send(&ToWorker::Load(options)).await;
        match tokio::time::timeout(timeout, loaded).await {
            Ok(Ok(result)) => result.map(|()| process),
            Ok(Err(_)) => Err("the engine process ended".into()),
            Err(_) => Err(format!("the model was not loaded within {} s", timeout.as_secs())),
        }
    }

    /// Starts a chat run.
    pub(crate) async fn chat(&self, request: ChatRequest) -> Result<ChatRun, RunFailure> {
        let (sender, events) = mpsc::channel(CREDIT_EVENTS as usize + CREDIT_SLACK);
        let id = self.register(Pending::Chat(sender))?;
        let run = ChatRun { process: self.clone(), id, events, taken: 0, ended: false };
        self.send(&ToWorker::Chat { id, credit: CREDIT_EVENTS, request: Box::new(request) }).await;
        Ok(run)
    }

    /// Makes embedding vectors.
    pub(crate) async fn embed(&self, inputs: Vec<EmbedInput>) -> Result<EmbedResponse, RunFailure> {
        let (sender, response) = oneshot::channel();
        let id = self.register(Pending::Embed(sender))?;
        let _cancel = CancelOnDrop { process: self, id };
        self.send(&ToWorker::Embed { id, inputs }).await;
        response.await.unwrap_or_else(|_| Err(self.died()))
    }

    /// Returns how many requests the process has.
    pub(crate) fn load(&self) -> usize {
        self.0.runs().pending.len()
    }

    /// Returns how the process died, if it did.
    pub(crate) fn death(&self) -> Option<String> {
        self.0.runs().death.clone()
    }

    fn register(&self, pending: Pending) -> Result<RunId, RunFailure> {
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let mut runs = self.0.runs();
        match &runs.death {
            Some(reason) => Err(RunFailure::Died(reason.clone())),
            None => {
                runs.pending.insert(id, pending);
                Ok(id)
            }
        }
    }

    async fn send(&self, message: &ToWorker) {
        match encode_message(message) {
            // The channel is closed only when the process is dead, which every run hears of by itself.
            Ok(bytes) => drop(self.0.outbox.send(bytes).await),
            Err(error) => tracing::error!(%error, "a message to the engine process was not sent"),
        }
    }

    /// Forgets a run and tells the process, without waiting. A full channel is no loss: the next event of a run that nobody knows
    /// makes the watcher cancel it.
    fn cancel(&self, id: RunId) {
        let known = self.0.runs().pending.remove(&id).is_some();
        if known {
            self.0.try_cancel(id);
        }
    }

    fn died(&self) -> RunFailure {
        RunFailure::Died(self.death().unwrap_or_else(|| "the engine process ended".into()))
    }
}

impl Shared {
    fn runs(&self) -> MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_cancel(&self, id: RunId) {
        if let Ok(bytes) = encode_message(&ToWorker::Cancel { id }) {
            let _ = self.outbox.try_send(bytes);
        }
    }

    fn deliver(&self, message: FromWorker) {
        match message {
            FromWorker::Event { id, event } => {
                let ends = matches!(event, ChatEvent::Done { .. });
                if !self.runs().send_chat(id, event, ends) && !ends {
                    self.try_cancel(id);
                }
            }
            FromWorker::Failed { id, error } => match self.runs().pending.remove(&id) {
                Some(Pending::Chat(sender)) => drop(sender.try_send(Err(RunFailure::Run(error)))),
                Some(Pending::Embed(sender)) => drop(sender.send(Err(RunFailure::Run(error)))),
                None => {}
            },
            FromWorker::Embedded { id, response } => {
                if let Some(Pending::Embed(sender)) = self.runs().pending.remove(&id) {
                    drop(sender.send(Ok(response)));
                }
            }
            FromWorker::Loaded | FromWorker::LoadFailed { .. } => {}
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
        self.ended = !matches!(event, Ok(ChatEvent::Delta(_) | ChatEvent::ToolCall(_)));
        self.taken += 1;
        if self.taken == CREDIT_EVENTS / 2 && !self.ended {
            self.process.send(&ToWorker::Credit { id: self.id, events: self.taken }).await;
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

async fn write_messages(mut stdin: ChildStdin, mut messages: mpsc::Receiver<Vec<u8>>) {
    while let Some(message) = messages.recv().await {
        if stdin.write_all(&message).await.is_err() {
            return;
        }
    }
}

/// The last lines of a process's log.
#[derive(Clone, Default)]
struct LastLines(Arc<Mutex<VecDeque<String>>>);

impl LastLines {
    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == STDERR_LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("; ")
    }
}

async fn read_lines(stderr: ChildStderr, last: LastLines) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // llama.cpp calls much a warning that is none for a user.
        if let Some(("WARN" | "INFO", text)) = line.split_once(' ') {
            tracing::debug!(target: "bombus_llama::engine", "{text}");
        } else {
            tracing::warn!(target: "bombus_llama::engine", "{line}");
            last.push(line);
        }
    }
}

/// Reads what the process says and notices its end.
struct Watcher {
    shared: Weak<Shared>,
    lines: LastLines,
    stop: CancellationToken,
    /// Until the model is loaded: who waits for it.
    loaded: Option<oneshot::Sender<Result<(), String>>>,
}

impl Watcher {
    async fn watch(mut self, mut child: Child, stdout: ChildStdout, on_exit: impl FnOnce(String)) {
        let was_loaded = self.read(stdout).await;
        let stopped = self.stop.is_cancelled();
        // Its output has ended, or it is to end, or it talks nonsense. A process that is dying by itself shows how in its status.
        if stopped || tokio::time::timeout(Duration::from_secs(1), child.wait()).await.is_err() {
            let _ = child.start_kill();
        }
        let reason = death_reason(child.wait().await.ok(), &self.lines);
        if let Some(shared) = self.shared.upgrade() {
            let mut runs = shared.runs();
            runs.death = Some(reason.clone());
            // Dropping the senders ends each run, which then asks for the reason.
            runs.pending.clear();
        }
        if let Some(loaded) = self.loaded {
            let _ = loaded.send(Err(reason));
        } else if was_loaded && !stopped {
            on_exit(reason);
        }
    }

    /// Delivers messages until there are no more. Returns whether the model was loaded.
    async fn read(&mut self, stdout: ChildStdout) -> bool {
        let codec = LengthDelimitedCodec::builder().max_frame_length(MESSAGE_BYTES_MAX).new_codec();
        let mut messages = FramedRead::new(stdout, codec);
        let mut was_loaded = false;
        loop {
            let message = tokio::select! {
                biased;
                () = self.stop.cancelled() => return was_loaded,
                message = messages.next() => message,
            };
            let Some(Ok(bytes)) = message else { return was_loaded };
            let result = match serde_json::from_slice(&bytes) {
                Ok(FromWorker::Loaded) => Ok(()),
                Ok(FromWorker::LoadFailed { reason }) => Err(reason),
                Ok(message) => {
                    let Some(shared) = self.shared.upgrade() else { return was_loaded };
                    shared.deliver(message);
                    continue;
                }
                Err(error) => {
                    tracing::error!(%error, "the engine process says what makes no sense and is ended");
                    return was_loaded;
                }
            };
            was_loaded |= result.is_ok();
            if let Some(loaded) = self.loaded.take() {
                let _ = loaded.send(result);
            }
        }
    }
}

fn death_reason(status: Option<ExitStatus>, lines: &LastLines) -> String {
    let how = status.map_or_else(|| "ended in an unknown way".to_owned(), platform::describe_exit);
    let said = lines.text();
    if said.is_empty() { format!("the engine process {how}") } else { format!("the engine process {how}: {said}") }
}
