//! An engine process that follows a script instead of computing: this test binary, started again through a shell script.
//!
//! What it does while loading stands in the model's file, a word to each start, the last for all further starts: `load`, `crash`
//! (before it is loaded), `vanish` (right after), `refuse` (for want of memory), `unsuited` (is the engine itself on a processor without AVX2), or
//! `alone` (crashes where the process of another model of the same folder still runs). What it does with a request is the prompt's first word; see [`answer`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::abort;
use std::sync::LazyLock;

use bombus_core::chat::{
    ChatEvent, ChatRequest, Delta, EmbedInput, EmbedResponse, FinishReason, Prompt, Timings, Usage,
};
use bombus_core::model::ModelName;
use bombus_infer::gguf::GgufInfo;
use bombus_infer::models::{LocalModel, ModelDefaults, ModelSource};
use rustix::process::{Pid, test_kill_process};

use crate::cpu;
use crate::protocol::{FromWorker, LoadFailure, RunId, ToWorker, read_message, write_message};
use crate::worker::work;

static PROGRAM: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("engine");
    // The test harness prints to stdout, so the messages go another way.
    let binary = std::env::current_exe().expect("a test binary knows its path");
    let script = format!(
        "#!/bin/sh\nexport BOMBUS_SCRIPTED=1\nexec '{}' scripted::speak --exact --nocapture 3>&1 >/dev/null\n",
        binary.display()
    );
    fs::write(&path, script).expect("the folder is new");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("the file is ours");
    (folder, path)
});

/// Returns the program to start in place of `bombus`.
pub(crate) fn program() -> &'static Path {
    &PROGRAM.1
}

/// Makes a model whose process follows a script. It is said to need `size_mb` beside what every process needs.
pub(crate) fn model(folder: &Path, name: &str, size_mb: u64, script: &str) -> LocalModel {
    let path = folder.join(name);
    fs::write(&path, script).expect("the folder is there");
    LocalModel {
        name: ModelName::parse(name).expect("tests choose proper names"),
        path,
        sha256: String::new(),
        size_bytes: size_mb << 20,
        modified_unix_s: 0,
        source: ModelSource::Ollama,
        info: GgufInfo::default(),
        defaults: ModelDefaults::default(),
    }
}

/// Returns how often the process of a model was started.
pub(crate) fn starts(model: &LocalModel) -> usize {
    fs::read(starts_file(&model.path)).map_or(0, |starts| starts.len())
}

fn starts_file(model: &Path) -> PathBuf {
    model.with_extension("starts")
}

/// Returns whether the last process of any other model in the folder still runs.
fn others_run(model: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(model.parent().unwrap_or(model))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "pid") && path != model.with_extension("pid") {
            let pid = fs::read_to_string(path)?.parse().ok().and_then(Pid::from_raw);
            if pid.is_some_and(|pid| test_kill_process(pid).is_ok()) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// A request whose prompt is this.
pub(crate) fn request(prompt: impl Into<String>) -> ChatRequest {
    ChatRequest::new("scripted", Prompt::Raw(prompt.into()))
}

/// Is the process, where it was started as one, and else no test.
#[test]
fn speak() {
    if std::env::var_os("BOMBUS_SCRIPTED").is_some() {
        let mut outbox = OpenOptions::new().write(true).open("/dev/fd/3").expect("the script opened it");
        serve(&mut outbox).expect("the node reads");
    }
}

fn serve(outbox: &mut File) -> io::Result<()> {
    let mut inbox = io::stdin();
    let Some(ToWorker::Load(options)) = read_message(&mut inbox)? else { return Ok(()) };
    OpenOptions::new().create(true).append(true).open(starts_file(&options.path))?.write_all(b".")?;
    let start = fs::read(starts_file(&options.path))?.len();
    let script = fs::read_to_string(&options.path)?;
    let others_run = others_run(&options.path);
    fs::write(options.path.with_extension("pid"), std::process::id().to_string())?;
    match script.split(' ').take(start).last() {
        Some("crash") => abort(),
        Some("alone") if others_run? => abort(),
        Some("refuse") => {
            let failure = LoadFailure { reason: "no room".into(), out_of_memory: true };
            return write_message(outbox, &FromWorker::LoadFailed(failure));
        }
        Some("unsuited") => {
            cpu::lack_avx2();
            let _ = work(&options, &Default::default(), inbox, outbox);
            return Ok(());
        }
        Some("vanish") => {
            write_message(outbox, &FromWorker::Loaded)?;
            abort();
        }
        _ => write_message(outbox, &FromWorker::Loaded)?,
    }
    let mut cancelled = Vec::new();
    while let Some(message) = read_message(&mut inbox)? {
        match message {
            ToWorker::Chat { id, request, .. } => answer(id, &request, &cancelled, start, outbox)?,
            ToWorker::Embed { inputs, .. } if matches!(&inputs[0], EmbedInput::Text(text) if text == "die") => abort(),
            ToWorker::Embed { id, inputs, .. } => {
                let response = EmbedResponse::new(vec![vec![1.0]; inputs.len()], 1);
                write_message(outbox, &FromWorker::Embedded { id, response })?;
            }
            ToWorker::Cancel { id } => cancelled.push(id),
            ToWorker::Load(_) | ToWorker::Credit { .. } => {}
        }
    }
    Ok(())
}

/// `hold` begins an answer that never ends, `die WORDS` logs these words and ends the process, `stall ADDRESS` reads nothing more until a connection to it ends, `cancelled`
/// is answered with the cancelled runs, `queue` says for long that others are before it (`queue die` ends the first process then), and
/// anything else is answered with a text.
fn answer(id: RunId, request: &ChatRequest, cancelled: &[RunId], start: usize, outbox: &mut File) -> io::Result<()> {
    let Prompt::Raw(prompt) = &request.prompt else { return Ok(()) };
    let text = match prompt.split_once(' ').unwrap_or((prompt, "")) {
        ("die", words) => {
            eprintln!("ERROR {words}");
            abort();
        }
        ("stall", address) => {
            let _ = TcpStream::connect(address)?.read(&mut [0])?;
            String::new()
        }
        ("cancelled", _) => format!("{cancelled:?}"),
        ("queue", words) => {
            for _ in 0..1_000 {
                write_message(outbox, &FromWorker::Waiting { ids: vec![id] })?;
            }
            if words == "die" && start == 1 {
                abort();
            }
            "a text".to_owned()
        }
        _ => "a text".to_owned(),
    };
    let delta = ChatEvent::Delta(Delta::text(text));
    write_message(outbox, &FromWorker::Event { id, event: delta })?;
    if prompt == "hold" {
        return Ok(());
    }
    let event = ChatEvent::Done {
        finish: FinishReason::Stop,
        usage: Usage::default(),
        timings: Timings::default(),
        tokens: Vec::new(),
    };
    write_message(outbox, &FromWorker::Event { id, event })
}
