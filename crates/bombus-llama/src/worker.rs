//! The engine process: loads one model and computes what the node sends.
//!
//! It is a process of its own since every assertion of GGML ends the process. It lives as long as its stdin.

mod embedder;
mod generator;
mod log;
mod pace;
mod prompt;
mod run;
mod sampler;
mod schema;
mod template;
mod text;
mod tools;

use std::io::{self, BufWriter, Write};
use std::num::NonZeroU32;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{LlamaContextParams, LlamaPoolingType};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::{LogOptions, send_logs_to_tracing};

use self::embedder::Embedder;
use self::generator::Generator;
use self::log::LogLines;
use crate::platform::end_process;
pub(crate) use crate::protocol::RunError;
use crate::protocol::{FromWorker, LoadOptions, ModelKind, ToWorker, read_message, write_message};

/// Messages from the node that wait to be read. When it is full the node's pipe fills, and then the node waits.
const INBOX_MESSAGES_MAX: usize = 1_024;

/// Runs an engine process: the main function behind `bombus engine-worker`.
///
/// Reads messages from stdin and writes messages to stdout; logs are lines on stderr. Returns when the node says nothing that makes
/// sense; ends the process at once when stdin ends, whatever is being computed.
#[must_use]
pub fn engine_worker() -> ExitCode {
    let logs = log::init();
    let mut stdin = io::stdin();
    let Ok(Some(ToWorker::Load(options))) = read_message(&mut stdin) else {
        eprintln!("ERROR `bombus engine-worker` is started by a node, not by hand");
        return ExitCode::FAILURE;
    };
    let (sender, inbox) = sync_channel(INBOX_MESSAGES_MAX);
    std::thread::spawn(move || read_all(stdin, &sender));
    let mut outbox = BufWriter::new(io::stdout().lock());
    if let Err(reason) = serve(&options, &logs, &inbox, &mut outbox) {
        let told = write_message(&mut outbox, &FromWorker::LoadFailed { reason });
        if told.and_then(|()| outbox.flush()).is_err() {
            end_process();
        }
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn read_all(mut stdin: io::Stdin, sender: &SyncSender<ToWorker>) {
    loop {
        match read_message(&mut stdin) {
            Ok(Some(message)) => {
                if sender.send(message).is_err() {
                    return;
                }
            }
            Ok(None) => end_process(),
            Err(error) => {
                tracing::error!("the node's messages cannot be read: {error}");
                end_process();
            }
        }
    }
}

/// Loads the model and computes until the inbox closes. Errors are reasons why the model can't be loaded.
fn serve(
    options: &LoadOptions,
    logs: &LogLines,
    inbox: &Receiver<ToWorker>,
    outbox: &mut impl Write,
) -> Result<(), String> {
    let missing = crate::cpu::missing_features();
    if !missing.is_empty() {
        return Err(crate::cpu::explain(&missing));
    }
    send_logs_to_tracing(LogOptions::default());
    let backend = LlamaBackend::init().map_err(|error| error.to_string())?;
    let explain = |what: &str| logs.explain(what);
    let model = load_model(&backend, &options.path, options.gpu_layers).map_err(explain)?;
    let context = make_context(&backend, &model, options).map_err(|error| explain(&error))?;
    let lost_node = |error: io::Error| format!("the node cannot be reached: {error}");
    let computed = match options.kind {
        ModelKind::Generate => compute(Generator::new(&model, context, options), inbox, outbox),
        ModelKind::Embed => compute(Embedder::new(&model, context, options), inbox, outbox),
    };
    computed.map_err(lost_node)
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
        format!(
            "there is not enough memory for a context of {tokens} tokens; make context_tokens of the backend smaller"
        )
    })
}

/// Returns whether the model's file says how vectors are to be pooled.
fn names_pooling(model: &LlamaModel) -> bool {
    let family = model.meta_val_str("general.architecture");
    family.is_ok_and(|family| model.meta_val_str(&format!("{family}.pooling_type")).is_ok())
}

/// What computes requests, one round after the other.
trait Engine {
    fn take(&mut self, message: ToWorker);
    fn has_work(&self) -> bool;
    fn round(&mut self);
    fn take_messages(&mut self) -> impl Iterator<Item = FromWorker>;
}

fn compute(mut engine: impl Engine, inbox: &Receiver<ToWorker>, outbox: &mut impl Write) -> io::Result<()> {
    send([FromWorker::Loaded], outbox)?;
    loop {
        let message = if engine.has_work() {
            match inbox.try_recv() {
                Ok(message) => Some(message),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        } else {
            match inbox.recv() {
                Ok(message) => Some(message),
                Err(_) => return Ok(()),
            }
        };
        match message {
            Some(message) => engine.take(message),
            None => engine.round(),
        }
        send(engine.take_messages(), outbox)?;
    }
}

fn send(messages: impl IntoIterator<Item = FromWorker>, outbox: &mut impl Write) -> io::Result<()> {
    let mut any = false;
    for message in messages {
        write_message(outbox, &message)?;
        any = true;
    }
    if any { outbox.flush() } else { Ok(()) }
}

impl Engine for Generator<'_> {
    fn take(&mut self, message: ToWorker) {
        match message {
            ToWorker::Chat { id, credit, request } => self.submit(id, credit, *request),
            ToWorker::Credit { id, events } => self.add_credit(id, events),
            ToWorker::Cancel { id } => self.cancel(id),
            ToWorker::Load(_) | ToWorker::Embed { .. } => tracing::error!("a message that a text model cannot serve"),
        }
    }

    fn has_work(&self) -> bool {
        self.has_work()
    }

    fn round(&mut self) {
        self.round();
    }

    fn take_messages(&mut self) -> impl Iterator<Item = FromWorker> {
        self.take_messages()
    }
}

impl Engine for Embedder<'_> {
    fn take(&mut self, message: ToWorker) {
        match message {
            ToWorker::Embed { id, inputs } => self.submit(id, &inputs),
            ToWorker::Cancel { id } => self.cancel(id),
            ToWorker::Credit { .. } => {}
            ToWorker::Load(_) | ToWorker::Chat { .. } => {
                tracing::error!("a message that an embedding model cannot serve");
            }
        }
    }

    fn has_work(&self) -> bool {
        self.has_work()
    }

    fn round(&mut self) {
        self.round();
    }

    fn take_messages(&mut self) -> impl Iterator<Item = FromWorker> {
        self.take_messages()
    }
}
