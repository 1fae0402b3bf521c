//! The engine process: loads one model and computes what the node sends.
//!
//! It is a process of its own since every assertion of GGML ends the process. It lives as long as its stdin.

mod embedder;
mod endless;
mod fit;
mod generator;
mod go_template;
mod jinja_renderer;
mod log;
mod pace;
mod prompt;
mod resume;
mod run;
mod sampler;
mod schema;
mod shelf;
mod template;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tiny;
mod tools;
mod unread;

use std::convert::Infallible;
use std::io::{self, BufWriter, Read, Write};
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::Duration;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{LlamaContextParams, LlamaPoolingType};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::{LogOptions, send_logs_to_tracing};

use self::embedder::Embedder;
use self::generator::Generator;
pub use self::jinja_renderer::JinjaRenderer;
use self::log::LogLines;
use self::prompt::PromptReader;
use self::run::Run;
use self::unread::{ChatMessage, Hall, Room, Unread};
use crate::platform::{end_process, outlive_termination};
pub(crate) use crate::protocol::RunError;
use crate::protocol::{
    FromWorker, LoadFailure, LoadOptions, ModelKind, RunId, ToWorker, read_frame, read_message, run_of_unreadable,
    write_message,
};

/// A request that follows on another within this time is not held up by tidying.
const TIDY_AFTER: Duration = Duration::from_millis(50);

/// Runs an engine process: the main function behind `bombus engine-worker`.
///
/// Reads messages from stdin and writes messages to stdout; logs are lines on stderr. Returns when the node says nothing that makes
/// sense; ends the process at once when stdin ends, whatever is being computed.
#[must_use]
pub fn engine_worker() -> ExitCode {
    let logs = log::init();
    if let Err(error) = outlive_termination() {
        tracing::warn!("a termination signal would end this process early: {error}");
    }
    let mut stdin = io::stdin();
    let Ok(Some(ToWorker::Load(options))) = read_message(&mut stdin) else {
        eprintln!("ERROR `bombus engine-worker` is started by a node, not by hand");
        return ExitCode::FAILURE;
    };
    template::note_local_offset();
    work(&options, &logs, stdin, io::stdout().lock())
}

/// Loads a model and computes what the node sends, as long as it lives. Returns where the model can't be loaded, and has told why.
pub(crate) fn work(options: &LoadOptions, logs: &LogLines, mut stdin: io::Stdin, outbox: impl Write) -> ExitCode {
    // Not bounded by itself: the node has at most as many requests as it lets wait, with a few words on each, and those that are not read yet
    // are bounded by their size.
    let (inbox_sender, inbox) = channel();
    let unread = Arc::<Unread>::default();
    let (reader_inbox, reader_unread) = (inbox_sender.clone(), Arc::clone(&unread));
    std::thread::spawn(move || {
        if read_all(&mut stdin, &reader_inbox, &reader_unread) {
            end_process();
        }
    });
    let mut outbox = BufWriter::new(outbox);
    let Err(failure) = serve(options, logs, Requests { unread, inbox_sender, inbox }, &mut outbox);
    let told = write_message(&mut outbox, &FromWorker::LoadFailed(failure));
    if told.and_then(|()| outbox.flush()).is_err() {
        end_process();
    }
    ExitCode::FAILURE
}

/// What is told of a request whose prompt cannot even be read.
const UNREADABLE: &str =
    "the prompt cannot be made of it: the chat template, or another part of the request, is out of bounds";

/// What the engine takes between two rounds.
enum Input {
    /// With the room of a request that is still to be read.
    Message(ToWorker, Option<Room>),
    /// A chat request whose prompt has been read.
    Prepared { id: RunId, run: Result<Box<Run>, RunError> },
    /// A request that cannot be taken.
    Refused { id: RunId, error: RunError },
}

/// Where requests come from. Chat requests are read on a thread of their own, so that a long prompt holds up no running answer.
struct Requests {
    unread: Arc<Unread>,
    inbox_sender: Sender<Input>,
    inbox: Receiver<Input>,
}

/// Passes on what the node says, and waits for nobody: what nobody reads would hide cancels, and the end of the node. Returns whether the
/// node is gone, or not understood; else nobody takes anything any more.
fn read_all(stdin: &mut impl Read, inbox: &Sender<Input>, unread: &Unread) -> bool {
    let hall = Hall::default();
    loop {
        let frame = match read_frame(stdin) {
            Ok(Some(frame)) => frame,
            Ok(None) => return true,
            Err(error) => {
                tracing::error!("the node's messages cannot be read: {error}");
                return true;
            }
        };
        let refused = |id| Input::Refused { id, error: RunError::Overloaded };
        let input = match serde_json::from_slice(&frame) {
            Ok(ToWorker::Cancel { id }) if unread.cancel(id) => continue,
            Ok(ToWorker::Chat { id, credit, request }) => match hall.take(frame.len()) {
                Some(room) => {
                    unread.push(ChatMessage { id, credit, request, room });
                    continue;
                }
                None => refused(id),
            },
            Ok(ToWorker::Embed { id, inputs, truncate }) => match hall.take(frame.len()) {
                Some(room) => Input::Message(ToWorker::Embed { id, inputs, truncate }, Some(room)),
                None => refused(id),
            },
            Ok(message) => Input::Message(message, None),
            Err(error) => match run_of_unreadable(&frame) {
                Some(id) => {
                    let error = RunError::invalid("prompt", format!("the request cannot be read: {error}"));
                    Input::Refused { id, error }
                }
                None => {
                    tracing::error!("the node says what makes no sense: {error}");
                    return true;
                }
            },
        };
        if inbox.send(input).is_err() {
            return false;
        }
    }
}

/// Loads the model and computes as long as the node lives. Errors are reasons why the model can't be loaded.
fn serve(
    options: &LoadOptions,
    logs: &LogLines,
    requests: Requests,
    outbox: &mut impl Write,
) -> Result<Infallible, LoadFailure> {
    crate::cpu::check()?;
    send_logs_to_tracing(LogOptions::default());
    let backend = LlamaBackend::init().map_err(|error| error.to_string())?;
    let model = load_model(&backend, &options.path, options.gpu_layers).map_err(|what| logs.explain_load(what))?;
    let context = make_context(&backend, &model, options).map_err(|what| logs.explain_load(&what))?;
    let prompts = PromptReader::new(&model);
    let context_tokens = options.context_tokens.min(context.n_ctx()) as usize;
    let Requests { unread, inbox_sender, inbox } = requests;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                let ChatMessage { id, credit, request, room: _room } = unread.take();
                // A template of a model or of a request may make what renders it panic. That is the end of this request, and not of reading.
                let read = catch_unwind(AssertUnwindSafe(|| {
                    Run::new(id, credit, *request, &model, &prompts, context_tokens).map(Box::new)
                }));
                let run = read.unwrap_or_else(|_| Err(RunError::invalid("messages", UNREADABLE)));
                if inbox_sender.send(Input::Prepared { id, run }).is_err() {
                    return;
                }
            }
        });
        let computed = catch_unwind(AssertUnwindSafe(|| match options.kind {
            ModelKind::Generate => compute(Generator::new(&model, &prompts, context, options), &inbox, outbox),
            ModelKind::Embed => compute(Embedder::new(&prompts, context, options), &inbox, outbox),
        }));
        if let Ok(Err(error)) = computed {
            tracing::error!("the node cannot be reached: {error}");
        }
        // After a panic, which has told itself, too: else the thread that reads would be waited for.
        end_process()
    })
}

fn load_model(backend: &LlamaBackend, path: &Path, gpu_layers: u32) -> Result<LlamaModel, &'static str> {
    let params = LlamaModelParams::default().with_n_gpu_layers(gpu_layers).with_use_mmap(true);
    LlamaModel::load_from_file(backend, path, &params).map_err(|_| "llama.cpp cannot load the file")
}

fn make_context<'m>(
    backend: &LlamaBackend,
    model: &'m LlamaModel,
    options: &LoadOptions,
) -> Result<LlamaContext<'m>, String> {
    let threads = options.threads.max(1).cast_signed();
    let embeds = options.kind == ModelKind::Embed;
    let mut params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(options.kv_tokens))
        .with_n_batch(options.batch_tokens)
        .with_n_ubatch(options.batch_tokens)
        .with_n_seq_max(options.slots)
        .with_n_threads(threads)
        .with_n_threads_batch(threads)
        .with_embeddings(embeds)
        .with_no_perf(true)
        // Else the cache is divided by the number of slots, and no slot could hold a full context.
        .with_kv_unified(true);
    if embeds && !names_pooling(model) {
        params = params.with_pooling_type(LlamaPoolingType::Mean);
    }
    model.new_context(backend, params).map_err(|_| {
        let tokens = options.kv_tokens;
        format!("llama.cpp cannot make a context of {tokens} tokens; a smaller context_tokens of the backend needs less memory")
    })
}

/// Returns whether the model's file says how vectors are to be pooled.
fn names_pooling(model: &LlamaModel) -> bool {
    let family = model.meta_val_str("general.architecture");
    family.is_ok_and(|family| model.meta_val_str(&format!("{family}.pooling_type")).is_ok())
}

/// What computes requests, one round after the other.
pub(crate) trait Engine {
    /// Takes a message of the node.
    fn take(&mut self, message: ToWorker);

    /// Takes a chat request whose prompt has been read into the queue, or tells why it can't be computed.
    fn take_prepared(&mut self, id: RunId, prepared: Result<Run, RunError>);

    /// Returns whether a round would compute anything.
    fn has_work(&self) -> bool;

    /// Computes one piece of every run, or one batch of the request whose turn it is.
    fn round(&mut self);

    /// Does one piece, of milliseconds, of what is better done while nothing waits. Returns whether there was any.
    fn tidy(&mut self) -> bool {
        false
    }

    /// Takes the messages that are ready for the node.
    fn take_messages(&mut self) -> impl Iterator<Item = FromWorker>;
}

fn compute(mut engine: impl Engine, inbox: &Receiver<Input>, outbox: &mut impl Write) -> io::Result<()> {
    send([FromWorker::Loaded], outbox)?;
    loop {
        let input = match inbox.try_recv() {
            Ok(input) => Some(input),
            Err(TryRecvError::Empty) if engine.has_work() => None,
            Err(TryRecvError::Empty) => match wait_and_tidy(&mut engine, inbox) {
                Some(input) => Some(input),
                None => return Ok(()),
            },
            Err(TryRecvError::Disconnected) => return Ok(()),
        };
        match input {
            Some(Input::Message(message, _room)) => engine.take(message),
            Some(Input::Prepared { id, run }) => engine.take_prepared(id, run.map(|run| *run)),
            Some(Input::Refused { id, error }) => send([FromWorker::Failed { id, error }], outbox)?,
            None => engine.round(),
        }
        send(engine.take_messages(), outbox)?;
    }
}

/// Waits for the next input. When it has been quiet for a while, the engine tidies up in the meantime. Returns `None` when there will be
/// no more.
fn wait_and_tidy(engine: &mut impl Engine, inbox: &Receiver<Input>) -> Option<Input> {
    loop {
        match inbox.recv_timeout(TIDY_AFTER) {
            Ok(input) => return Some(input),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) if engine.tidy() => {}
            Err(RecvTimeoutError::Timeout) => return inbox.recv().ok(),
        }
    }
}

fn send(messages: impl IntoIterator<Item = FromWorker>, outbox: &mut impl Write) -> io::Result<()> {
    let mut any = false;
    for message in messages {
        match (write_message(outbox, &message), message) {
            // Nothing of an overlong message was written.
            (Err(error), FromWorker::Embedded { id, .. }) if error.kind() == io::ErrorKind::InvalidData => {
                let error = RunError::invalid("inputs", format!("the vectors are too many for one answer: {error}"));
                write_message(outbox, &FromWorker::Failed { id, error })?;
            }
            (written, _) => written?,
        }
        any = true;
    }
    if any { outbox.flush() } else { Ok(()) }
}
